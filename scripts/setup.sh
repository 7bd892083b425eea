#!/usr/bin/env bash
# Create the virtual environment and install the package with one extra; quick when nothing has changed.
# usage: scripts/setup.sh <venv> <extra> [locked|newest|oldest]      PYTHON=python3.11 chooses the interpreter
#   locked: the versions of constraints.txt; newest: the newest within the bounds of pyproject.toml; oldest: every lower bound
set -euo pipefail
venv=$1 extra=$2 versions=${3:-locked}
python=${PYTHON:-$(command -v python3.11 || command -v python3 || true)}
[ -n "$python" ] || { echo "setup: no python3 found. Install it: apt-get install python3.11 python3.11-venv" >&2; exit 1; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "setup: $("$python" --version) is too old, 3.11 or newer is needed. Name one: make demo PYTHON=python3.11" >&2; exit 1; }

stamp="$venv/.installed-$extra"
want="$versions $(cat pyproject.toml setup.py constraints.txt scripts/setup.sh scripts/bounds.py | cksum)"
if [ "$versions" != newest ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then exit 0; fi

began=$SECONDS
if [ ! -x "$venv/bin/python" ]; then
    "$python" -m venv "$venv" || {
        echo "setup: no virtual environment could be made. On Debian and Ubuntu: apt-get install python3.11-venv" >&2; exit 1; }
fi
log="$venv/install-$extra.log"
upgrade=
case $versions in
    locked) constraints=constraints.txt ;;
    oldest) constraints=$venv/oldest.txt && "$venv/bin/python" scripts/bounds.py oldest >"$constraints" ;;
    newest) constraints='' upgrade='--upgrade --upgrade-strategy eager' ;;
    *) echo "setup: $versions is none of locked, newest, oldest" >&2; exit 1 ;;
esac
# As variables the constraints hold for what pip builds from source, too (the second name: from pip 25.3 on).
if [ -n "$constraints" ]; then export PIP_CONSTRAINT=$constraints PIP_BUILD_CONSTRAINT=$constraints; fi

# Which torch would pip take, if it takes one? Only the CUDA build brings gigabytes.
torch=$(sed -n 's/^ *"\(torch[<>=][^"]*\)".*/\1/p' pyproject.toml)
chosen=$("$venv/bin/python" -m pip install --quiet --dry-run --no-deps --report - "$torch" 2>/dev/null \
    | "$venv/bin/python" -c 'import json,sys; print(json.load(sys.stdin)["install"][0]["metadata"]["version"])' 2>/dev/null || true)
if [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] && [ -n "$chosen" ] && [ "${chosen%+cpu}" = "$chosen" ]; then
    echo "setup: pip will take torch $chosen with its CUDA libraries, several GB. For the CPU build (about 200 MB) stop now"
    echo "       and give pip PyTorch's CPU wheel index, named on pytorch.org under 'Get Started':"
    echo "       PIP_INDEX_URL=<that index> $venv/bin/pip install torch==$chosen      # and the same command again"
fi
echo "setup: installing grasp_rl[$extra] into $venv, versions: $versions (about 2 minutes the first time; log: $log)"
# shellcheck disable=SC2086  # several words
if ! "$venv/bin/python" -m pip install --disable-pip-version-check $upgrade -e ".[$extra]" >"$log" 2>&1; then
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
