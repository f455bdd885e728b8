#!/bin/sh
# Usage: create_venv.sh PYTHON FOLDER
# Makes a virtual environment whose pip knows dependency groups (25.1 and later).
set -eu
python=$1
folder=$2

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "jouled needs Python 3.11 or newer and '$python' is not: name one with 'make PYTHON=python3.12 …'." >&2
    exit 1
fi
if [ ! -x "$folder/bin/python" ] && ! "$python" -m venv "$folder"; then
    rm -rf "$folder"
    echo "'$python' cannot make virtual environments: on Debian, run 'apt-get install python3-venv' as root." >&2
    exit 1
fi
if ! "$folder/bin/python" -c 'import pip; raise SystemExit(tuple(map(int, pip.__version__.split(".")[:2])) < (25, 1))'; then
    "$folder/bin/python" -m pip install --quiet --upgrade 'pip>=25.1'
fi
