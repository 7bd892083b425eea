#!/usr/bin/env bash
# The SAM ports against Meta's own packages, in an environment of their own: they want torchvision, which is never among
# the project's requirements. Usage: scripts/parity_sam2.sh VENV
set -euo pipefail
venv=${1:?usage: parity_sam2.sh VENV}
python=${PYTHON:-python3}
if [ ! -e "$venv/.ready" ]; then
  echo "parity-sam2: installing into $venv (about 3 minutes)"
  "$python" -m venv "$venv"
  export PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt
  "$venv/bin/python" -m pip install -q -e . pytest wheel setuptools iopath==0.1.10 portalocker==4.4.2 tqdm
  # without their requirements, which would replace torch: torchvision must only be importable
  "$venv/bin/python" -m pip install -q --no-deps torchvision==0.28.0 segment-anything==1.0
  "$venv/bin/python" -m pip install -q --no-deps --no-build-isolation sam2==1.1.0
  touch "$venv/.ready"
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1
"$venv/bin/python" -m pytest -q -ra -p no:cacheprovider tests/parity/test_sam_packages.py tests/parity/test_torchvision.py \
  tests/test_backbones.py tests/test_sam.py \
  | tee "$venv/parity.log"
! grep -q "SKIPPED" "$venv/parity.log" || { echo "parity-sam2: a test was skipped, so nothing was compared"; exit 1; }
