#!/usr/bin/env bash
# The long part of the evidence: the search of memory, ten million hostile datagrams, a hostile site and
# hostile local clients, the vectors, the symbolic model, Miri and AddressSanitizer, timing by dudect's
# method, fuzzing of each parser, a hundred million cases of each small one, and coverage, with a dated
# summary in docs/evidence/. A step that can't run here is SKIPPED with its reason and never counts as passed;
# any failure makes the exit status 1.
#
#   scripts/evidence.sh              everything, 10 minutes a fuzz target: about five hours
#   scripts/evidence.sh SECONDS      with SECONDS for each fuzz target; below 60 with the short floods
#   scripts/evidence.sh SECONDS STEP...   these steps alone: build memory floods vectors model miri asan
#                                    timing fuzzing many coverage; for the others the summary has their last
#                                    run
set -uo pipefail
cd "$(dirname "$0")/.." || exit
export PATH="$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin"
seconds="${1:-600}"
[ $# -eq 0 ] || shift
wanted=" $* "
case $seconds in '' | *[!0-9]*) echo "usage: $0 [SECONDS]" >&2; exit 2 ;; esac
target="${CARGO_TARGET_DIR:-target}"
dir="$target/evidence"
mkdir -p "$dir" docs/evidence
skip=77

fuzzing() { scripts/fuzz.sh "$seconds"; }
# Targets for which a case takes about a microsecond.
many() {
    local cases=100000000
    [ "$seconds" -ge 60 ] || cases=200000
    scripts/fuzz.sh many $cases hello stock_offer stock_ack propose accept confirm reject lanes fragment \
        inner_packet
}
memory() {
    cargo nextest run --retries 0 --locked -p tests --success-output final \
        -E 'binary(secrets) + binary(memory) + binary(secret_types)'
}
# Nine kinds of up to 40,000 a second for 30 s, and one of 400: ten million if the machine is fast enough.
floods() {
    local which=(--run-ignored all --profile soak)
    [ "$seconds" -ge 60 ] || which=()
    QVPN_FLOOD_RATE=40000 QVPN_FLOOD_SECONDS=30 cargo nextest run --retries 0 --locked -p tests \
        -E 'binary(abuse) + binary(hostile) + binary(local_abuse) + binary(kms_tunnel)' "${which[@]}" \
        --success-output final
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
addresses() {
    scripts/asan.sh
    local status=$?
    [ $status -ne 77 ] || reason="no nightly toolchain"
    return $status
}
vectors() {
    scripts/deps.sh python || return
    local script
    for script in docs/vectors/*.py; do "$target/venv/bin/python" "$script" || return; done
    cargo nextest run --retries 0 --locked -p qvpn-identity -p qvpn-proto -p qvpn-dataplane \
        -E 'binary(vectors) + test(wycheproof) + test(rfc)'
}
# If |t| is above 10 the times of the two classes differ. For the control they must differ, or the method
# detects nothing. The look-up of an index is only reported: indices are public.
timing() {
    cargo run --release --locked --manifest-path benches/timing/Cargo.toml --target-dir "$target/timing" \
        >"$dir/timing.txt" || return
    python3 - "$dir/timing.txt" <<'PY'
import re, sys
found = re.findall(r"bench (\S+) .*max t = ([+-][0-9.]+)", open(sys.argv[1]).read())
t = {name: abs(float(value)) for name, value in found}
wrong = [name for name in ("confirmation", "chain_check") if t.get(name, 99.0) > 10]
if t.get("control", 0.0) < 10:
    wrong.append("the control was not detected")
print("timing: " + ", ".join(f"{name} |t| {value:.1f}" for name, value in t.items()))
if wrong:
    sys.exit("timing: wrong: " + ", ".join(wrong))
PY
}
coverage() {
    scripts/fuzz.sh coverage
    local status=$?
    [ $status -ne 77 ] || reason="no llvm-tools"
    return $status
}
build() { cargo build --workspace --bins --locked; }

lines=() failed=0
step() {
    local name="$1" start=$SECONDS status word log
    shift
    reason=""
    log="$dir/$name.log"
    if [ "$wanted" != "  " ] && [ "${wanted/ $name /}" = "$wanted" ]; then
        lines+=("$(cat "$dir/$name.line" 2>/dev/null || printf '%-8s %7s  %s' "not run" "" "$name")")
        return
    fi
    printf '\n=== %s\n' "$name"
    # Not in a pipe, since the step sets `reason`.
    "$@" >"$log" 2>&1
    status=$?
    tail -n 5 "$log"
    case $status in
    0) word=passed ;;
    "$skip") word=SKIPPED ;;
    *) word=FAILED failed=1 ;;
    esac
    printf '%-8s %6ds  %s%s, %s\n' "$word" $((SECONDS - start)) "$name" "${reason:+ ($reason)}" \
        "$(date -u '+%F %R'), $(git rev-parse --short HEAD 2>/dev/null || echo unknown)" >"$dir/$name.line"
    lines+=("$(cat "$dir/$name.line")")
}

step "build" build
step "memory" memory
step "floods" floods
step "vectors" vectors
step "model" model
step "miri" undefined_behaviour
step "asan" addresses
step "timing" timing
step "fuzzing" fuzzing
step "many" many
step "coverage" coverage

# Only the part between the marks is rewritten; the rest of the day's page stays.
day="$(date -u +%F)"
page="docs/evidence/$day.md"
[ -s "$page" ] || printf '# Evidence of %s\n\n<!-- made -->\n<!-- end -->\n' "$day" >"$page"
{
    printf 'By `make evidence` on %s, %s processors, %s s a fuzz target; commit %s.\n\n```text\n' \
        "$(uname -sr)" "$(nproc)" "$seconds" \
        "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
    printf '%s\n' "${lines[@]}"
    printf '\n'
    cat "$target/fuzz/report.txt" 2>/dev/null
    printf '\n'
    [ ! -s "$target/fuzz/many.txt" ] || { cat "$target/fuzz/many.txt"; printf '\n'; }
    topics='starts|points|wrong|data|session|short|long|replay|live|joined|memory|control|kme|timing|soak'
    grep -hE "^ *(($topics): |[0-9]+ secrets looked|[0-9]+ used keys)" \
        "$dir/memory.log" "$dir/floods.log" "$dir/timing.log" | sed 's/^ *//' | sort -u
    [ ! -s "$target/fuzz/coverage.txt" ] || { printf '\n'; cat "$target/fuzz/coverage.txt"; }
    printf '```\n'
} >"$dir/made.md"
python3 - "$page" "$dir/made.md" <<'PY'
import sys
page, made = (open(path).read() for path in sys.argv[1:])
head, _, rest = page.partition("<!-- made -->\n")
_, _, tail = rest.partition("<!-- end -->\n")
open(sys.argv[1], "w").write(f"{head}<!-- made -->\n{made}<!-- end -->\n{tail}")
PY
printf '\n=== %s\n' "$page"
cat "$page"
exit $failed
