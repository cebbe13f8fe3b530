# In the booted guest: the operator's tasks with the units and the packages, and what must not happen.
. /guest/lib.sh

main_pid() { systemctl show -P MainPID qvpn@qvpn0.service; }
number() { systemctl show -P "$1" "$2"; }
files_are_untouched() { sha256sum --quiet -c /guest/operator.sums; }
answers() { ping -n -c 1 -W 1 -I 10.10.0.1 10.20.0.1; }

echo "guest: $(uname -r), systemd $(systemctl --version | head -1 | cut -d ' ' -f 2)"

# From boot on: the tunnel has no network yet, and its networks are blocked.
check "the guard has run" systemctl is-active --quiet qvpn-guard.service
guard=$(number ActiveEnterTimestampMonotonic qvpn-guard.service)
network=$(number ActiveEnterTimestampMonotonic network-pre.target)
[ "$guard" -gt 0 ] && [ "$guard" -le "$network" ] && ok "the guard was done before network-pre.target" ||
    failed "guard at $guard, network-pre.target at $network"
says "the tunnel's network is blocked" "$(ip route show table 29046 type unreachable)" "10.20.0.0/16"

# The other site, started by hand as root: it drops root itself.
ip netns add other
ip link add wan type veth peer name wan netns other
ip addr add 10.9.0.1/24 dev wan
ip link set wan up
ip link add lan type dummy
ip addr add 10.10.0.1/16 dev lan
ip link set lan up
ip netns exec other sh -e <<'END'
ip link set lo up
ip addr add 10.9.0.2/24 dev wan
ip link set wan up
ip link add lan type dummy
ip addr add 10.20.0.1/16 dev lan
ip link set lan up
END
systemctl start kme-sim.service
becomes "the simulated KMEs run" test -S /run/kme-sim/admin.sock
cd /root/site
check "guide: check" sh /guest/guide/check.sh
check "guide: start" sh /guest/guide/start.sh
# The daemon makes the directory of its socket before it drops root. If the directory belongs to another user,
# the daemon reports that it can't use it.
mkdir /run/roots
refused "a socket in root's directory" timeout 20 ip netns exec other qvpn-daemon --config \
    /etc/qvpn/other/qvpn0.toml --socket-dir /run/roots
says "which is said in words" "$(cat /tmp/check.log)" "chown qvpn:qvpn /run/roots"
ip netns exec other qvpn-daemon --config /etc/qvpn/other/qvpn0.toml --socket-dir /run/other >/tmp/other.log \
    2>&1 &
other=$!
becomes "the tunnel comes up" answers
systemctl is-active --quiet qvpn@qvpn0.service || failed "the unit runs"
same "owner of the memory of a daemon that root started, which is not dumpable" \
    "$(stat -c %U /proc/$other/environ)" root
same "its effective user" "$(awk '/^Uid:/ { print $3 }' /proc/$other/status)" "$(id -u qvpn)"

# The rights of the unit's process.
pid=$(main_pid)
status() { awk -v name="$1:" '$1 == name { print $2 }' /proc/$pid/status; }
same "user of the unit's daemon" "$(status Uid)" "$(id -u qvpn)"
for set in CapPrm CapEff CapBnd; do same "$set" "$(status $set)" 0000000000001000; done
for set in CapInh CapAmb; do same "$set" "$(status $set)" 0000000000000000; done
same NoNewPrivs "$(status NoNewPrivs)" 1
same Seccomp "$(status Seccomp)" 2
log=$(journalctl --no-pager -u qvpn@qvpn0.service -o cat)
says "all memory is locked" "$log" "memory: all of it is locked"
says "Landlock is in force" "$log" "(Landlock)"
says "it says who it is" "$log" "user qvpn, with CAP_NET_ADMIN alone"
same "mode and owner of the control socket" "$(stat -c '%a %U:%G' /run/qvpn/qvpn0.sock)" "660 qvpn:qvpn"

# Permissions on the control socket.
useradd --system member
usermod -aG qvpn member
useradd --system stranger
check "a member of the group may change" runuser -u member -- qvpn-ctl rekey qvpn0
refused "a stranger may not even look" runuser -u stranger -- qvpn-ctl show qvpn0
chmod 0666 /run/qvpn/qvpn0.sock
check "a stranger who was let in may look" runuser -u stranger -- qvpn-ctl show qvpn0
refused "and may change nothing" runuser -u stranger -- qvpn-ctl rekey qvpn0
says "which is said in words" "$(cat /tmp/check.log)" "this needs the permission"

# Live changes inside the sandbox.
check "reload" systemctl reload qvpn@qvpn0.service
check "goes on after it" answers

# The journal has a field for each fact.
fields=$(journalctl --no-pager -o json QVPN_EVENT=epoch.active QVPN_PEER=site-b -n 1)
for field in '"QVPN_INTERFACE":"qvpn0"' '"QVPN_SOURCES":"qkd+mlkem+x25519' '"QVPN_QKD_KEY_ID":"' \
    '"QVPN_EPOCH":"' \
    '"_SYSTEMD_UNIT":"qvpn@qvpn0.service"' '"SYSLOG_IDENTIFIER":"qvpn-daemon"' '"PRIORITY":"6"'; do
    says "a field of epoch.active" "$fields" "$field"
done

# systemd-networkd, with a link to manage: at each start it removes foreign routes. qvpn's routes stay without
# interruption, both while the daemon runs and when it is stopped.
unreachable() { ip route show table 29046 type unreachable proto 113; }
mkdir -p /etc/systemd/network
printf '[Match]\nName=lan\n[Network]\nAddress=10.10.0.1/16\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n' \
    >/etc/systemd/network/lan.network
managed() { grep -q ADMIN_STATE=configured "/run/systemd/netif/links/$(cat /sys/class/net/lan/ifindex)"; }
restart_networkd() {
    systemctl stop systemd-networkd.socket systemd-networkd.service
    # networkd's former state of the links, to detect that it has configured them again.
    rm -f /run/systemd/netif/links/*
    systemctl reset-failed systemd-networkd.service systemd-networkd.socket 2>/dev/null
    systemctl start systemd-networkd.service
    becomes "networkd manages a link" managed
}
ip -o monitor route >/tmp/monitor.log 2>&1 &
monitor=$!
before="$(ip route show table all proto 113)"
restart_networkd
restart_networkd
same "all our routes after networkd was started and restarted" "$(ip route show table all proto 113)" \
    "$before"
check "traffic goes on under networkd" answers
systemctl stop qvpn@qvpn0.service
block="$(unreachable)"
says "the block of a stopped tunnel" "$block" "10.20.0.0/16"
restart_networkd
same "it stays when networkd restarts" "$(unreachable)" "$block"
kill $monitor
# A stopped tunnel loses its own routes with its device, but no block.
refused "no block was taken away for a moment" grep 'Deleted unreachable' /tmp/monitor.log
# Without the drop-in the block would be removed, so this test can fail.
mkdir -p /etc/systemd/networkd.conf.d
ln -s /dev/null /etc/systemd/networkd.conf.d/50-qvpn.conf
# The guard would restore it at once.
systemctl stop qvpn-guard.service
restart_networkd
becomes "without the drop-in networkd takes the block away" sh -c \
    '[ -z "$(ip route show table 29046 type unreachable proto 113)" ]'
rm /etc/systemd/networkd.conf.d/50-qvpn.conf /etc/systemd/network/lan.network
systemctl stop systemd-networkd.socket systemd-networkd.service
ip addr replace 10.10.0.1/16 dev lan
systemctl start qvpn-guard.service
same "the guard puts it back" "$(unreachable)" "$block"
# The unit makes the directory of the sockets again if it is missing.
rm -rf /run/qvpn
check "a start without /run/qvpn" systemctl start qvpn@qvpn0.service
becomes "up again" answers
same "mode and owner of the socket" "$(stat -c '%a %U:%G' /run/qvpn/qvpn0.sock)" "660 qvpn:qvpn"
becomes "the guard makes its socket again" test -S /run/qvpn/guard.socket

# A killed process, and a hanging one.
kill -KILL "$(main_pid)"
refused "nothing leaves while it is down" answers
becomes "a killed daemon is started again" answers
mkdir -p /run/systemd/system/qvpn@qvpn0.service.d
printf '[Service]\nWatchdogSec=3s\n' >/run/systemd/system/qvpn@qvpn0.service.d/watchdog.conf
systemctl daemon-reload
systemctl restart qvpn@qvpn0.service
becomes "up under a watchdog" answers
restarts=$(number NRestarts qvpn@qvpn0.service)
sleep 7
same "a daemon that works feeds the watchdog: restarts" "$(number NRestarts qvpn@qvpn0.service)" "$restarts"
kill -STOP "$(main_pid)"
hung_is_replaced() { [ "$(number NRestarts qvpn@qvpn0.service)" -gt "$restarts" ]; }
becomes "a daemon that hangs is ended" hung_is_replaced
becomes "and up again" answers
rm -r /run/systemd/system/qvpn@qvpn0.service.d
systemctl daemon-reload

# The guide's unit for commands that follow the tunnel: it starts and stops with the tunnel.
cp /guest/guide/qvpn0-commands.service /etc/systemd/system/
has_nat() { nft list table ip qvpn0-nat; }
check "guide: commands" sh /guest/guide/commands.sh
check "they have run" has_nat
check "traffic goes on with them" answers
systemctl stop qvpn@qvpn0.service
refused "a stop of the tunnel undoes them" has_nat
systemctl start qvpn@qvpn0.service
becomes "its start runs them again" has_nat
kill -KILL "$(main_pid)"
becomes "up after a crash" answers
becomes "and they have run again" has_nat
check "their unit is right" systemd-analyze verify --man=no qvpn0-commands.service
systemctl disable --now qvpn0-commands.service >/dev/null 2>&1
refused "nothing of them stays" has_nat
# Like PreUp and PostDown: before the device exists, and after it is gone.
cat >/etc/systemd/system/qvpn0-commands.service <<'END'
[Unit]
BindsTo=qvpn@qvpn0.service
Before=qvpn@qvpn0.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c "ip link show qvpn0 || echo before >>/run/order"
ExecStop=/bin/sh -c "ip link show qvpn0 || echo behind >>/run/order"
[Install]
WantedBy=qvpn@qvpn0.service
END
systemctl daemon-reload
systemctl enable qvpn0-commands.service >/dev/null 2>&1
systemctl restart qvpn@qvpn0.service
becomes "up with commands before it" answers
systemctl stop qvpn@qvpn0.service
becomes "commands before the device and behind it" sh -c '[ "$(echo $(cat /run/order))" = "before behind" ]'
systemctl disable qvpn0-commands.service >/dev/null 2>&1
rm /etc/systemd/system/qvpn0-commands.service
systemctl daemon-reload
systemctl start qvpn@qvpn0.service
becomes "up without them" answers

# The rest of the guide.
sed -i 's/203.0.113.9/10.9.0.2/' /guest/guide/nft.sh
check "guide: nft" sh /guest/guide/nft.sh
check "guide: certificates" sh /guest/guide/certificates.sh
check "goes on with new certificates" qvpn-ctl rekey qvpn0
check "guide: eavesdropper" sh /guest/guide/eavesdropper.sh
becomes "up after it" answers
check "guide: new identity" sh /guest/guide/new-identity.sh
former=$(qvpn-ctl pubkey </etc/qvpn/qvpn0.key)
new=$(qvpn-ctl pubkey </etc/qvpn/qvpn0-2.key)
sed -i "s#^public_key = .*#public_key = [\"$former\", \"$new\"]#" /etc/qvpn/other/qvpn0.toml
check "the other site takes both keys" qvpn-ctl --socket-dir /run/other reload qvpn0
check "guide: identity" sh /guest/guide/identity.sh
becomes "the other site uses the new key" sh -c \
    'qvpn-ctl --socket-dir /run/other events qvpn0 --kind identity.changed | grep -q identity.changed'
becomes "up with the new identity" answers
sed -i "s#^public_key = .*#public_key = \"$new\"#" /etc/qvpn/other/qvpn0.toml
check "the other site drops the former key" qvpn-ctl --socket-dir /run/other reload qvpn0
becomes "up without the former one" answers
mv /etc/qvpn/qvpn0-2.key /etc/qvpn/qvpn0.key
sed -i 's#qvpn0-2.key#qvpn0.key#' /etc/qvpn/qvpn0.toml
# A file made by root: root can read it, but the daemon can't.
chmod 0600 /etc/qvpn/qvpn0.key
refused "check says that the daemon can't read a key of root alone" qvpn-ctl check /etc/qvpn/qvpn0.toml
says "in words" "$(cat /tmp/check.log)" \
    "chown root:qvpn /etc/qvpn/qvpn0.key && chmod 0640 /etc/qvpn/qvpn0.key"
eval "$(sed -n 's/.*run `\(chown [^`]*\)`.*/\1/p' /tmp/check.log)"
check "the fix in the message" qvpn-ctl check /etc/qvpn/qvpn0.toml
check "goes on with the key under its former name" qvpn-ctl reload qvpn0
becomes "up with it" answers
check "guide: backup" sh /guest/guide/backup.sh
says "the backup has the config" "$(tar -tzf qvpn-configs.tar.gz)" qvpn/qvpn0.toml
refused "and no key" grep -q '\.key' <<END
$(tar -tzf qvpn-configs.tar.gz)
END

# The key as a credential. Only root can read its file.
install -m 0600 /etc/qvpn/qvpn0.key /root/a.key
mkdir -p /etc/systemd/system/qvpn@qvpn0.service.d
printf '[Service]\nLoadCredential=a.key:/root/a.key\n' \
    >/etc/systemd/system/qvpn@qvpn0.service.d/credential.conf
cp -a /etc/qvpn/qvpn0.toml /root/qvpn0.toml
sed -i 's/^private_key_file = .*/private_key_file = "credential:a.key"/' /etc/qvpn/qvpn0.toml
systemctl daemon-reload
systemctl restart qvpn@qvpn0.service
becomes "up with a key that systemd hands over" answers
check "check finds the credential too" qvpn-ctl check /etc/qvpn/qvpn0.toml
check "reload with a credential" qvpn-ctl reload qvpn0
cp -a /root/qvpn0.toml /etc/qvpn/qvpn0.toml
rm -r /etc/systemd/system/qvpn@qvpn0.service.d
systemctl daemon-reload
systemctl restart qvpn@qvpn0.service
becomes "up with the file again" answers

sha256sum $(find /etc/qvpn -type f) >/guest/operator.sums

# Upgrade and downgrade: they leave the tunnels and the operator's files alone.
pid=$(main_pid)
said=$(dpkg -i /guest/new/*.deb 2>&1) || failed "upgrade: $said"
same "the tunnel's process after an upgrade" "$(main_pid)" "$pid"
says "the upgrade says what still runs" "$said" "qvpn@qvpn0.service still runs version"
check "traffic goes on" answers
check "guide: upgrade" sh /guest/guide/upgrade.sh
becomes "up with the new version" answers
pid=$(main_pid)
check "the operator's files" files_are_untouched
said=$(dpkg -i /guest/old/*.deb 2>&1) || failed "downgrade: $said"
same "the tunnel's process after a downgrade" "$(main_pid)" "$pid"
check "the operator's files after a downgrade" files_are_untouched
check "a restart then" systemctl restart qvpn@qvpn0.service
becomes "up after it" answers

# systemd's verdict on the units.
for unit in qvpn@qvpn0.service; do
    check "$unit is exposed to less than 2.0" systemd-analyze security --no-pager --threshold=20 "$unit"
    echo "guest: $(systemd-analyze security --no-pager "$unit" | tail -1 |
        sed 's/^[^A-Za-z]*//; s/ [^ a-zA-Z0-9.:@]*$//')"
done
check "the units are right" systemd-analyze verify --man=no qvpn@qvpn0.service qvpn-guard.service \
    qvpn.target kme-sim.service

# Removal keeps the block, purge removes it and reports that.
said=$(dpkg -r qvpn 2>&1) || failed "removal: $said"
refused "the tunnel is stopped" systemctl is-active --quiet qvpn@qvpn0.service
says "removal says that networks stay blocked" "$said" "stay unreachable"
says "and they are" "$(ip route show table 29046 type unreachable)" "10.20.0.0/16"
said=$(dpkg -P qvpn 2>&1) || failed "purge: $said"
says "purge says what it unblocked" "$said" "unreachable 10.20.0.0/16"
same "blocks after a purge" "$(ip route show table all type unreachable proto 113)" ""
says "and that the operator's files stay" "$said" "/etc/qvpn stays"
check "which they do" files_are_untouched
echo "guest: all done"
