# Only the removal of the last version stops the tunnels.
[ "$1" -eq 0 ] || exit 0
systemctl --no-reload disable qvpn-guard.service qvpn.target >/dev/null 2>&1 || :
[ -d /run/systemd/system ] || exit 0
systemctl stop 'qvpn@*.service' || :
# The guard would restore what a purge lifts. Stopping it lifts nothing.
systemctl stop qvpn-guard.service || :
# Only a process of qvpn may remove its filter, and the scripts after this one have none.
qvpn-ctl block --all --disown >/dev/null 2>&1 || :
