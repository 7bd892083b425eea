#!/usr/bin/env bash
# Every member of the small family from random weights, equally: the same scenes, steps and schedule, three seeds.
# usage: train.sh <bin folder with grasp-rl> <output folder> [steps] [jobs at once] [device] [further overrides]
# A run that is done is not made again; one that was stopped goes on.
set -uo pipefail
bin=$1 out=$2 steps=${3:-800} jobs=${4:-2} device=${5:-cpu}
shift $(($# < 5 ? $# : 5))
export OMP_NUM_THREADS=1
for seed in 0 1 2; do
  for member in sam2_tiny sam2_small sam2_large sam_base sam_huge; do
    folder=$out/$member-$seed
    [ -e "$folder/result.json" ] && continue
    while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
    if [ -d "$folder/checkpoints" ]; then
      "$bin/grasp-rl" fit-segmenter resume="$folder" >"$folder.log" 2>&1 &
    else
      "$bin/grasp-rl" fit-segmenter experiment=synthetic_$member run_dir="$folder" seed=$seed fit.steps=$steps optimizer.lr=1.5e-3 \
        engine.device=$device data.level=hard evaluation.every=0 evaluation.test_limit=8 "$@" >"$folder.log" 2>&1 &
    fi
  done
done
wait
