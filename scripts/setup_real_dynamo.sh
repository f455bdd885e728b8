#!/bin/sh
# Prepares .venv-dynamo: NVIDIA Dynamo with its mocker, for `make test-real`.
# Does nothing when the stamp says that exactly this was done before.
set -eu

cd "$(dirname "$0")/.."
dynamo_venv=.venv-dynamo
dynamo_version=1.6.1
stamp=$dynamo_venv/stamp
want="ai-dynamo $dynamo_version, $(cksum <scripts/setup_real_dynamo.sh) $(cksum <tests/real/make_dynamo_model.py)"

if [ "$(cat "$stamp" 2>/dev/null || true)" = "$want" ]; then
    echo "real Dynamo: $dynamo_venv is ready"
    exit 0
fi
rm -f "$stamp"
[ -x "$dynamo_venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$dynamo_venv"
pip="$dynamo_venv/bin/python -m pip --disable-pip-version-check --no-input"

# A plain install wants a package of simulated engines that the mocker does not need and that no index has.
$pip install --quiet --no-deps "ai-dynamo==$dynamo_version" "ai-dynamo-runtime==$dynamo_version"
$pip install --quiet 'aiohttp>=3.14.3' certifi 'kubernetes<33,>=32.0.1' msgspec 'prometheus-client<1,>=0.23.1' 'pydantic<=2.13.5' \
    'pyzmq>=26' pyyaml 'redis<9,>=6.2' tqdm 'transformers>=4.56' uvloop zstandard

rm -rf "$dynamo_venv/model"
$dynamo_venv/bin/python tests/real/make_dynamo_model.py "$dynamo_venv/model"
echo "$want" >"$stamp"
echo "real Dynamo: $dynamo_venv is ready"
