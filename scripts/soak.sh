#!/usr/bin/env bash
# The long runs of tests that `make test` runs briefly. Each part is a function; its output is
# target/soak/PART.log, and the report with times and numbers is target/soak/report.txt. Any failure makes the
# exit status 1.
#
#   scripts/soak.sh              all parts
#   scripts/soak.sh PART...      these parts
#
# The environment sets the lengths: QVPN_SIM_REKEYS (a million), QVPN_SIM_FIRST (the first seed),
# QVPN_MODEL_DEPTH, QVPN_SOAK_SECONDS (600) for the KME that is killed repeatedly, QVPN_SOAK_TRIAL=--short.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
export PATH="$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin"
dir="${CARGO_TARGET_DIR:-target}/soak"
mkdir -p "$dir"

# Every scenario that is too long for `make test`, in namespaces with the real programs.
part_scenarios() {
    cargo build --workspace --bins --locked || return
    cargo nextest run --retries 0 --package tests --locked --no-fail-fast --run-ignored ignored-only \
        --success-output final \
        --profile soak
}

# Sites on a virtual clock under every fault.
part_simulator() {
    cargo test --release --package qvpn-proto --locked --test sim -- --ignored --nocapture a_million_rekeys
}

# The exchange in every order of events, to a greater depth than in `make test`.
part_model() {
    cargo test --release --package qvpn-proto --locked --test sim -- --ignored --nocapture every_order
}

# A KME is down for 10 s of every 30 s, for ten minutes with one rekey a second; `make test` has 75 s of it.
part_kme_killed() {
    cargo build --workspace --bins --locked || return
    QVPN_SOAK_SECONDS="${QVPN_SOAK_SECONDS:-600}" cargo nextest run --retries 0 --package tests --locked \
        --success-output final --profile soak \
        --test kme_killed
}

# The field trial in full length, see docs/trial.md.
part_trial() {
    cargo build --workspace --bins --locked || return
    cargo run --quiet --locked --package tests --bin qvpn-trial -- ${QVPN_SOAK_TRIAL:-} --out "$dir/trial" |
        sed 's/^  ok   /soak: ok/'
}

parts=$(declare -F | sed -n 's/^declare -f part_//p')
for part in "${@:-}"; do
    [ -z "$part" ] || grep -qx "$part" <<<"$parts" ||
        { echo "there is no part $part; parts:" $parts >&2; exit 2; }
done
[ $# -eq 0 ] || parts="$*"

lines=() failed=0
for part in $parts; do
    start=$SECONDS
    printf '\n=== %s\n' "$part"
    if "part_$part" 2>&1 | tee "$dir/$part.log"; then word=passed; else word=FAILED failed=1; fi
    lines+=("$(printf '%-8s %5ds  %s' "$word" $((SECONDS - start)) "$part")")
    # Lines of a part that begin with `soak:` go into the report.
    mapfile -t said < <(sed -n 's/^ *soak: /                   /p' "$dir/$part.log")
    lines+=("${said[@]}")
done
{
    printf 'soak of %s on %s, %s\n\n' "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" \
        "$(uname -sr)" "$(date -u +%F)"
    printf '%s\n' "${lines[@]}"
} >"$dir/report.txt"
printf '\n=== report (%s)\n' "$dir/report.txt"
cat "$dir/report.txt"
exit $failed
