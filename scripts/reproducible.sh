#!/usr/bin/env bash
# Makes the packages of the last commit twice, in two directories, and compares every file: programs, packages
# and SBOM must be the same bytes. The first run is `make packages` in this directory, the second is in a
# clone with another path and umask, which is removed at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -z "$(git status --porcelain)" ] ||
    { echo "commit first: what is compared is the last commit" >&2; exit 1; }
umask 022
scripts/packages.sh

other="$(mktemp -d "${TMPDIR:-/tmp}/qvpn-made-again-in-a-longer-path.XXXXXX")"
trap 'rm -rf "$other"' EXIT
git clone --quiet . "$other/sources"
# The target directory is elsewhere, too.
(umask 077 && cd "$other/sources" && CARGO_TARGET_DIR="$other/programs" scripts/packages.sh)

here="$PWD/target/packages" there="$other/sources/target/packages"
status=0
for file in $(cd "$here" && find out stripped -type f | LC_ALL=C sort); do
    if cmp -s "$here/$file" "$there/$file"; then
        echo "same bytes: $(basename "$file") $(sha256sum <"$here/$file" | cut -c -16)…"
    else
        echo "DIFFERENT: $file" >&2
        cmp "$here/$file" "$there/$file" || true
        mkdir -p "$here/different/$(dirname "$file")"
        cp "$there/$file" "$here/different/$file"
        status=1
    fi
done
files_of() { (cd "$1" && find out stripped -type f | sort); }
[ "$(files_of "$here")" = "$(files_of "$there")" ] ||
    { echo "the two runs made different lists of files" >&2; status=1; }
exit $status
