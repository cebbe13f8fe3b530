#!/usr/bin/env bash
# Runs the tests of unsafe code under Miri, which detects undefined behaviour. It needs a nightly toolchain
# with the component miri; without one it exits with 77 and installs nothing.
#
#   scripts/miri.sh quick    qvpn-secret: half a minute
#   scripts/miri.sh          also qvpn-dataplane, which builds AWS-LC's C code again: some minutes
#
# Miri supports few system calls, so it does not check:
#   qvpn-secret/src/lock.rs  mmap, mprotect, mlock, madvise, munmap, sysconf (slots lie in plain allocations)
#   qvpn-dataplane/src       ioctl (tun/ioctl.rs), sched_setscheduler (sched.rs), sendmmsg and recvmmsg
#                            (udp/batch.rs); tests that play the kernel's part check the messages for them
#   AWS-LC                   C code and assembly, which no test under Miri calls
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin"

if ! cargo +nightly miri --version >/dev/null 2>&1; then
    echo "there is no nightly toolchain with miri:" \
        "rustup toolchain install nightly --component miri,rust-src" >&2
    exit 77
fi
# The tests write no files, and read their limits in /proc.
export MIRIFLAGS="${MIRIFLAGS:--Zmiri-disable-isolation}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/miri"
cargo +nightly miri test --locked -p qvpn-secret --lib
[ "${1:-}" = quick ] || cargo +nightly miri test --locked -p qvpn-dataplane --lib -- udp:: wake::
