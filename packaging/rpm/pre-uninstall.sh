# Only the removal of the last version stops the tunnels.
[ "$1" -eq 0 ] || exit 0
systemctl --no-reload disable qvpn-guard.service qvpn.target >/dev/null 2>&1 || :
[ -d /run/systemd/system ] || exit 0
systemctl stop 'qvpn@*.service' || :
# The guard would restore what the removal of the block removes. Stopping the guard removes nothing.
systemctl stop qvpn-guard.service || :
# Only a process of qvpn may remove its filter, and qvpn's programs are gone when the next script runs.
qvpn-ctl block --all --disown >/dev/null 2>&1 || :
