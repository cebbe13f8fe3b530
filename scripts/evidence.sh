#!/usr/bin/env bash
# The long part of the proof: fuzzing of each parser, long floods and a hostile site, the search of memory, the symbolic
# model, Miri, and the vectors, with a dated summary in docs/evidence/. What can't be done here is SKIPPED with its reason and
# never counts as passed; any failure makes the exit status 1.
#
#   scripts/evidence.sh              everything, 10 minutes a fuzz target: about five hours
#   scripts/evidence.sh SECONDS      with so many seconds a fuzz target; below 120 without the long floods
set -uo pipefail
cd "$(dirname "$0")/.." || exit
export PATH="$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin"
seconds="${1:-600}"
case $seconds in '' | *[!0-9]*) echo "usage: $0 [SECONDS]" >&2; exit 2 ;; esac
target="${CARGO_TARGET_DIR:-target}"
folder="$target/evidence"
mkdir -p "$folder" docs/evidence
skip=77

fuzzing() { scripts/fuzz.sh "$seconds"; }
memory() { cargo nextest run --locked -p tests -E 'binary(secrets) + binary(memory) + binary(secret_types)' --success-output final; }
floods() {
    if [ "$seconds" -lt 120 ]; then
        cargo nextest run --locked -p tests -E 'binary(abuse) + binary(hostile)' --success-output final
    else
        cargo nextest run --locked -p tests -E 'binary(abuse) + binary(hostile)' --run-ignored all --profile soak --success-output final
    fi
}
model() {
    if ! command -v "${PROVERIF:-proverif}" >/dev/null; then
        reason="there is no proverif; what it printed when it was run is in docs/formal"
        return $skip
    fi
    docs/formal/run.sh
}
undefined_behaviour() {
    scripts/miri.sh
    local status=$?
    [ $status -ne 77 ] || reason="no nightly toolchain with miri"
    return $status
}
vectors() {
    scripts/deps.sh python || return
    local script
    for script in docs/vectors/*.py; do "$target/venv/bin/python" "$script" || return; done
    cargo nextest run --locked -p qvpn-identity -p qvpn-proto -p qvpn-dataplane -E 'binary(vectors) + test(wycheproof) + test(rfc)'
}
build() { cargo build --workspace --bins --locked; }

lines=() failed=0
step() {
    local name="$1" start=$SECONDS status word log
    shift
    reason=""
    log="$folder/${name// /-}.log"
    printf '\n=== %s\n' "$name"
    # Not in a pipe: the step's own shell tells the reason.
    "$@" >"$log" 2>&1
    status=$?
    tail -n 5 "$log"
    case $status in
    0) word=passed ;;
    "$skip") word=SKIPPED ;;
    *) word=FAILED failed=1 ;;
    esac
    lines+=("$(printf '%-8s %6ds  %s%s' "$word" $((SECONDS - start)) "$name" "${reason:+ ($reason)}")")
}

step "build" build
step "memory" memory
step "floods" floods
step "vectors" vectors
step "model" model
step "miri" undefined_behaviour
step "fuzzing" fuzzing

day="$(date -u +%F)"
page="docs/evidence/$day.md"
{
    printf '# Evidence of %s\n\n' "$day"
    printf 'Commit %s, %s, %s processors, %s s a fuzz target, by `make evidence`.\n\n```text\n' \
        "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" "$(uname -sr)" "$(nproc)" "$seconds"
    printf '%s\n' "${lines[@]}"
    printf '\n'
    sed -n '3,$p' "$target/fuzz/report.txt" 2>/dev/null
    printf '\n'
    grep -hE '^ *(memory: |starts: |wrong: |data: |session: |replay: |[0-9]+ secrets looked|[0-9]+ used keys)' "$folder/memory.log" "$folder/floods.log" | sed 's/^ *//'
    [ ! -s "$target/fuzz/coverage.txt" ] || { printf '\n'; cat "$target/fuzz/coverage.txt"; }
    printf '```\n'
} >"$page"
printf '\n=== %s\n' "$page"
cat "$page"
exit $failed
