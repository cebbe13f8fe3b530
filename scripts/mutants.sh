#!/usr/bin/env bash
# Changes qvpn-proto and the data path's session.rs in small ways, one at a time, with cargo-mutants, and
# reports the changes that no test detects. Those that the quick tests miss are run against the longer
# simulations in a second pass. .cargo/mutants.toml selects the changes, the profiles `mutants` and
# `mutants-again` in .config/nextest.toml the tests. Without cargo-mutants this exits with 77 and installs
# nothing. The report is target/mutants/report.txt.
#
#   scripts/mutants.sh                      all, about 1,490, each for 3 to 15 s
#   scripts/mutants.sh -F peer/respond      those with this in their name (`cargo mutants --list`)
#   scripts/mutants.sh --shard 0/10         a tenth
set -uo pipefail
cd "$(dirname "$0")/.." || exit
export PATH="$PATH:$HOME/.cargo/bin"
dir="$(realpath "${CARGO_TARGET_DIR:-target}")/mutants"
mkdir -p "$dir"

reason=""
command -v cargo-nextest >/dev/null ||
    reason="cargo-nextest is not installed: cargo install --locked cargo-nextest"
command -v cargo-mutants >/dev/null ||
    reason="cargo-mutants is not installed: cargo install --locked cargo-mutants"
if [ -n "$reason" ]; then
    printf 'SKIPPED  mutants (%s)\n' "$reason" | tee "$dir/report.txt"
    exit 77
fi

export CARGO_TARGET_DIR="$dir/build"
run() { cargo mutants --output "$dir" --package qvpn-proto --package qvpn-dataplane "$@"; }
count() { cat "$dir/mutants.out/$1.txt" 2>/dev/null | grep -c .; }

rm -rf "$dir/mutants.out" "$dir/mutants.out.old"
run "$@" -- --profile mutants
status=$?
caught=$(count caught) unviable=$(count unviable)
# 2: some were missed, 3: some took too long. Any other status but 0 means that nothing was run.
if [ $status -eq 2 ] || [ $status -eq 3 ]; then
    first=$(count missed)
    run --iterate "$@" -- --profile mutants-again
    status=$?
    # The second run's lists have only what the first missed.
    caught=$((caught + $(count caught)))
fi
{
    printf 'mutants of %s on %s: %s missed by the quick tests, %s by all, %s caught, ' \
        "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" "$(date -u +%F)" "${first:-0}" \
        "$(count missed)" "$caught"
    printf '%s took too long, %s did not compile\n' "$(count timeout)" "$unviable"
    sed 's/^/MISSED   /' "$dir/mutants.out/missed.txt" 2>/dev/null
} | tee "$dir/report.txt"
exit $status
