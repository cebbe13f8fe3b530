# The directory for configs, then the units. No tunnel is started, and no running tunnel is touched. $1 is the
# number of versions that are installed now.
[ -e /etc/qvpn ] || install -d -m 0750 -o root -g qvpn /etc/qvpn
if [ "$1" -eq 1 ]; then
    systemctl --no-reload enable qvpn-guard.service qvpn.target >/dev/null 2>&1 || :
fi
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload || :
systemd-tmpfiles --create /usr/lib/tmpfiles.d/qvpn.conf || :
/usr/lib/systemd/systemd-sysctl /usr/lib/sysctl.d/50-qvpn.conf || :
[ "$1" -gt 1 ] || exit 0
# Both layers of the block stay while the guard restarts, and the daemons keep theirs in force in the
# meantime.
systemctl try-restart qvpn-guard.service ||
    echo "qvpn: qvpn-guard still runs the former version: see journalctl -u qvpn-guard, then" \
        "systemctl restart qvpn-guard"
for unit in $(systemctl list-units --plain --no-legend --state=active 'qvpn@*.service' | cut -d ' ' -f 1); do
    echo "qvpn: $unit still runs the former version; restart it when its site can spare some seconds:" \
        "systemctl restart $unit"
done
