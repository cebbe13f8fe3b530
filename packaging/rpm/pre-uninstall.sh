# Only the removal of the last version stops the tunnels.
[ "$1" -eq 0 ] || exit 0
systemctl --no-reload disable qvpn-guard.service qvpn.target >/dev/null 2>&1 || :
[ -d /run/systemd/system ] || exit 0
systemctl stop 'qvpn@*.service' || :
