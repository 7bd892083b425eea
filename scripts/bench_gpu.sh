#!/usr/bin/env bash
# What a step costs on one GPU, ours and TRL's: a random Qwen2.5-VL of the 3B's size in bfloat16, 8 pictures of 840 x 840 a step.
# usage: scripts/bench_gpu.sh <bin folder of an environment with grasp-rl[bench,train]> <output folder>
set -euo pipefail
bin=$1 out=$2
for mode in lora full; do
  for groups in 8 16; do
    "$bin/grasp-rl" bench step --device cuda --shape 3b --questions 8 --groups "$groups" --mode "$mode" --repeats 5 --profile \
      --out "$out/${mode}_g$groups"
  done
done
"$bin/grasp-rl" bench step --device cuda --shape 3b --questions 8 --only ours --repeats 5 --growth --out "$out/growth"
