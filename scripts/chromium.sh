#!/usr/bin/env bash
# Debian's Chromium, if there is none and this user may install it; otherwise one line about it, and the tests skip.
set -euo pipefail
command -v chromium chromium-browser google-chrome >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -qq update && apt-get -qq install -y chromium >/dev/null; then
    exit 0
fi
echo "test-page: no Chromium found and none could be installed. On Debian and Ubuntu: apt-get install chromium" >&2
