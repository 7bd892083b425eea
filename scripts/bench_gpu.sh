#!/usr/bin/env bash
# What a step costs on one GPU, ours and TRL's: a random Qwen2.5-VL of the 3B's size in bfloat16, 8 images of 840 x 840 a step.
# TRL's batches are the largest that fit 80 GB. On an H100 a step of TRL takes a minute, ours seven seconds: 4 to 5 minutes each with
# three counted steps. What one side measured is written (ours.json, trl.json) before the other begins.
# usage: scripts/bench_gpu.sh <bin folder of an environment with grasp-rl[bench,train]> <output folder> [counted steps]
set -uo pipefail
bin=$1 out=$2 steps=${3:-3}
failed=0
measure() {
  local name=$1
  shift
  "$bin/grasp-rl" bench step --device cuda --shape 3b --questions 8 --repeats "$steps" --profile --out "$out/$name" "$@" || failed=1
}
measure lora_g8 --groups 8 --mode lora --peer-batch 4
measure full_g8 --groups 8 --mode full --peer-batch 2 --no-parity
measure lora_g16 --groups 16 --mode lora --peer-batch 4 --no-parity
measure full_g16 --groups 16 --mode full --peer-batch 2 --no-parity
exit $failed
