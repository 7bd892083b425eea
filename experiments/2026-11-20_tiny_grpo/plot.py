"""Curves and the table of the sweep: python experiments/2026-11-20_tiny_grpo/plot.py outputs/tiny_grpo"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import yaml

HERE = Path(__file__).parent


def main(sweep: Path) -> None:
    runs = []
    for folder in sorted(p.parent for p in sweep.glob("*/result.json")):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        result = json.loads((folder / "result.json").read_text())
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        reward = config["reward"]["_target_"].rsplit(".", 1)[1].removesuffix("Reward").lower()
        runs.append(
            {"reward": reward, "prompt": config["prompt"]["scheme"], "seed": config["seed"], "rows": rows, **result}
        )
    cells = sorted({(r["reward"], r["prompt"]) for r in runs})
    figure, axes = plt.subplots(2, len(cells), figsize=(3.6 * len(cells), 5.4), sharex=True, squeeze=False)
    lines = [
        "| reward | prompt | seed | gIoU before | after | gain | one instance | several | no-target | box IoU | best step |"
    ]
    lines.append("|---" * 11 + "|")
    for column, cell in enumerate(cells):
        group = sorted((r for r in runs if (r["reward"], r["prompt"]) == cell), key=lambda r: r["seed"])
        for run in group:
            steps = [(row["step"], row["reward"]) for row in run["rows"] if "reward" in row]
            smooth = np.convolve([v for _, v in steps], np.ones(10) / 10, mode="valid")
            axes[0, column].plot([s for s, _ in steps][9:], smooth, lw=1, label=f"seed {run['seed']}")
            scored = [(0, run["before"]["giou"])] + [
                (row["step"], row["val/giou"]) for row in run["rows"] if "val/giou" in row
            ]
            axes[1, column].plot(*zip(*scored[1:], strict=True), marker="o", ms=3, lw=1)
            b, a = run["before"], run["after"]
            pairs = [
                f"{b.get(k, float('nan')):.3f} → {a.get(k, float('nan')):.3f}"
                for k in ("giou/single", "giou/multi", "no_target_accuracy", "box_iou")
            ]
            lines.append(
                f"| {cell[0]} | {cell[1]} | {run['seed']} | {b['giou']:.3f} | {a['giou']:.3f} | {a['giou'] - b['giou']:+.3f} | "
                + " | ".join(pairs)
                + f" | {run['best_step']} |"
            )
        axes[0, column].set_title(f"{cell[0]}, {cell[1]}", fontsize=10)
        axes[1, column].set_xlabel("optimizer step")
        for row in (0, 1):
            axes[row, column].grid(alpha=0.3)
    axes[0, 0].set_ylabel("mean reward, 10-step average")
    axes[1, 0].set_ylabel("validation gIoU")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(HERE / "curves.png", dpi=100)

    print("\n".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
