#!/usr/bin/env bash
# The long set of faults: kill -9 fifty times, W&B down, then the quick set. Takes about an hour on two cores.
set -euo pipefail
python="$1/python"
out="${2:-outputs/faults}"
export OMP_NUM_THREADS=1
mkdir -p "$out"
for engine in local zero3x2; do
  "$python" tests/fault/kills.py --engine "$engine" --kills 25 --out "$out"
done
"$python" tests/fault/wandb_faults.py --out "$out"
"$python" -m pytest -p no:xdist -q tests/fault tests/test_engines.py tests/test_step_faults.py tests/test_bad_input.py tests/test_parsing.py \
  tests/test_tracking.py tests/test_sam.py tests/conf | tee "$out/suite.txt"
