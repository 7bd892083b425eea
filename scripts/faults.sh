#!/usr/bin/env bash
# The long set of faults: kill -9 fifty times, W&B down, then every test of a fault. Says at the end whether all held.
# usage: scripts/faults.sh <bin folder of the environment> <output folder>
set -uo pipefail
python="$1/python"
out="${2:-outputs/faults}"
export OMP_NUM_THREADS=1
mkdir -p "$out"
failed=()
began=$SECONDS
for engine in local zero3x2; do
  "$python" tests/fault/kills.py --engine "$engine" --kills 25 --out "$out" || failed+=("kills of $engine")
done
"$python" tests/fault/wandb_faults.py --out "$out" || failed+=("W&B")
"$python" -m pytest -p no:xdist -q -m "not parity" --durations=10 tests/fault tests/test_engines.py tests/test_step_faults.py \
  tests/test_bad_input.py tests/test_parsing.py tests/test_validate.py tests/test_imageio.py tests/test_hf_vlm.py tests/test_pickles.py \
  tests/test_tracking.py tests/test_segmenters.py tests/test_sam.py tests/test_plan.py \
  tests/smoke/test_real.py tests/conf | tee "$out/tests.txt" || failed+=("tests")
echo "faults: $((SECONDS - began)) s, $out; ${failed[*]:-all held}"
[ ${#failed[@]} -eq 0 ]
