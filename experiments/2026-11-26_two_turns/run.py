"""Does a second turn lift the held-out gIoU? One turn against two of each kind, over seeds, compared in pairs.

A run that has ended is not run again. The first turn of the two-turn runs is read from predictions.jsonl and segmented
anew; with ``crop`` and a margin of 10 the second turn shows the whole image once more and nothing of the answer.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from grasp_rl.config.schema import ParsingConfig, PromptConfig, TurnConfig
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.evaluation.predictions import record_of
from grasp_rl.evaluation.protocols.masks import OURS
from grasp_rl.evaluation.significance import hierarchical_difference, paired_difference
from grasp_rl.interfaces import CoordinateFrame, Dataset
from grasp_rl.rewards.rubric import Rubric
from grasp_rl.rewards.terms.boxes import BoxIou
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.rollouts.turns import shown_of
from grasp_rl.segmenters.grabcut import GrabCutSegmenter
from grasp_rl.types import Completion, FinishReason, SegmentedRollout

STEPS, SCENES = 40, 256
COMMON = [
    *("policy=tiny", "segmenter=grabcut", "reward=think2seg", "prompt=box", "rollout.reward_worker=inline"),
    *("algorithm.prompts_per_step=6", "evaluation.every=0", f"evaluation.test_limit={SCENES}", "evaluation.overlays=0"),
]
TWO = ["rollout=two_turns", f"algorithm.steps={STEPS}"]
FEEDBACK = "rollout.turns.second.feedback"
RUNS = {
    "one": [f"algorithm.steps={2 * STEPS}", f"checkpoint.every={STEPS}", "checkpoint.keep_last=2"],
    "overlay": [*TWO, f"{FEEDBACK}=overlay"],
    "zoom": [*TWO, f"{FEEDBACK}=zoom"],
    "longer": ["rollout=two_turns", f"algorithm.steps={3 * STEPS}", f"{FEEDBACK}=overlay"],
    "again": [*TWO, f"{FEEDBACK}=crop", "rollout.turns.second.margin=10"],
}
NAMES = {
    "one": "one turn, 40 steps (as many optimizer steps)",
    "one_long": "one turn, 80 steps (as many completions)",
    "overlay": "two turns, overlay",
    "zoom": "two turns, zoom",
    "longer": "two turns, overlay, 120 steps",
    "again": "two turns, the plain image again",
}
BOX = PromptConfig(scheme="box", template="compact", positive_points=0)


def launch(command: str, run_dir: Path, words: list[str], made: str) -> None:
    if not (run_dir / made).exists():
        full = [sys.executable, "-m", "grasp_rl.cli.main", command, f"run_dir={run_dir}", *words]
        subprocess.run(full, check=True, stdout=subprocess.DEVNULL)


def run(folder: Path, kind: str, seed: int) -> None:
    launch("train", folder / f"{kind}_{seed}", [*COMMON, f"seed={seed}", *RUNS[kind]], "result.json")
    if kind == "one":
        half = f"init_from={folder}/one_{seed}/checkpoints/step_{STEPS:06d}"
        launch("evaluate", folder / f"half_{seed}", [*COMMON, half], "eval/metrics.json")


def first_turns(records: list[dict[str, Any]], split: Dataset, pipeline: RewardPipeline) -> list[SegmentedRollout]:
    """The first turn's answers of a two-turn evaluation, segmented."""
    frame = CoordinateFrame(width=112, height=112, image_width=112, image_height=112)
    said = []
    for index, record in enumerate(records):
        text = record["earlier_turns"][0]["text"]
        completion = Completion(token_ids=(0,), logprobs=(0.0,), text=text, finish_reason=FinishReason.STOP)
        said.append(pipeline.run(split[index], frame, [completion])[0])
    return said


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "predictions.jsonl").read_text().splitlines()]


def scores(folder: Path, kind: str, seed: int, split: Dataset, pipeline: RewardPipeline) -> dict[str, list[float]]:
    """IoU of every test scene: before and after, and of the first turn where there are two."""
    if kind == "one_long":
        before, after = read(folder / f"one_{seed}/eval_before"), read(folder / f"one_{seed}/eval_after")
    elif kind == "one":
        before, after = read(folder / f"one_{seed}/eval_before"), read(folder / f"half_{seed}/eval")
    else:
        before, after = (read(folder / f"{kind}_{seed}/eval_{when}") for when in ("before", "after"))
    found = {"before": [r["iou"] for r in before], "after": [r["iou"] for r in after]}
    for when, records in (("before", before), ("after", after)):
        if "earlier_turns" in records[0]:
            rollouts = first_turns(records, split, pipeline)
            found[f"first_{when}"] = [
                record_of(split[i], r, boxes=True, protocol=OURS)["iou"] for i, r in enumerate(rollouts)
            ]
            same = [r["prompts"] == r["earlier_turns"][0]["prompts"] for r in records]
            found[f"same_{when}"] = [float(x) for x in same]
            found[f"read_{when}"] = [float(r["status"] == "ok") for r in records]
    return found


def picture(folder: Path, split: Dataset, pipeline: RewardPipeline, index: int) -> None:
    """The image of a scene, and what overlay, zoom and crop show of the first answer after training, side by side."""
    sample = split[index]
    (rollout,) = first_turns(read(folder / "overlay_0/eval_after")[index : index + 1], _Only(split, index), pipeline)
    kinds = ("overlay", "zoom", "crop")
    seen = [shown_of([rollout], sample.image, TurnConfig(prompt=BOX, feedback=kind))[0].image for kind in kinds]
    parts = []
    for image in (sample.image, *seen):
        large = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
        parts.append(np.full((224, 232, 3), 255, dtype=np.uint8))
        parts[-1][: large.shape[0], : large.shape[1]] = large
    drawn = np.concatenate(parts, 1)[:, :-8, ::-1]
    cv2.imwrite(str(Path(__file__).parent / "shown.png"), drawn, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    print(f"shown.png: {sample.sample_id}, {sample.query!r}, first answer {[p.box for p in rollout.answer.prompts]}")


class _Only:
    """One sample of a split."""

    def __init__(self, split: Dataset, index: int) -> None:
        self.sample = split[index]

    def __getitem__(self, _index: int) -> Any:
        return self.sample

    def __len__(self) -> int:
        return 1


def means(found: dict[int, dict[str, list[float]]], key: str) -> str:
    return (
        " / ".join(f"{np.mean(rows[key]):.3f}" for rows in found.values()) if key in next(iter(found.values())) else ""
    )


def told(interval: Any) -> str:
    return f"{interval.mean:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"


def against(found: dict[int, dict[str, list[float]]], base: dict[int, dict[str, list[float]]], key: str) -> str:
    """The difference to ``base`` over the seeds that both have."""
    seeds = sorted(found.keys() & base.keys())
    after, before = (np.array([side[s][k] for s in seeds]) for side, k in ((found, "after"), (base, key)))
    if len(seeds) > 1:
        return told(hierarchical_difference(before, after))
    first, second = (dict(enumerate(side[0].tolist())) for side in (before, after))
    return told(paired_difference({str(k): v for k, v in first.items()}, {str(k): v for k, v in second.items()}))


def main(folder: Path, words: list[str]) -> None:
    """``words``: KIND:SEED of the runs to make; the table has all that are there."""
    for word in words:
        kind, _, seed = word.partition(":")
        run(folder, kind, int(seed))
    split = SyntheticSource().split("test")
    pipeline = RewardPipeline(
        segmenter=GrabCutSegmenter(), reward=Rubric({"iou": BoxIou()}), prompt=BOX, parsing=ParsingConfig(),
        always_segment=True,
    )  # fmt: skip
    found = {}
    for kind in NAMES:
        seeds = [s for s in range(10) if (folder / f"{kind.removesuffix('_long')}_{s}/result.json").exists()]
        if seeds:
            found[kind] = {seed: scores(folder, kind, seed, split, pipeline) for seed in seeds}
    table = [
        {"run": kind, "seed": seed} | {k: f"{np.mean(v):.5f}" for k, v in rows.items()}
        for kind, by_seed in found.items()
        for seed, rows in by_seed.items()
    ]
    with (Path(__file__).parent / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in table for key in row)))
        writer.writeheader()
        writer.writerows(table)
    print(
        "| run | first turn before | after | scored before | after | to one turn, 40 steps | to one turn, 80 steps | to its first turn |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for kind, rows in found.items():
        short = "-" if kind == "one" else against(rows, found["one"], "after")
        long = "-" if kind == "one_long" else against(rows, found["one_long"], "after")
        own = against(rows, rows, "first_after") if kind not in ("one", "one_long") else "-"
        print(
            f"| {NAMES[kind]} | {means(rows, 'first_before')} | {means(rows, 'first_after')} | {means(rows, 'before')} "
            f"| {means(rows, 'after')} | {short} | {long} | {own} |"
        )
    if (folder / "overlay_0/result.json").exists():
        picture(folder, split, pipeline, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or [f"{kind}:{seed}" for seed in range(3) for kind in RUNS])
