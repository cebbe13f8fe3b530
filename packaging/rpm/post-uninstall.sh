# The removal of the last version removes the block and reports that. Configs and keys are the operator's, and
# stay.
[ "$1" -eq 0 ] || exit 0
[ ! -d /run/systemd/system ] || systemctl daemon-reload || :
# qvpn-ctl, which would do this, has been removed already. 113 is the protocol number of our routes and rules.
lifted=""
for table in $(nft list tables inet 2>/dev/null | sed -n 's/^table inet \(qvpn-.*\)$/\1/p'); do
    nft delete table inet "$table" && lifted="$lifted
  nftables table inet $table"
done
for family in -4 -6; do
    for priority in 113 112 114 32501 32500; do
        while ip $family rule del priority $priority protocol 113 2>/dev/null; do
            lifted="$lifted
  rule with priority $priority"
        done
    done
    # The list has line breaks for the reader, and `ip` needs separate words.
    routes=$(ip $family route show table all type unreachable proto 113 2>/dev/null) || routes=""
    [ -n "$routes" ] || continue
    lifted="$lifted
$(echo "$routes" | sed 's/^/  /')"
    ip $family route flush table all type unreachable proto 113 || :
    ip $family route flush table 29046 2>/dev/null || :
done
if [ -n "$lifted" ]; then
    echo "qvpn: no longer blocked, so traffic to these networks may leave in clear:$lifted"
fi
rm -rf /run/qvpn
rm -f /var/lib/qvpn/*.state /var/lib/qvpn/*.networks
rmdir /var/lib/qvpn 2>/dev/null || :
# The key that seals the audit log is a secret; the log itself is evidence, and stays.
rm -rf /var/lib/qvpn-audit
rmdir /var/log/qvpn 2>/dev/null || :
[ ! -e /var/log/qvpn ] || echo "qvpn: /var/log/qvpn stays, with the audit logs in it"
rmdir /etc/qvpn 2>/dev/null || :
[ ! -e /etc/qvpn ] ||
    echo "qvpn: /etc/qvpn stays, with the configs and secret keys in it;" \
        "erase them yourself if they are no longer needed"
