"""kill -9 at many instants, and going on: the run must be the uninterrupted one, bit for bit.

python tests/fault/kills.py --engine local --kills 25 --out FOLDER
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))

import harness

KINDS = ("checkpoint", "rollout", "any", "checkpoint", "rollout")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=tuple(harness.ENGINES), default="local")
    parser.add_argument("--kills", type=int, default=25, help="that hit where they should; a miss is one more")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    words = [*harness.WORDS, *harness.ENGINES[arguments.engine]]
    chance = random.Random(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = arguments.out / f"kills_{arguments.engine}.jsonl"
    record.unlink(missing_ok=True)
    failures = 0
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        harness.finish(whole, words)
        wanted = [KINDS[number % len(KINDS)] for number in range(arguments.kills)]
        number = 0
        while wanted:
            run_dir = Path(scratch) / "run"
            shutil.rmtree(run_dir, ignore_errors=True)
            hit = harness.strike(harness.start(run_dir, words), run_dir, wanted[0], chance)
            if hit == wanted[0]:
                wanted.pop(0)
            at = harness.rows(run_dir)
            harness.finish(run_dir, words)
            wrong = harness.compare(run_dir, whole)
            failures += bool(wrong)
            harness.report(record, {"kill": number, "hit": hit, "rows": at, "differs": wrong[:5]})
            sys.stdout.write(f"{arguments.engine} kill {number}: {hit}, {at} rows; {'DIFFERS' if wrong else 'equal'}\n")
            sys.stdout.flush()
            number += 1
    sys.stdout.write(f"{arguments.engine}: {number - failures} of {number} equal\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
