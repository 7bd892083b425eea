#!/usr/bin/env bash
# Create the virtual environment and install the package with one extra; quick when nothing has changed.
# usage: scripts/setup.sh <venv> <extra>      PYTHON=python3.11 chooses the interpreter
set -euo pipefail
venv=$1 extra=$2
python=${PYTHON:-$(command -v python3.11 || command -v python3 || true)}
[ -n "$python" ] || { echo "setup: no python3 found. Install it: apt-get install python3.11 python3.11-venv" >&2; exit 1; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "setup: $("$python" --version) is too old, 3.11 or newer is needed. Name one: make demo PYTHON=python3.11" >&2; exit 1; }

stamp="$venv/.installed-$extra"
want=$(cat pyproject.toml scripts/setup.sh | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then exit 0; fi

began=$SECONDS
if [ ! -x "$venv/bin/python" ]; then
    "$python" -m venv "$venv" || {
        echo "setup: no virtual environment could be made. On Debian and Ubuntu: apt-get install python3.11-venv" >&2; exit 1; }
fi
log="$venv/install-$extra.log"
if ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
    # Which torch would pip take? Only the CUDA build brings gigabytes.
    chosen=$("$venv/bin/python" -m pip install --quiet --dry-run --no-deps --ignore-installed --report - 'torch>=2.6,<2.14' 2>/dev/null \
        | "$venv/bin/python" -c 'import json,sys; print(json.load(sys.stdin)["install"][0]["metadata"]["version"])' 2>/dev/null || true)
    if [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] && [ -n "$chosen" ] && [ "${chosen%+cpu}" = "$chosen" ]; then
        echo "setup: pip will take torch $chosen with its CUDA libraries, several GB. For the CPU build (about 200 MB) stop now"
        echo "       and give pip PyTorch's CPU wheel index, named on pytorch.org under 'Get Started':"
        echo "       PIP_INDEX_URL=<that index> $venv/bin/pip install 'torch>=2.6,<2.14' && make demo"
    fi
fi
echo "setup: installing grasp_rl[$extra] into $venv (about 2 minutes the first time; log: $log)"
if ! "$venv/bin/python" -m pip install --disable-pip-version-check -e ".[$extra]" >"$log" 2>&1; then
    tail -n 15 "$log" >&2
    if grep -qiE 'name resolution|connection|timed out|no matching distribution|network is unreachable' "$log"; then
        echo "setup: pip could not fetch a package. Is there a network, or a proxy or package mirror to configure for pip?" >&2
    elif grep -qiE "command '?[^ ]*(gcc|cc|g\+\+)'? failed|Python\.h|compiler" "$log"; then
        echo "setup: a package had to be compiled and could not be. On Debian and Ubuntu: apt-get install build-essential python3-dev" >&2
    elif grep -qi 'no space left' "$log"; then
        echo "setup: the disk is full; about 2 GB are needed." >&2
    else
        echo "setup: the installation failed; the whole log is $log" >&2
    fi
    exit 1
fi
echo "$want" >"$stamp"
echo "setup: installed in $((SECONDS - began)) s"
