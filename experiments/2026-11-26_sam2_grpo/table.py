"""Gains of the sweep tiny_sam2_grpo in and out of domain, a row a cell, and its validation curves.

    python experiments/2026-11-26_sam2_grpo/table.py SWEEP OOD

SWEEP is the folder of `grasp-rl train -m experiment=tiny_sam2_grpo`; OOD holds, for each of its runs, a folder of the same name with every
``=`` and ``,`` an underscore, by `grasp-rl evaluate init_from=RUN evaluation.test_split=test_ood`, and start-PROMPT of the policy before.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from grasp_rl.evaluation.significance import paired_difference

HERE = Path(__file__).parent
CELLS = [(reward, prompt) for reward in ("grasp", "think2seg") for prompt in ("box", "box_2points")]


def ious(folder: Path) -> dict[str, float]:
    """IoU by sample id."""
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["sample_id"]: row["iou"] for row in map(json.loads, lines)}


def mean(values: dict[str, float]) -> str:
    return f"{sum(values.values()) / len(values):.3f}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("ood", type=Path)
    arguments = parser.parse_args(argv)
    say = sys.stdout.write
    say(
        "| reward | prompt | before | after, by seed | gain, by seed | out of domain: before | after, by seed | gain, by seed |\n"
    )
    say("|---" * 8 + "|\n")
    figure, axes = plt.subplots(1, len(CELLS), figsize=(12, 3), sharey=True, layout="constrained")
    for (reward, prompt), axis in zip(CELLS, axes, strict=True):
        runs = sorted(arguments.sweep.glob(f"prompt={prompt},reward={reward},seed=*"))
        outside = [arguments.ood / run.name.replace("=", "_").replace(",", "_") / "eval" for run in runs]
        parts = []
        for before, after in (
            ([run / "eval_before" for run in runs], [run / "eval_after" for run in runs]),
            ([arguments.ood / f"start-{prompt}" / "eval"] * len(runs), outside),
        ):
            starts, ends = [ious(folder) for folder in before], [ious(folder) for folder in after]
            gains = [paired_difference(start, end) for start, end in zip(starts, ends, strict=True)]
            parts += [mean(starts[0]), ", ".join(map(mean, ends))]
            parts.append("; ".join(f"{gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})" for gain in gains))
        say(f"| `{reward}` | `{prompt}` | " + " | ".join(parts) + " |\n")
        for number, run in enumerate(runs):
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
            curve = [(row["step"], row["val/giou"], row["val/box_iou"]) for row in rows if "val/giou" in row]
            steps, gious, boxes = zip(*curve, strict=True)
            axis.plot(steps, gious, color="C0", alpha=0.8, label="gIoU" if number == 0 else None)
            axis.plot(steps, boxes, color="C1", alpha=0.8, label="box IoU" if number == 0 else None)
        axis.set_title(f"{reward}, {prompt}", fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("128 validation scenes")
    axes[0].legend(fontsize=8)
    figure.savefig(HERE / "curves.png", dpi=110)


if __name__ == "__main__":
    main()
