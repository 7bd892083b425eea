"""Two runs of one config on different engines, step by step: a table on stdout and curves.png beside this file.

python experiments/2026-11-21_engines/compare.py LOCAL_RUN OTHER_RUN
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

HERE = Path(__file__).parent


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    ours, theirs = (rows(Path(word)) for word in sys.argv[1:3])
    steps = [(a, b) for a, b in zip(ours, theirs, strict=True) if "loss" in a]
    equal = next((i for i, (a, b) in enumerate(steps) if abs(a["grad_norm"] / b["grad_norm"] - 1) > 1e-4), len(steps))
    print(f"equal rollouts up to step {equal}")
    for name, part in (("until then", steps[:equal]), ("after", steps[equal:])):
        if part:
            largest = {key: max(abs(a[key] - b[key]) for a, b in part) for key in ("reward", "loss", "grad_norm")}
            print(name, *(f"largest difference of {key} {value:.2g}" for key, value in largest.items()), sep="; ")
            means = [sum(row["reward"] for row in side) / len(side) for side in zip(*part, strict=True)]
            print(f"  mean reward {means[0]:.4f} and {means[1]:.4f}")
    for a, b in zip(ours, theirs, strict=True):
        if "val/giou" in a:
            print(f"validation at step {a['step']}: gIoU {a['val/giou']:.4f} and {b['val/giou']:.4f}")
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot(xlabel="optimizer step", ylabel="reward of the rollouts")
    for label, side, style in (("local", ours, "-"), ("zero3, two processes", theirs, "--")):
        drawn = [(row["step"], row["reward"]) for row in side if "loss" in row]
        axes.plot(*zip(*drawn, strict=True), style, label=label, linewidth=1.4)
    axes.legend(frameon=False)
    figure.savefig(HERE / "curves.png", dpi=120)


if __name__ == "__main__":
    main()
