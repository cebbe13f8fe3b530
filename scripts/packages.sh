#!/usr/bin/env bash
# Makes the packages `qvpn` and `qvpn-kme-sim`, each as .deb and .rpm, in target/packages/out, with an SBOM
# and checksums.
#
#   scripts/packages.sh                      from a release build
#   scripts/packages.sh --dev [VERSION...]   from the existing programs in target/debug, for the tests
#
# Two runs on the same commit make the same bytes, in any source directory: the programs contain no paths,
# times are the commit's (scripts/reproducible.sh compares). The programs print their own man pages and
# completions.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin"
target="$(realpath -m "${CARGO_TARGET_DIR:-target}")"
here="$PWD"
# Where cargo-deb looks for files other than programs, in any target directory.
work="$here/target/packages"
# The newest C library that the programs may need: RHEL 9 has this one, Debian 12 and Ubuntu 24.04 newer ones.
glibc=2.34

profile=release dir=release payload=zstd fast=() versions=()
if [ "${1:-}" = --dev ]; then
    profile=dev dir=debug payload=none fast=(--fast)
    shift
fi
versions=("$@")
[ ${#versions[@]} -gt 0 ] ||
    versions=("$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)")

SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.lock)}"
export SOURCE_DATE_EPOCH

build() {
    local map="$here=/qvpn" home="${CARGO_HOME:-$HOME/.cargo}=/cargo" rust
    rust="$(rustc --print sysroot)=/rust"
    # The last matching one counts, and the target directory may be inside the sources or elsewhere.
    local prefix
    for prefix in "$map" "$home" "$rust" "$target=/target"; do
        RUSTFLAGS="${RUSTFLAGS:-} --remap-path-prefix=$prefix"
        CFLAGS="${CFLAGS:-} -ffile-prefix-map=$prefix"
    done
    export RUSTFLAGS CFLAGS
    cargo build --locked --release --package qvpn-daemon --package qvpn-ctl --package kme-sim
}

check_glibc() {
    local program newest
    for program in qvpn-daemon qvpn-ctl kme-sim; do
        newest="$(objdump -T "$target/$dir/$program" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1)"
        newest="${newest#GLIBC_}"
        if [ "$(printf '%s\n' "$newest" "$glibc" | sort -V | tail -1)" != "$glibc" ]; then
            echo "$program asks for glibc $newest, and RHEL 9 has $glibc: build on an older system" >&2
            return 1
        fi
        echo "$program asks for glibc $newest at most"
    done
}

# Lays out a package's files other than the programs, with their paths on the target machine.
tree() {
    local root="$work/tree"
    rm -rf "$root"
    local qvpn="$root/qvpn/usr" sim="$root/qvpn-kme-sim/usr"
    put() { install -D -m 644 -t "$@"; }
    put "$qvpn/lib/systemd/system" packaging/systemd/{qvpn@.service,qvpn-guard.service,qvpn.target}
    put "$qvpn/lib/systemd/networkd.conf.d" packaging/networkd.conf.d/50-qvpn.conf
    put "$qvpn/lib/sysctl.d" packaging/sysctl.d/50-qvpn.conf
    put "$qvpn/lib/tmpfiles.d" packaging/tmpfiles.d/qvpn.conf
    put "$sim/lib/systemd/system" packaging/systemd/kme-sim.service
    local doc="$qvpn/share/doc/qvpn" file
    for file in README.md CHANGELOG.md SECURITY.md LICENSE-MIT LICENSE-APACHE; do put "$doc" "$file"; done
    # Docs, and the schemas of what `--json` prints.
    (cd docs &&
        find . -path ./formal -prune -o -type f \( -name '*.md' -o -name '*.json' -o -name '*.html' \) \
        -print) |
        while read -r file; do install -D -m 644 "docs/$file" "$doc/docs/$file"; done
    put "$doc/examples" qvpn-api/tests/examples/qvpn0.toml
    put "$doc/examples/keepalived" packaging/examples/keepalived/*
    for file in grafana prometheus; do
        [ ! -d "packaging/$file" ] || put "$qvpn/share/qvpn/$file" "packaging/$file"/*.*
    done
    put "$sim/share/doc/qvpn-kme-sim" docs/kme-sim.md LICENSE-MIT LICENSE-APACHE
    put "$sim/share/doc/qvpn-kme-sim/examples" kme-sim/presets/*.toml
    # Printed by the programs.
    local ctl="$target/$dir/qvpn-ctl" made="$root/made" section
    if "$ctl" help man >/dev/null 2>&1; then
        mkdir -p "$made"
        "$ctl" man "$made"
        "$target/$dir/qvpn-daemon" man "$made"
        "$target/$dir/kme-sim" man "$made"
        # cargo-deb would compress them, cargo-generate-rpm would not.
        gzip -9 -n "$made"/*
        for file in "$made"/*; do
            section="${file%.gz}" section="${section##*.}"
            case "$(basename "$file")" in
            kme-sim*) put "$sim/share/man/man$section" "$file" ;;
            *) put "$qvpn/share/man/man$section" "$file" ;;
            esac
        done
        rm -r "$made"
    fi
    if "$ctl" help completions >/dev/null 2>&1; then
        mkdir -p "$qvpn/share/bash-completion/completions" "$qvpn/share/zsh/site-functions" \
            "$qvpn/share/fish/vendor_completions.d"
        "$ctl" completions bash >"$qvpn/share/bash-completion/completions/qvpn-ctl"
        "$ctl" completions zsh >"$qvpn/share/zsh/site-functions/_qvpn-ctl"
        "$ctl" completions fish >"$qvpn/share/fish/vendor_completions.d/qvpn-ctl.fish"
    fi
    # Independent of the umask.
    find "$root" -type d -exec chmod 755 {} +
}

# The tree as assets of cargo-generate-rpm, after those of Cargo.toml.
rpm_assets() {
    local crate="$1" name="$2" file root="$work/tree/$2"
    local programs
    local section='/^\[package.metadata.generate-rpm\]/,/^\[package.metadata.generate-rpm.requires/p'
    programs="$(sed -n "$section" "$crate/Cargo.toml" |
        grep -o '{ source = "target/release/[^}]*}')"
    echo 'assets = ['
    while read -r file; do echo "    ${file//target\/release/$stripped},"; done <<<"$programs"
    (cd "$root" && find . -type f | LC_ALL=C sort) | while read -r file; do
        local doc=""
        [[ $file != ./usr/share/doc/* ]] || doc=", doc = true"
        echo "    { source = \"$root/${file#./}\", dest = \"/${file#./}\", mode = \"644\"$doc },"
    done
    echo ']'
}

pack() {
    local crate="$1" name="$2" version="$3"
    cargo deb "${fast[@]}" --quiet --no-build --package "$crate" --profile "$profile" \
        --no-dbgsym --strip --deb-version "$version-1" \
        --output "$out/${name}_$version-1_$(dpkg --print-architecture).deb"
    # The tests inspect one .rpm, and install only .deb.
    [ "$profile" != dev ] || [ "$version" = "${versions[0]}" ] || return 0
    rpm_assets "$crate" "$name" >"$work/$name-assets.toml"
    cargo generate-rpm --package "$crate" --metadata-overwrite "$work/$name-assets.toml" \
        --set-metadata "version = \"$version\"" --payload-compress "$payload" \
        --output "$out/$name-$version-1.$(uname -m).rpm"
}

# A list of the components of each program (CycloneDX). The tool writes one into the directory of each crate.
sbom() {
    local crate
    cargo cyclonedx --quiet --format json --spec-version 1.5 --no-build-deps --override-filename sbom-part \
        --target "$(rustc -vV | sed -n 's/^host: //p')" --manifest-path qvpn-daemon/Cargo.toml
    for crate in qvpn-daemon qvpn-ctl kme-sim; do
        sed "s#$here#/qvpn#g" "$crate/sbom-part.json" >"$out/$crate.cdx.json"
    done
    find . -maxdepth 2 -name sbom-part.json -delete
}

out="$work/out"
rm -rf "$out"
mkdir -p "$out"
[ "$profile" = dev ] || build
check_glibc
tree
stripped="$work/stripped"
rm -rf "$stripped"
mkdir -p "$stripped"
for program in qvpn-daemon qvpn-ctl kme-sim; do
    objcopy --strip-all "$target/$dir/$program" "$stripped/$program"
done
for version in "${versions[@]}"; do
    pack qvpn-daemon qvpn "$version"
    pack kme-sim qvpn-kme-sim "$version"
done
[ "$profile" = dev ] || sbom
(cd "$out" && sha256sum -- * >SHA256SUMS)
echo "packages in $out:"
ls -l "$out"
