#!/usr/bin/env bash
# Installs, runs, upgrades, downgrades and purges the packages in a clean Debian 12 that systemd boots: a QEMU
# guest with Debian's kernel, made by mmdebstrap. It needs no root and no disk. The packages are made from the
# existing programs in target/debug. Exit status 77: the test can't run here, and the last line says why.
#
# The Debian root is downloaded once and kept in target/packages; remove debian-12.tar there for a new one.
# For another system make such a root with the same packages and its own kernel, and set
# QVPN_GUEST_ROOT=FILE.tar.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin"
target="$(realpath -m "${CARGO_TARGET_DIR:-target}")"
work="$PWD/target/packages"
mkdir -p "$work"

skip() { echo "$*"; exit 77; }
for program in cargo-deb cargo-generate-rpm mmdebstrap qemu-system-x86_64 rpm dpkg-deb; do
    command -v "$program" >/dev/null || skip "there is no $program"
done
[ "$(uname -m)" = x86_64 ] || skip "the guest is for x86_64"

# Two versions that differ only in their number.
scripts/packages.sh --dev 0.2.0 0.2.1

same_lists() {
    local name="$1" deb rpm
    deb="$(dpkg-deb -c "$work/out/${name}_0.2.0-1_amd64.deb" | awk '$1 !~ /^d/ { print substr($6, 2) }' |
        grep -v '/copyright$' | sort)"
    rpm="$(rpm -qlp --noplugins "$work/out/$name-0.2.0-1.x86_64.rpm" 2>/dev/null | sort)"
    [ "$deb" = "$rpm" ] ||
        { echo "$name: .deb and .rpm hold different files"; diff <(echo "$deb") <(echo "$rpm"); return 1; }
    echo "$name: .deb and .rpm hold the same $(wc -l <<<"$deb") files"
}
same_lists qvpn
same_lists qvpn-kme-sim

root="${QVPN_GUEST_ROOT:-$work/debian-12.tar}"
if [ ! -e "$root" ]; then
    log="$work/mmdebstrap.log"
    # Root needs no user namespace; for others mmdebstrap chooses a mode.
    mode=auto
    [ "$(id -u)" -ne 0 ] || mode=root
    mmdebstrap --quiet --mode=$mode --format=tar --variant=apt \
        --include=systemd,systemd-sysv,udev,kmod,passwd,iproute2,iputils-ping,nftables \
        --include=linux-image-cloud-amd64 \
        bookworm "$root.part" >"$log" 2>&1 ||
            { tail -5 "$log"; skip "mmdebstrap can't make a Debian root here"; }
    mv "$root.part" "$root"
fi

guest="$work/guest"
rm -rf "$guest"
mkdir -p "$guest"
kernel="$(tar -tf "$root" | grep '^\./boot/vmlinuz-' | tail -1)"
tar -xf "$root" -C "$guest" --strip-components=2 --no-same-owner "$kernel"
kernel="$guest/$(basename "$kernel")"
files=(scripts/guest/init=init)
for file in image.sh run.sh lib.sh; do files+=("scripts/guest/$file=guest/$file"); done
python3 scripts/guest/guide.py docs/tutorial.md docs/operating.md "$guest/guide"
for file in "$guest"/guide/*; do files+=("$file=guest/guide/$(basename "$file")"); done
for name in qvpn qvpn-kme-sim; do
    files+=("$work/out/${name}_0.2.0-1_amd64.deb=guest/old/$name.deb"
        "$work/out/${name}_0.2.1-1_amd64.deb=guest/new/$name.deb")
done
python3 scripts/guest/archive.py "$root" "$guest/initramfs" "${files[@]}"

# Emulation works everywhere; QVPN_GUEST_ACCEL=kvm is faster if available.
timeout "${QVPN_GUEST_TIMEOUT:-900}" qemu-system-x86_64 -accel "${QVPN_GUEST_ACCEL:-tcg}" \
    -cpu max,arch-capabilities=off \
    -smp 2 -m 3072 -nodefaults -no-reboot -display none -serial "file:$guest/console.log" -nic none \
    -kernel "$kernel" -initrd "$guest/initramfs" \
    -append "console=ttyS0 quiet loglevel=3 panic=-1 rdinit=/init" >"$guest/qemu.log" 2>&1 || true
sed -i 's/\r//g' "$guest/console.log"
grep -a "^guest:\|^GUEST" "$guest/console.log" || true
if grep -qa "^guest: all done" "$guest/console.log" && ! grep -qa "FAILED" "$guest/console.log"; then
    rm -f "$guest/initramfs"
    exit 0
fi
echo "the guest did not come to its end; its console:"
tail -80 "$guest/console.log"
cat "$guest/qemu.log"
exit 1
