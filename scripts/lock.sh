#!/usr/bin/env bash
# Write constraints.txt: the newest versions within the bounds of pyproject.toml that pip finds together, today.
# Nothing is installed; `make test` and `make parity` then say whether these versions pass.
# usage: scripts/lock.sh [file]      PYTHON=python3.11 chooses the interpreter
set -euo pipefail
out=${1:-constraints.txt}
python=${PYTHON:-python3.11}
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
    echo "lock: the versions are locked for Python 3.11. Name one: make lock PYTHON=python3.11" >&2; exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m venv "$folder/venv"
# setuptools and wheel build what comes as source
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check --dry-run --ignore-installed \
    --report "$folder/report.json" '.[dev]' setuptools wheel
"$folder/venv/bin/python" scripts/bounds.py locked "$folder/report.json" >"$folder/constraints.txt"
mv "$folder/constraints.txt" "$out"
echo "lock: wrote $(grep -c == "$out") versions to $out"
