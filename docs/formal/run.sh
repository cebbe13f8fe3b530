#!/usr/bin/env bash
# Runs ProVerif on each scenario of qvpn.pv and prints the results: which secrets are broken, then the answers
# for S1, S2, A1, A2 and R1. R1 must be false, since it says that the model never reaches its end; the others
# must be true, except where all three secrets are broken or the model was weakened. Anything else than what
# README.md shows is a failure.
#
#   docs/formal/run.sh            seconds; add `long` for X25519 alone, which takes about 20 minutes
#   PROVERIF=/path/to/proverif docs/formal/run.sh
set -euo pipefail
model="$(dirname "$0")/qvpn.pv"
proverif="${PROVERIF:-proverif}"
dir="$(mktemp -d)"
trap 'rm -rf "$dir"' EXIT

# Writes the scenario in which these flags hold.
scenario() {
    local file="$1" flag
    shift
    cp "$model" "$file"
    for flag in "$@"; do
        sed -i -E "s/\(\*$flag:([^*]*):$flag\*\)/\1/g; s/\(\*-$flag: \*\)[^*]*\(\* :-$flag\*\)//g" "$file"
    done
}

answers() {
    local name="$1" file="$2" limit="$3" out
    out="$(timeout "$limit" "$proverif" "$file" 2>&1 || true)"
    local result='/^RESULT (/d; s/^RESULT.* is \(true\|false\).*/\1/p; s/^RESULT.*cannot.*/unproved/p'
    printf '%-34s %s\n' "$name" "$(sed -n "$result" <<<"$out" | tr '\n' ' ')"
}

# A model with one change: something left out, or one secret more.
changed() {
    local name="$1" base="$2" change="$3"
    sed "$change" "$dir/$base.pv" >"$dir/changed.pv"
    ! cmp -s "$dir/$base.pv" "$dir/changed.pv" || { echo "$name changes nothing" >&2; exit 1; }
    answers "$name" "$dir/changed.pv" 120
}

scenario "$dir/qkd.pv" X M
scenario "$dir/mlkem.pv" X Q
scenario "$dir/x25519.pv" M Q D
scenario "$dir/none.pv" X M Q
scenario "$dir/honest.pv" X M Q D
{
"$proverif" -help 2>&1 | head -1
printf '%-34s %s\n' "intact, or weakened by" "S1 S2 A1 A2 R1"
answers "QKD alone" "$dir/qkd.pv" 300
answers "ML-KEM alone" "$dir/mlkem.pv" 300
[ "${1:-}" != long ] || answers "X25519 alone, honest sites" "$dir/x25519.pv" 3600
answers "nothing" "$dir/none.pv" 300
# What A and B share from before: a pre-shared key, or the chain of an epoch that the attacker did not break.
secret='s/^const public: bytes32\./& free shared: bytes32 [private]./'
changed "pre-shared key alone, honest sites" honest "$secret; s/, q, public, public)/, q, shared, public)/"
changed "chain alone, honest sites" honest "$secret; s/, q, public, public)/, q, public, shared)/"
echo
changed "ML-KEM alone, no identities" mlkem \
    's/fun transcript(identity, identity, /fun transcript(/; s/transcript(idI, idR, /transcript(/
     s/mac(key, party, identity, identity, /mac(key, party, /
      s/, party\([UV]\), id[IR], id[IR], th/, party\1, th/'
changed "ML-KEM alone, no KEM to I" mlkem \
    's/opened(k, ci), agree/public, agree/; s/chosen(ki), agree/public, agree/'
changed "ML-KEM alone, no KEM to R" mlkem \
    's/chosen(kr), opened/public, opened/; s/, opened(k, cr), chosen/, public, chosen/'
changed "ML-KEM alone, no ephemeral KEM" mlkem \
    's/extract(th, opened(d, ce), /extract(th, public, /; s/extract(th, chosen(ke), /extract(th, public, /'
changed "ML-KEM alone, R not confirmed" mlkem 's/if m4 = mac(derive(prk, confirmR), .*) then//'
changed "QKD alone, no QKD key" qkd 's/, q, public, public)/, public, public, public)/'
} | sed 's/ *$//' | tee "$dir/printed"
# X25519 alone is no part of the short run's table.
sed -n '/^```text$/,/^```$/p' "$(dirname "$0")/README.md" | grep -v '^```' >"$dir/expected"
diff "$dir/expected" <(grep -v '^X25519 alone' "$dir/printed") >&2 ||
    { echo "the answers are not those of README.md" >&2; exit 1; }
! grep '^X25519 alone' "$dir/printed" | grep -v 'true true true true false$' ||
    { echo "X25519 alone: not proved" >&2; exit 1; }
