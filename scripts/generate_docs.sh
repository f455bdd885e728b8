#!/bin/sh
# Writes the generated documents; with --check only says whether they are current.
set -eu
cd "$(dirname "$0")/.."
jouled=.venv/bin/jouled
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT

"$jouled" metrics >"$fresh/metrics.md"
"$jouled" config --reference >"$fresh/configuration.md"
for document in metrics.md configuration.md; do
    if [ "${1:-}" != --check ]; then
        cp "$fresh/$document" "docs/$document"
    elif ! diff -u "docs/$document" "$fresh/$document"; then
        echo "docs/$document is not current: run 'make docs'." >&2
        exit 1
    fi
done
