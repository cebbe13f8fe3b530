#!/usr/bin/env bash
# All checks before a change is merged, in one run with one summary. A step that can't run here is SKIPPED
# with its reason and never counts as passed; any failure makes the exit status 1.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
export PATH="$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin"
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-auto}"
target="${CARGO_TARGET_DIR:-target}"
skip=77

format() { cargo fmt --all --check; }
lint() {
    cargo clippy --workspace --all-targets --locked -- -D warnings &&
        cargo clippy --package benches --features micro --benches --locked -- -D warnings
}
# Cycles of imports, long files, and words that the glossary replaced; a workspace of its own that takes
# seconds.
layout() { cargo test --quiet --locked --manifest-path layout/Cargo.toml --target-dir "$target/layout"; }
documentation() {
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked
}
dependencies() { cargo deny --all-features --locked check licenses bans sources; }
# From RustSec's database; if that can't be reached, from a copy that was fetched in the last 90 days.
advisories() {
    local copy fetched=1
    timeout 180 cargo deny --all-features fetch db || fetched=0
    copy="$(find "${CARGO_HOME:-$HOME/.cargo}/advisory-dbs" -mindepth 1 -maxdepth 1 -name 'advisory-db-*' \
        2>/dev/null | head -1)"
    if [ -z "$copy" ]; then
        reason="the advisory database can't be fetched from here, and there is no copy"
        return $skip
    fi
    printf 'advisories up to %s\n' "$(git -C "$copy" log -1 --format=%cs)"
    if [ $fetched = 1 ]; then
        cargo deny --all-features --locked check advisories
    else
        cargo fetch --locked && cargo deny --all-features --locked --offline check advisories
    fi
}
# The programs first: the scenario tests start them.
build() { cargo build --workspace --bins --locked; }
# A scenario that passed only when it ran once more is named in the summary.
unit_and_scenario_tests() {
    cargo nextest run --workspace --locked --no-fail-fast --color never 2>&1 | tee "$target/tests.log"
    local status=${PIPESTATUS[0]}
    again="$(sed -n 's/^ *FLAKY .*\] *\(([0-9 /]*) *\)\?//p' "$target/tests.log" | sort -u)"
    return "$status"
}
# Opens the page of the trial's test in a browser.
page_in_a_browser() {
    scripts/deps.sh browser || { reason="Chromium can't be installed"; return $skip; }
    scripts/check-page.py "$target/tmp/trial/trial.html" "$target/tmp/trial"
    local status=$?
    [ $status -ne $skip ] || reason="there is no Chromium"
    return $status
}
doc_tests() { cargo test --workspace --doc --locked; }
# Only the part that takes a minute; `make miri` is all of it.
undefined_behaviour() {
    scripts/miri.sh quick
    local status=$?
    [ $status -ne $skip ] || reason="there is no nightly toolchain with miri"
    return $status
}
# Packages of the programs in target/debug are installed, run, upgraded and purged in a guest that systemd
# boots. If its tools can't be installed, the last line names them.
packages() {
    scripts/deps.sh packages || echo "not all tools for the packages can be installed"
    scripts/test-packages.sh | tee "$target/packages.log"
    local status=${PIPESTATUS[0]}
    [ "$status" -ne $skip ] || reason="$(tail -1 "$target/packages.log")"
    return "$status"
}
# Recomputes the protocol's test vectors without the project's Rust code.
vectors() {
    local found=0 script
    for script in docs/vectors/*.py; do
        [ -e "$script" ] || continue
        found=1
        "$target/venv/bin/python" "$script" || return 1
    done
    [ $found = 1 ] || { echo "there is no vector check in docs/vectors" >&2; return 1; }
}

lines=() passed=0 failed=0 skipped=0 again=""
step() {
    local name="$1" start=$SECONDS status word
    shift
    reason=""
    printf '\n=== %s\n' "$name"
    "$@"
    status=$?
    case $status in
    0) word=passed passed=$((passed + 1)) ;;
    "$skip") word=SKIPPED skipped=$((skipped + 1)) ;;
    *) word=FAILED failed=$((failed + 1)) ;;
    esac
    lines+=("$(printf '%-8s %5ds  %s%s' "$word" $((SECONDS - start)) "$name" "${reason:+ ($reason)}")")
}

step "system packages" scripts/deps.sh system
step "cargo tools" scripts/deps.sh tools
step "format" format
step "layout and words" layout
step "lint" lint
step "documentation" documentation
step "licences, bans, sources" dependencies
step "advisories" advisories
step "build" build
step "unit and scenario tests" unit_and_scenario_tests
step "trial's page in a browser" page_in_a_browser
step "doc tests" doc_tests
step "undefined behaviour (miri)" undefined_behaviour
step "packages in a guest" packages
step "python packages" scripts/deps.sh python
step "vectors in python" vectors

printf '\n=== summary\n'
printf '%s\n' "${lines[@]}"
summary="$passed passed, $failed failed"
[ $skipped -eq 0 ] || summary+=", $skipped skipped"
printf '\n%s\n' "$summary"
[ -z "$again" ] || printf 'failed, and passed when run once more:\n%s\n' "$again"
[ $failed -eq 0 ]
