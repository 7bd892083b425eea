#!/usr/bin/env bash
# The main job: reward x prompt, four runs, one report.
# usage: scripts/demo.sh <bin folder of the environment> <output folder>
set -euo pipefail
bin=$1 out=$2
began=$SECONDS
if [ -e "$out" ]; then
    old="$out-$(date +%Y%m%d-%H%M%S)"
    mv "$out" "$old"
    echo "demo: an earlier demo was kept as $old"
fi
"$bin/grasp-rl" train -m experiment=demo "hydra.sweep.dir=$out"
"$bin/grasp-rl" report "$out"
echo "demo: ran in $((SECONDS - began)) s. Open $out/report.html"
