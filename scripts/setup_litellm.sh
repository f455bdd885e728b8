#!/bin/sh
# Prepares .venv-litellm: a real LiteLLM proxy, for `make test-real`. Does nothing where it is there already.
set -eu

cd "$(dirname "$0")/.."
venv=.venv-litellm
litellm_version=1.108.7

if [ "$("$venv/bin/python" -c 'import importlib.metadata as m; print(m.version("litellm"))' 2>/dev/null || true)" = "$litellm_version" ]; then
    echo "litellm: $venv is ready"
    exit 0
fi
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip --disable-pip-version-check --no-input install --quiet "litellm[proxy]==$litellm_version"
echo "litellm: $venv is ready"
