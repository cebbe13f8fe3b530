#!/usr/bin/env bash
# Runs the tests of the crates with unsafe code under AddressSanitizer, which checks what Miri can't run: real
# system calls on real sockets and locked pages. It needs a nightly toolchain; without one it exits with 77.
# AWS-LC's C code and assembly are not instrumented, so only the buffers that our code passes to it are
# checked.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin"

host="$(rustc +nightly -vV 2>/dev/null | sed -n 's/^host: //p')"
if [ -z "$host" ]; then
    echo "there is no nightly toolchain: rustup toolchain install nightly" >&2
    exit 77
fi
export RUSTFLAGS="-Zsanitizer=address" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/asan"
cargo +nightly test --locked --target "$host" -p qvpn-secret -p qvpn-dataplane --lib --tests
