#!/usr/bin/env bash
# Installs what building, testing and the demo need besides Rust: packages of Debian or Ubuntu, two cargo
# tools, and two Python packages in target/venv. It installs only what is missing and asks no question; if
# nothing is missing it is silent.
#
#   scripts/deps.sh system        packages of the distribution
#   scripts/deps.sh tools         rustfmt, clippy, cargo-nextest, cargo-deny
#   scripts/deps.sh python        target/venv
#   scripts/deps.sh packages      tools for the packages and their test; not among "all"
#   scripts/deps.sh browser       Chromium, to check the trial's page; not among "all"
#   scripts/deps.sh release       the same and cargo-cyclonedx, for `make packages`
#   scripts/deps.sh               all of these
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin"

have() { command -v "$1" >/dev/null 2>&1; }

# a command, and the package that contains it
packages="
cc         build-essential
cmake      cmake
git        git
ip         iproute2
unshare    util-linux
sysctl     procps
ping       iputils-ping
nft        nftables
iperf3     iperf3
ethtool    ethtool
vtysh      frr
keepalived keepalived
python3    python3
softhsm2-util softhsm2
promtool   prometheus
zsh        zsh
fish       fish
tmux       tmux
"

# The same for building and testing the packages of qvpn.
for_packages="
dpkg-shlibdeps      dpkg-dev
objcopy             binutils
rpm                 rpm
mmdebstrap          mmdebstrap
qemu-system-x86_64  qemu-system-x86
"

# For scripts/check-page.py.
for_pages="
chromium chromium
"

system() {
    local missing=() command package packages="${1:-$packages}"
    while read -r command package; do
        [ -z "$command" ] || have "$command" || missing+=("$package")
    done <<<"$packages"
    have python3 && python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
    [ ${#missing[@]} -gt 0 ] || return 0
    echo "installing packages: ${missing[*]}"
    if ! have apt-get; then
        echo "this script only knows apt-get; install these packages (or their equivalents) yourself:" \
            "${missing[*]}" >&2
        return 1
    fi
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        have sudo ||
            { echo "run as root, or install sudo, or install these yourself: ${missing[*]}" >&2; return 1; }
        as_root=(sudo)
    fi
    # On a fresh cloud machine unattended-upgrades holds dpkg's lock for minutes.
    local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive LC_ALL=C
        apt-get -q -y -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=600)
    refresh_lists "${apt[@]}"
    "${apt[@]}" install --no-install-recommends "${missing[@]}"
}

# `apt-get update`. The timeout above does not cover the lock of the package lists, so a held one is tried
# again for ten minutes.
refresh_lists() {
    local log status deadline=$((SECONDS + 600))
    log="$(mktemp)"
    while :; do
        status=0
        "$@" update 2>&1 | tee "$log" || status=$?
        if [ $status -eq 0 ] || [ $SECONDS -ge $deadline ] ||
            ! grep -q "Could not get lock" "$log"; then break; fi
        echo "another program holds the lock of the package lists; trying again"
        sleep 5
    done
    rm -f "$log"
    return $status
}

tools() {
    have cargo || { echo "there is no cargo: install Rust first, see https://rustup.rs" >&2; return 1; }
    cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
    cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
    # Unoptimised: their build takes longer than optimisation would save.
    have cargo-nextest || cargo install --locked --debug cargo-nextest
    have cargo-deny || cargo install --locked --debug cargo-deny
}

# Further tools for `make packages` and the test of the packages.
packages() {
    have cargo || { echo "there is no cargo: install Rust first, see https://rustup.rs" >&2; return 1; }
    system "$for_packages"
    local tool
    for tool in cargo-deb cargo-generate-rpm "$@"; do
        have "$tool" || cargo install --locked --debug "$tool"
    done
}

python() {
    local venv="${CARGO_TARGET_DIR:-target}/venv"
    cmp -s scripts/requirements.txt "$venv/requirements.txt" && return 0
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" --quiet --disable-pip-version-check install -r scripts/requirements.txt
    cp scripts/requirements.txt "$venv/requirements.txt"
}

case "${1:-all}" in
system | tools | python | packages) "$1" ;;
browser) system "$for_pages" ;;
release) packages cargo-cyclonedx ;;
all) system && tools && python ;;
*)
    echo "usage: $0 [system|tools|python|packages|browser|release|all]" >&2
    exit 2
    ;;
esac
