# Checks that print their result. The first failure ends the test.
ok() { echo "guest: ok: $*"; }
failed() {
    echo "guest: FAILED: $*"
    journalctl --no-pager -n 60 -u 'qvpn*' -u kme-sim 2>/dev/null
    exit 1
}
check() { what="$1"; shift; "$@" >/tmp/check.log 2>&1 && ok "$what" ||
    { cat /tmp/check.log; failed "$what"; }; }
refused() { what="$1"; shift; ! "$@" >/tmp/check.log 2>&1 && ok "$what" ||
    { cat /tmp/check.log; failed "$what"; }; }
same() { [ "$2" = "$3" ] && ok "$1: $2" || failed "$1 is \"$2\", not \"$3\""; }
says() { case "$2" in *"$3"*) ok "$1" ;; *) failed "$1: \"$3\" is not in: $2" ;; esac; }
# Waits up to 30 s for a command to succeed.
becomes() {
    what="$1"
    shift
    tries=0
    until "$@" >/tmp/check.log 2>&1; do
        tries=$((tries + 1))
        [ $tries -lt 150 ] || { cat /tmp/check.log; failed "$what"; }
        sleep 0.2
    done
    ok "$what"
}
