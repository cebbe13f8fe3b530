# Only the removal of the last version stops it.
[ "$1" -eq 0 ] || exit 0
[ ! -d /run/systemd/system ] || systemctl stop kme-sim.service || :
