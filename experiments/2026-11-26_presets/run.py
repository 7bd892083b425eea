"""Twenty steps of the shipped warm start with every reward preset, through the launcher; then a table of what moved.

A run that has ended is not run again, so that an interrupted call goes on where it was.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from grasp_rl.evaluation.significance import paired_difference

COMMON = [
    *("policy=tiny", "segmenter=grabcut", "seed=0", "algorithm.steps=20", "rollout.reward_worker=inline"),
    *("evaluation.every=0", "evaluation.test_limit=128", "evaluation.overlays=0", "resume=auto"),
]
STRICT = "parsing=strict"
LABELS = ["rollout=resap", "prompt=box", STRICT]
SECOND = "rollout.turns.second"
# what each preset is run with: the warm start speaks bbox_2d, positive_points and negative_points in a ```json fence
ROWS: dict[str, list[str]] = {
    "grasp": ["prompt=box_2points"],
    "hybrid": ["prompt=box_2points"],
    "think2seg": ["prompt=box_2points"],
    "think2seg, points": ["prompt=points"],
    "seg_zero": ["prompt=box_2points"],
    "visionreasoner": ["prompt=box_2points"],
    "geo_r1_rec": ["prompt=box"],
    "geo_r1_ovd": ["prompt=box", STRICT],
    "geo_r1_gres": ["prompt=box_2points"],
    "vlm_r1_od_length": ["prompt=box", STRICT],
    "vlm_r1_detection": ["prompt=box", STRICT],
    "sam_r1": ["prompt=box_4points"],
    "sam_r1_fixed": ["prompt=box_2pos_2neg"],
    "remote_reasoner": ["prompt=box", STRICT],
    "rs_eot": ["prompt=box"],
    "rs_hyre_r1": ["prompt=box"],
    "rs_hyre_r1_detection": ["prompt=box", STRICT],
    "resap": ["prompt=box", STRICT],
    "resap_points": LABELS,
    "resap_two_tasks": LABELS,
    "socio_reasoner_turn1": ["prompt=box", STRICT],
    "socio_reasoner_turn2": ["prompt=box_2points", STRICT],
    "socio_reasoner": [
        *("prompt=box", STRICT, "rollout=socio_reasoner"),
        *(f"{SECOND}.prompt.positive_key=positive_points", f"{SECOND}.parsing.reader=scheme"),
    ],
    "r1_sgg_boxes": ["prompt=box", STRICT],
    "rsthinker": ["prompt=box", STRICT],
    "geo_r1_cross_view": ["prompt=choice", "data=synthetic_cross_view"],
}


def run(name: str, run_dir: Path, words: list[str]) -> str:
    """The last line of what a failed run says; empty where it ended well, now or before."""
    if (run_dir / "result.json").exists():
        return ""
    reward = name.partition(",")[0]
    command = [sys.executable, "-m", "grasp_rl.cli.main", "train", f"run_dir={run_dir}", f"reward={reward}"]
    done = subprocess.run([*command, *COMMON, *words], check=False, capture_output=True, text=True)
    (run_dir.parent / f"{run_dir.name}.txt").write_text(done.stdout + done.stderr)
    return "" if done.returncode == 0 else (done.stderr or done.stdout).strip().splitlines()[-1]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def measured(run_dir: Path) -> dict[str, Any]:
    before, after = (json.loads((run_dir / f"eval_{w}/metrics.json").read_text()) for w in ("before", "after"))
    masks = {}
    if "giou" in before:  # a choice has no mask
        records = [lines(run_dir / f"eval_{when}/predictions.jsonl") for when in ("before", "after")]
        gain, low, high, _ = paired_difference(*({r["sample_id"]: r["iou"] for r in side} for side in records))
        masks = {"giou_before": before["giou"], "giou_after": after["giou"], "gain": gain, "low": low, "high": high}
    steps, times = lines(run_dir / "metrics.jsonl"), lines(run_dir / "timings.jsonl")
    drawn = [row["reward"] for row in steps]
    return {
        "drawn_first_5": np.mean(drawn[:5]),
        "drawn_last_5": np.mean(drawn[-5:]),
        "zero_variance": np.mean([row["zero_variance"] for row in steps]),
        "reward_before": before["reward"],
        "reward_after": after["reward"],
        "parsed": after["parsed"],
        "seconds_a_step": np.median([row["step_s"] for row in times]),
    } | masks


def main(folder: Path) -> None:
    rows = []
    for name, words in ROWS.items():
        run_dir = folder / name.replace(", ", "_")
        failure = run(name, run_dir, words)
        found = {"failure": failure} if failure else measured(run_dir)
        asked = dict(word.partition("=")[::2] for word in words)
        rows.append({"reward": name, "prompt": asked["prompt"], "parsing": asked.get("parsing", "")} | found)
        print(name, {k: v if isinstance(v, str) else round(float(v), 3) for k, v in found.items()}, flush=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (Path(__file__).parent / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows([{k: v if isinstance(v, str) else f"{v:.5g}" for k, v in row.items()} for row in rows])
    print(
        "| reward | prompt | parsing | drawn reward | held-out reward | gIoU | gain, 95 % | read | flat groups | s a step |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        if "failure" in row:
            print(f"| `{row['reward']}` | {row['prompt']} | {row['parsing']} | {row['failure']} |")
            continue
        moved = "- | -"
        if "gain" in row:
            moved = f"{row['giou_before']:.3f} → {row['giou_after']:.3f} "
            moved += f"| {row['gain']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
        print(
            f"| `{row['reward']}` | `{row['prompt']}` | {row['parsing'] or 'its own'} "
            f"| {row['drawn_first_5']:.3f} → {row['drawn_last_5']:.3f} "
            f"| {row['reward_before']:.3f} → {row['reward_after']:.3f} "
            f"| {moved} | {row['parsed']:.2f} "
            f"| {row['zero_variance']:.2f} | {row['seconds_a_step']:.2f} |"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
