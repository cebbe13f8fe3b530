# The user, and the directory for configs and certificates. The simulator isn't started.
getent passwd kme-sim >/dev/null ||
    useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /sbin/nologin kme-sim
[ -e /etc/kme-sim ] || install -d -m 0750 -o root -g kme-sim /etc/kme-sim
[ ! -d /run/systemd/system ] || systemctl daemon-reload || :
