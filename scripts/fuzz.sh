#!/usr/bin/env bash
# Fuzzes each parser with cargo-fuzz on a nightly toolchain, with AddressSanitizer. Inputs that reach new code
# are kept in fuzz/corpus; a crash stops its target, and its input is in fuzz/artifacts. Without its tools
# this is SKIPPED with the reason and never counts as passed. The report is target/fuzz/report.txt.
#
#   scripts/fuzz.sh                        each target for 10 minutes
#   scripts/fuzz.sh SECONDS [TARGET...]    these targets, or all, SECONDS each
#   scripts/fuzz.sh keep [TARGET...]       adds to fuzz/seeds the smallest inputs that reach more
#   scripts/fuzz.sh many CASES [TARGET...] CASES each, mutations of seeds and corpus without guidance and
#                                          sanitizer, on stable: a million a second for small messages; the
#                                          report is target/fuzz/many.txt
#   scripts/fuzz.sh coverage [TARGET...]   the lines of each parser that seeds, corpus and a short run reach,
#                                          in target/fuzz/coverage.txt; the files contain other code too
set -uo pipefail
cd "$(dirname "$0")/.." || exit
export PATH="$PATH:$HOME/.cargo/bin"
dir="${CARGO_TARGET_DIR:-target}/fuzz"
mkdir -p "$dir"
# The maximum number of bytes of new seeds that `keep` adds to a target.
most=40000

how="${1:-600}"
[ $# -eq 0 ] || shift
all=$(sed -n 's/^    ("\([a-z0-9_]*\)", .*/\1/p' fuzz/bodies/mod.rs)
cases=""
if [ "$how" = many ]; then cases="${1:?how many cases}"; shift; fi
targets="${*:-$all}"

reason=""
case $how in
coverage | many) ;;
*[!0-9]*)
    [ "$how" = keep ] || { echo "usage: $0 [SECONDS|keep|coverage|many CASES] [TARGET...]" >&2; exit 2; }
    ;;&
*)
    command -v cargo-fuzz >/dev/null ||
        reason="cargo-fuzz is not installed: cargo install --locked cargo-fuzz"
    cargo +nightly --version >/dev/null 2>&1 ||
        reason="there is no nightly toolchain: rustup toolchain install nightly"
    ;;
esac
if [ -n "$reason" ]; then
    printf 'SKIPPED  fuzzing (%s)\n' "$reason" | tee "$dir/report.txt"
    exit 77
fi

run() {
    local target="$1"
    shift
    mkdir -p "fuzz/corpus/$target"
    cargo +nightly fuzz run "$target" "$@"
}

# The source files that a target tests.
source_of() {
    case $1 in
    hello) echo qvpn-proto/src/wire/hello.rs ;;
    stock_offer | stock_ack) echo qvpn-proto/src/wire/stock.rs ;;
    propose | accept | confirm) echo qvpn-proto/src/wire/exchange.rs ;;
    reject) echo qvpn-proto/src/wire/reject.rs ;;
    lanes) echo qvpn-proto/src/wire/lanes.rs ;;
    datagram) echo qvpn-proto/src/session/control_link.rs ;;
    fragment) echo qvpn-proto/src/wire/fragment.rs ;;
    reassembly) echo qvpn-proto/src/channel.rs ;;
    responder) echo qvpn-proto/src/exchange/responder.rs qvpn-proto/src/stock/responder.rs ;;
    initiator) echo qvpn-proto/src/exchange/initiator.rs qvpn-proto/src/stock/initiator.rs ;;
    kme_status | kme_keys) echo kms-client/src/etsi014/wire.rs ;;
    kme_error) echo kms-client/src/excerpt.rs ;;
    etsi004) echo kms-client/src/etsi004/wire.rs ;;
    skip_key | skip_capabilities) echo kms-client/src/skip/wire.rs ;;
    config) echo qvpn-api/src/config/reader.rs qvpn-api/src/config/grammar.rs qvpn-api/src/config/values.rs \
        qvpn-api/src/config/rules.rs ;;
    control) echo qvpn-api/src/control.rs qvpn-api/src/control/lines.rs ;;
    split) echo qvpn-dataplane/src/tun/split.rs ;;
    coalesce) echo qvpn-dataplane/src/tun/coalesce.rs ;;
    inner_packet) echo qvpn-dataplane/src/lane/ecn.rs ;;
    allowed_ips) echo qvpn-dataplane/src/allowed_ips.rs ;;
    replay) echo qvpn-dataplane/src/session.rs ;;
    esac
}

# Runs the same bodies on stable, with every seed and the whole corpus: this takes seconds, while cargo-fuzz
# would build each target again.
coverage() {
    local tools program target file lines wrong=0
    # The tools of this compiler, since others may not read its profiles.
    tools="$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin"
    [ -x "$tools/llvm-cov" ] || { echo "SKIPPED  coverage (rustup component add llvm-tools)"; return 77; }
    program=$(RUSTC_WORKSPACE_WRAPPER="$PWD/scripts/instrumented-rustc.sh" \
        cargo test --locked --package tests --test fuzz \
        --no-run --message-format json 2>"$dir/coverage.log" |
        python3 -c 'import json,sys
for line in sys.stdin:
    unit = json.loads(line)
    if unit.get("target", {}).get("name") == "fuzz" and unit.get("executable"): print(unit["executable"])')
    [ -x "$program" ] || { echo "FAILED   coverage, see $dir/coverage.log"; return 1; }
    rm -f "$dir"/*.profraw
    for target in $targets; do
        QVPN_FUZZ_CORPUS=1 LLVM_PROFILE_FILE="$dir/$target.profraw" "$program" --exact "$target" \
            >>"$dir/coverage.log" 2>&1 ||
                { echo "$target: failed, see $dir/coverage.log"; wrong=1; continue; }
        "$tools/llvm-profdata" merge -sparse "$dir/$target.profraw" -o "$dir/$target.profdata" ||
            { wrong=1; continue; }
        for file in $(source_of "$target"); do
            lines=$("$tools/llvm-cov" export -summary-only -instr-profile="$dir/$target.profdata" "$program" \
                "$PWD/$file" |
                python3 -c 'import json,sys
l = json.load(sys.stdin)["data"][0]["totals"]["lines"]
print(l["covered"], l["count"])')
            # shellcheck disable=SC2086
            printf '%-18s %-42s %4s of %4s lines\n' "$target" "$file" ${lines:-? ?}
        done
    done > >(tee "$dir/coverage.txt")
    rm -f "$dir"/*.profraw
    return $wrong
}

many() {
    local target failed=0
    cargo build --release --locked --manifest-path fuzz/Cargo.toml --target-dir "$dir/many" --example many ||
        return
    printf '%s cases a target at %s, %s, %s\n' "$cases" \
        "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" "$(uname -sr)" \
        "$(date -u +%F)" >"$dir/many.txt"
    for target in $targets; do
        "$dir/many/release/examples/many" "$cases" "$target" 2>&1 | tee -a "$dir/many.txt"
        [ "${PIPESTATUS[0]}" -eq 0 ] || { printf 'FAILED   %s\n' "$target" |
            tee -a "$dir/many.txt"; failed=1; }
    done
    return $failed
}

keep() {
    local target file size total
    for target in $targets; do
        mkdir -p "$dir/merged/$target"
        cp "fuzz/seeds/$target"/* "$dir/merged/$target/"
        run "$target" "$dir/merged/$target" "fuzz/corpus/$target" -- -merge=1 -max_len=6000 \
            >"$dir/$target.merge.log" 2>&1 || {
            echo "$target: failed, see $dir/$target.merge.log"
            continue
        }
        total=0
        while read -r size file; do
            cmp -s "$file" "fuzz/seeds/$target/$(basename "$file")" && continue
            total=$((total + size))
            [ $total -le $most ] || break
            cp "$file" "fuzz/seeds/$target/"
        done < <(find "$dir/merged/$target" -type f -printf '%s %p\n' | sort -n)
        echo "$target: $(find "fuzz/seeds/$target" -type f | wc -l) seeds"
        rm -r "$dir/merged/$target"
    done
}

case $how in
coverage | keep | many) "$how"; exit ;;
esac

failed=0
printf 'fuzzing of %s on %s, %s, %s a target\n\n' \
    "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" \
    "$(uname -sr)" "$(date -u +%F)" "${how} s" >"$dir/report.txt"
for target in $targets; do
    log="$dir/$target.log"
    if run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- -max_total_time="$how" -max_len=6000 \
        -timeout=20 \
        -rss_limit_mb=2048 -print_final_stats=1 >"$log" 2>&1; then word=passed; else word=FAILED failed=1; fi
    cases=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    edges=$(grep -o 'cov: [0-9]*' "$log" | tail -1)
    printf '%-8s %-18s %12s cases, %s edges, %s inputs kept\n' "$word" "$target" "${cases:-no}" \
        "${edges#cov: }" \
        "$(find "fuzz/corpus/$target" -type f | wc -l)" | tee -a "$dir/report.txt"
done
exit $failed
