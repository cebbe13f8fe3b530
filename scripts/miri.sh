#!/usr/bin/env bash
# Runs the tests that reach `unsafe` under Miri, which finds undefined behaviour. It needs a nightly toolchain with the
# component miri; without one it exits with 77 and installs nothing.
#
#   scripts/miri.sh quick    qvpn-secret: half a minute
#   scripts/miri.sh          also qvpn-dataplane, for which AWS-LC's C code is built once more: some minutes
#
# Miri runs no system call that it doesn't know, so this stays unchecked by it:
#   qvpn-secret/src/lock.rs     mmap, mprotect, mlock, madvise, munmap, sysconf (slots lie in plain allocations instead)
#   qvpn-dataplane/src/sys.rs   ppoll, poll, ioctl, setsockopt, sendmmsg, recvmmsg, clock_gettime of CLOCK_BOOTTIME; what is
#                               laid out for sendmmsg and recvmmsg is checked, by tests that play the kernel's part
#   AWS-LC                      C code and assembly, which no test under Miri calls
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin"

if ! cargo +nightly miri --version >/dev/null 2>&1; then
    echo "there is no nightly toolchain with miri: rustup toolchain install nightly --component miri,rust-src" >&2
    exit 77
fi
# The tests write no files but look at their limits in /proc.
export MIRIFLAGS="${MIRIFLAGS:--Zmiri-disable-isolation}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/miri"
cargo +nightly miri test --locked -p qvpn-secret --lib
[ "${1:-}" = quick ] || cargo +nightly miri test --locked -p qvpn-dataplane --lib sys::
