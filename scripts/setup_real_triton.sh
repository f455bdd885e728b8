#!/bin/sh
# Prepares .venv-triton: NVIDIA's Triton Inference Server with its Python backend, for `make test-real`.
# Does nothing when the stamp says that exactly this was done before.
set -eu

cd "$(dirname "$0")/.."
triton_venv=.venv-triton
pytriton_version=0.7.0 # has Triton 2.51.0, which is release 24.10
stamp=$triton_venv/stamp
want="nvidia-pytriton $pytriton_version, $(cksum <scripts/setup_real_triton.sh)"

if [ "$(cat "$stamp" 2>/dev/null || true)" = "$want" ]; then
    echo "real Triton: $triton_venv is ready"
    exit 0
fi
rm -f "$stamp"
[ -x "$triton_venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$triton_venv"

# Of the package only the server is wanted, and of what its models import only numpy.
"$triton_venv/bin/python" -m pip --disable-pip-version-check --no-input install --quiet --no-deps \
    "nvidia-pytriton==$pytriton_version" "numpy==1.26.4"

# The Python backend starts a process for each model, for which the package has a program for each version of Python.
version=$("$triton_venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
site=$("$triton_venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
server=$site/pytriton/tritonserver
stub=$server/backends/python/triton_python_backend_stub
cp "$server/python_backend_stubs/$version/triton_python_backend_stub" "$stub"
if ldd "$stub" | grep -q "libpython.*not found"; then
    echo "real Triton: its models need libpython$version: on Debian, run 'apt-get install libpython$version' as root" >&2
    exit 1
fi
ln -sfn "$server" "$triton_venv/server"
echo "$want" >"$stamp"
echo "real Triton: $triton_venv is ready"
