# The user that the tunnels run as.
getent passwd qvpn >/dev/null ||
    useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /sbin/nologin qvpn
