#!/usr/bin/env bash
# Fetches the VPNs that `make bench` compares with qvpn into target/bench-peers, once; nothing is installed.
#
#   boringtun-cli, gotatun   built by cargo from the registry, in the versions below
#   wireguard-go             the newest of Debian (unstable), from the mirror that this machine's apt
#                            uses, unpacked only
#
# An unavailable one is named, and the bench shows it as skipped. Existing ones are kept; `--fresh` fetches
# again.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin"

boringtun=0.7.1
gotatun=0.10.2

peers="$(realpath -m "${CARGO_TARGET_DIR:-target}")/bench-peers"
[ "${1:-}" != --fresh ] || rm -rf "$peers"
mkdir -p "$peers/bin"

# Built in its own directory, so that our profiles and features don't affect it.
cargo_peer() {
    local program="$1" version="$2" crate="$3"
    [ ! -x "$peers/bin/$program" ] || return 0
    cargo install --quiet --locked --version "=$version" --root "$peers/root" --target-dir "$peers/build" \
        "$crate" ||
        return 1
    cp "$peers/root/bin/$program" "$peers/bin/$program" || return 1
    echo "$version" >"$peers/bin/$program.version"
}

# apt with its own lists and caches: the machine's sources and packages don't change.
wireguard_go() {
    [ ! -x "$peers/bin/wireguard-go" ] || return 0
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
        { echo "this needs Debian's apt-get" >&2; return 1; }
    local apt="$peers/apt" mirror
    mirror="$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN)' 'Created-By: Packages' |
        awk '$2 == "Debian" && $1 !~ /security/ { print $1; exit }')"
    [ -n "$mirror" ] || { echo "this machine's apt has no source of Debian's packages" >&2; return 1; }
    mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial" "$apt/none"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror unstable main" \
        >"$apt/sources.list"
    local options=(
        -q
        -o "Dir::State=$apt/state"
        -o "Dir::Cache=$apt/cache"
        -o "Dir::Etc::SourceList=$apt/sources.list"
        -o "Dir::Etc::SourceParts=$apt/none"
        -o "Dir::Etc::PreferencesParts=$apt/none"
        -o "Dir::State::status=/var/lib/dpkg/status"
        -o "Acquire::Languages=none"
        -o "APT::Sandbox::User=$(id -un)"
    )
    # Only errors are printed.
    apt-get "${options[@]}" update >"$apt/log" 2>&1 || { cat "$apt/log" >&2; return 1; }
    (cd "$apt" && rm -f ./*.deb && apt-get "${options[@]}" download wireguard-go >"$apt/log" 2>&1) ||
        { cat "$apt/log" >&2; return 1; }
    local package=("$apt"/wireguard-go_*.deb)
    dpkg-deb -x "${package[0]}" "$apt/root" || return 1
    dpkg-deb -f "${package[0]}" Version >"$peers/bin/wireguard-go.version" || return 1
    cp "$apt/root/usr/bin/wireguard-go" "$peers/bin/wireguard-go"
}

have() {
    local name="$1"
    shift
    if "$@"; then
        echo "have     $name $(cat "$peers/bin/$name.version")"
    else
        echo "SKIPPED  $name: it is not available here; the bench continues without it"
    fi
}

have wireguard-go wireguard_go
have boringtun-cli cargo_peer boringtun-cli "$boringtun" boringtun-cli
have gotatun cargo_peer gotatun "$gotatun" gotatun-cli
