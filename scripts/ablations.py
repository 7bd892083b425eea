"""The small ablations: every grid of conf/experiment/tiny, scored in and out of domain, with tables and a reading of claims.

    python scripts/ablations.py OUT                 # runs what is missing, then writes OUT/README.md and the plots
    python scripts/ablations.py OUT --tables-only   # of what there is

Runs stand in OUT/runs, one folder a configuration and seed, also where several grids name it; their scores on `test_ood` in
OUT/ood. Started again it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from grasp_rl.config.schema import RunConfig
from grasp_rl.config.targets import load_raw
from grasp_rl.evaluation.significance import bootstrap_p, bounds, holm
from grasp_rl.geometry import FloatArray
from grasp_rl.launch import compose, process
from grasp_rl.launch.process import Job, StopFile
from grasp_rl.reporting.axes import configurations
from grasp_rl.reporting.cells import Cell, by_test_set, draws_of
from grasp_rl.reporting.load import read_study
from grasp_rl.reporting.types import StudiedRun
from grasp_rl.runs.run_dir import CONFIG, METRICS, RESULT, STATUS, launcher_lock
from grasp_rl.tracking.metrics_log import read_rows
from grasp_rl.utils.files import read_json, write_text

GRIDS = (
    "reward", "tiers", "prompt", "points", "negatives", "segmenter", "group_size", "kl", "algorithm", "thinking",
    "rl_vs_sft", "no_target", "turns", "backbone",
)  # fmt: skip
COLUMNS = {"giou": "gIoU", "box_iou": "box IoU", "no_target_accuracy": "no-target accuracy"}
SPLITS = ("test", "test_ood")
SMOOTH = 9
NEAR = 0.02
"""gIoU: a difference whose interval lies within this of 0 is too small to be what a paper claims."""


class Point(NamedTuple):
    """One point of a grid."""

    label: str
    """What was swept, without the seed."""
    runs: tuple[Path, ...]
    """A folder a seed."""


@dataclass(frozen=True)
class Claim:
    """What a paper says of two settings, as a difference to be measured here."""

    text: str
    grid: str
    better: str
    """Label of the point that should be ahead."""
    worse: str
    split: str = "test"
    metric: str = "giou"
    minus: tuple[str, str] | None = None
    """Two more points whose difference is taken away: an interaction."""


_TIERS = "reward.terms.mask_iou.tiers=[[0.5,0.5],[0.7,0.75],[0.8,1.0]]"
_HARD = "segmenter=synthetic_sam2_{}, data.target={}"
_SFT, _GRPO = "regime=sft_grpo, algorithm=none", "regime=grpo, algorithm=dr_grpo"
_COMPACT = (_HARD.format("tiny", "semantic"), _HARD.format("large", "semantic"))
_INSTANCE = (_HARD.format("tiny", "instance"), _HARD.format("large", "instance"))
CLAIMS = (
    Claim("The mask alone beats weak cues (Think2Seg-RS)", "reward", "reward=think2seg", "reward=grasp"),
    Claim("The same", "reward", "reward=think2seg", "reward=grasp", "test_ood"),
    Claim("Weak cues give better boxes", "reward", "reward=grasp", "reward=think2seg", metric="box_iou"),
    Claim("Cues beside the mask add to it", "reward", "reward=hybrid", "reward=think2seg"),
    Claim("Reinforcement beats fine-tuning out of domain (GRASP, Geo-R1)", "rl_vs_sft", _GRPO, _SFT, "test_ood"),
    Claim("In domain, too", "rl_vs_sft", _GRPO, _SFT),
    Claim("Compact segmenters win under semantic supervision (Think2Seg-RS)", "segmenter", *_COMPACT),
    Claim("More so than under instance supervision", "segmenter", *_COMPACT, minus=_INSTANCE),
    Claim("Negative points hurt (Think2Seg-RS)", "negatives", "prompt=box_2points", "prompt=box_2pos_2neg"),
    Claim("Points beside boxes help under weak cues (GRASP)", "points", "prompt=box_2points", "prompt=box"),
    Claim("Points beside boxes help under the mask's reward", "prompt", "prompt=box_2points", "prompt=box"),
    Claim("Boxes with points beat points alone", "prompt", "prompt=box_2points", "prompt=points"),
    Claim(
        "Larger groups learn better at the same number of completions", "group_size",
        "algorithm.group_size=16, algorithm.prompts_per_step=6", "algorithm.group_size=4, algorithm.prompts_per_step=24",
    ),
    Claim("A KL term helps (SAM-R1)", "kl", "algorithm.beta=0.005", "algorithm.beta=0.0"),
    Claim("A large KL weight holds learning back", "kl", "algorithm.beta=0.0", "algorithm.beta=0.04"),
    Claim("Tiers beat one threshold of 0.5 (SAM-R1)", "tiers", _TIERS, "reward.terms.mask_iou.tiers=[[0.5,1.0]]"),
    Claim("of 0.7", "tiers", _TIERS, "reward.terms.mask_iou.tiers=[[0.7,1.0]]"),
    Claim("of 0.8", "tiers", _TIERS, "reward.terms.mask_iou.tiers=[[0.8,1.0]]"),
    Claim("The IoU itself beats its tiers", "reward", "reward=think2seg", "reward=sam_r1"),
    Claim(
        "Paying empty answers keeps no-target accuracy", "no_target", "reward.no_target=accuracy", "reward.no_target=zero",
        metric="no_target_accuracy",
    ),
    Claim("A thought before the answer helps", "thinking", "prompt.thinking=True", "prompt.thinking=False"),
    Claim("DAPO's estimator beats GRPO's", "algorithm", "algorithm=dapo", "algorithm=grpo"),
    Claim("A second look helps", "turns", "rollout=two_turns", "rollout=default"),
    Claim("A larger policy learns to more", "backbone", "policy=tiny_large", "policy=tiny_small"),
)  # fmt: skip


def points(grid: str, out: Path) -> list[Point]:
    """The points of a grid and the folders of their runs, in the order of its file."""
    words = ["command=train", f"experiment=tiny/{grid}", f"hydra.sweep.dir={out / 'runs'}"]
    with compose.hydra("train") as engine:
        jobs = compose.sweep(engine, words, ())[1]
    found: dict[str, list[Path]] = {}
    for job in jobs:
        swept = [word.lstrip("+") for word in job.point if any(word not in other.point for other in jobs)]
        label = ", ".join(word for word in swept if not word.startswith("seed="))
        found.setdefault(label, []).append(job.run_dir)
    return [Point(label, tuple(folders)) for label, folders in found.items()]


def run(grid: str, out: Path) -> None:
    """`grasp-rl train -m experiment=tiny/GRID`; what is done stays."""
    words = [sys.executable, "-m", "grasp_rl.cli.main", "train", "-m", f"experiment=tiny/{grid}"]
    subprocess.run([*words, f"hydra.sweep.dir={out / 'runs'}"], check=True)


def out_of_domain(folder: Path, out: Path) -> None:
    """Score a run's policy on ``test_ood`` as it was scored on ``test``."""
    target = out / "ood" / folder.name
    if (target / RESULT).exists() or (read_json(folder / STATUS) or {}).get("state") != "done":
        return
    raw = load_raw(folder / CONFIG)
    config = raw | {"command": "evaluate", "run_dir": str(target), "init_from": str(folder), "resume": None}
    config["evaluation"] = raw["evaluation"] | {"test_split": "test_ood"}
    config["regime"] = asdict(RunConfig().regime)  # what came before is in the weights
    job, stop = Job(run_dir=target, config=config, trusted=()), StopFile(target)
    target.mkdir(parents=True, exist_ok=True)
    with launcher_lock(target):
        process.prepare(job, ["grasp-rl", "evaluate"], [], resume=False)
        if process.run_worker(job, stop):
            raise SystemExit(f"{target}: {process.failure(target)}")


@functools.cache
def study(folders: tuple[Path, ...]) -> list[StudiedRun]:
    """The runs in these folders, read once."""
    return read_study(*folders)


def measured(found: Sequence[Point], split: str, metric: str, out: Path) -> dict[str, Cell]:
    """The cell of each point that has been scored on ``split``, by label."""
    result = {}
    for point in found:
        folders = [folder if split == "test" else out / "ood" / folder.name for folder in point.runs]
        folders = [folder for folder in folders if (folder / RESULT).exists()]
        if not folders:
            continue
        cells = [
            c
            for cs in by_test_set(configurations(study(tuple(folders)), ("seed", "init_from")), metric).values()
            for c in cs
        ]
        if len(cells) == 1:
            result[point.label] = cells[0]
    return result


def entry(cell: Cell | None) -> str:
    """Mean and interval, and the number of seeds where it is not three."""
    if cell is None:
        return "–"
    low, high = cell.interval or (float("nan"), float("nan"))
    seeds = "" if len(cell.values) == 3 else f", {len(cell.values)} seeds"
    return f"{cell.mean:.3f} ({low:.3f} to {high:.3f}{seeds})"


def table(grid: str, found: Sequence[Point], out: Path) -> Iterator[str]:
    """A row a point: each metric in domain, gIoU out of domain, minutes a run."""
    columns = {(split, metric): measured(found, split, metric, out) for split in SPLITS for metric in COLUMNS}
    shown = [key for key, cells in columns.items() if cells and (key[0] == "test" or key[1] == "giou")]
    heads = [f"{COLUMNS[metric]}{', out of domain' if split != 'test' else ''}" for split, metric in shown]
    yield f"### `experiment=tiny/{grid}`"
    yield ""
    yield f"| | {' | '.join(heads)} | minutes a run |"
    yield "|---" * (len(heads) + 2) + "|"
    for point in found:
        cells = " | ".join(entry(columns[key].get(point.label)) for key in shown)
        yield f"| `{point.label}` | {cells} | {minutes(point):.1f} |"
    yield ""


def minutes(point: Point) -> float:
    """Wall time of a run, mean over the seeds that are done."""
    took = []
    for folder in point.runs:
        status = read_json(folder / STATUS) or {}
        if status.get("state") == "done":
            began, ended = (datetime.fromisoformat(status[key]) for key in ("started", "ended"))
            took.append((ended - began).total_seconds() / 60)
    return float(np.mean(took)) if took else float("nan")


def contrast(claim: Claim, found: Sequence[Point], out: Path) -> tuple[float, FloatArray] | None:
    """The difference that a claim is about, and its draws; None where a side has not been scored."""
    cells = measured(found, claim.split, claim.metric, out)
    wanted = [claim.better, claim.worse, *(claim.minus or ())]
    if any(label not in {point.label for point in found} for label in wanted):
        raise SystemExit(f"{claim.grid}: no such points {wanted}; there are {[point.label for point in found]}")
    if any(label not in cells for label in wanted):
        return None
    sides = [cells[label] for label in wanted]
    draws = draws_of(sides)
    if draws is None:
        return None
    signs = np.array([1, -1, -1, 1][: len(sides)])
    return float(signs @ [side.mean for side in sides]), signs @ draws


def reading(difference: float, low: float, high: float, p: float) -> str:
    """*shown*, *not shown* (the contrary, or too little to matter) or *undecided*."""
    if p < 0.05:
        return "shown" if difference > 0 else "not shown: the contrary"
    return "not shown: within 0.02 of no difference" if low > -NEAR and high < NEAR else "undecided"


def claims(grids: dict[str, list[Point]], out: Path) -> Iterator[str]:
    """A row a claim, p corrected over all of them by Holm's method."""
    known = [(c, found) for c in CLAIMS if c.grid in grids and (found := contrast(c, grids[c.grid], out)) is not None]
    adjusted = holm([bootstrap_p(draws) for _, (_, draws) in known])
    yield "| claim | measured here | difference | p | reading |"
    yield "|---|---|---|---|---|"
    for (claim, (difference, draws)), p in zip(known, adjusted, strict=True):
        low, high = bounds(draws)
        domain = ", out of domain" if claim.split != "test" else ""
        less = f", less `{claim.minus[0]}` − `{claim.minus[1]}`" if claim.minus else ""
        told = f"{COLUMNS[claim.metric]}{domain}: `{claim.better}` − `{claim.worse}`{less}"
        difference_text = f"{difference:+.3f} ({low:+.3f} to {high:+.3f})"
        yield f"| {claim.text} | {told} | {difference_text} | {p:.3f} | *{reading(difference, low, high, p)}* |"
    yield ""


def plot(grids: dict[str, list[Point]], out: Path) -> None:
    """One panel a grid: gIoU of every point with its interval, in and out of domain."""
    rows = -(-len(grids) // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(15, 2.6 * rows), constrained_layout=True, squeeze=False)
    for axis in axes.ravel()[len(grids) :]:
        axis.set_visible(False)
    for axis, (grid, found) in zip(axes.ravel(), grids.items(), strict=False):
        for shift, split, colour in ((0.12, "test", "#2563a8"), (-0.12, "test_ood", "#b5651d")):
            cells = measured(found, split, "giou", out)
            for place, point in enumerate(reversed(found)):
                cell = cells.get(point.label)
                if cell is None or cell.interval is None:
                    continue
                axis.plot(cell.interval, [place + shift] * 2, color=colour, linewidth=2)
                axis.plot(cell.values, [place + shift] * len(cell.values), "|", color=colour, markersize=7)
                axis.plot(cell.mean, place + shift, "o", color=colour, markersize=5, label=split if not place else None)
        axis.set_yticks(range(len(found)), [short(point.label) for point in reversed(found)], fontsize=8)
        axis.set_ylim(-0.5, len(found) - 0.5)
        axis.set_title(f"tiny/{grid}", fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    figure.supxlabel(
        "gIoU: mean, 95 % interval over seeds and scenes, each seed (|); blue in domain, brown out of domain",
        fontsize=9,
    )
    figure.savefig(out / "ablations.png", dpi=90)
    plt.close(figure)


def curves(grids: dict[str, list[Point]], out: Path) -> None:
    """One panel a grid: reward of every step's completions, smoothed; the mean of the seeds and their range."""
    rows = -(-len(grids) // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(15, 2.9 * rows), constrained_layout=True, squeeze=False)
    for axis in axes.ravel()[len(grids) :]:
        axis.set_visible(False)
    for axis, (grid, found) in zip(axes.ravel(), grids.items(), strict=False):
        for point in found:
            runs = [[row["reward"] for row in read_rows(run / METRICS) if "reward" in row] for run in point.runs]
            runs = [run for run in runs if len(run) >= SMOOTH]
            if not runs:
                continue
            length = min(map(len, runs))
            smooth = np.array([np.convolve(run[:length], np.ones(SMOOTH) / SMOOTH, "valid") for run in runs])
            steps = np.arange(smooth.shape[1]) + SMOOTH
            (line,) = axis.plot(steps, smooth.mean(0), label=short(point.label))
            axis.fill_between(steps, smooth.min(0), smooth.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
        axis.set_title(f"tiny/{grid}", fontsize=10)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6)
    figure.supxlabel(
        f"optimizer step; reward, mean of the last {SMOOTH} steps, each reward on its own scale", fontsize=9
    )
    figure.savefig(out / "curves.png", dpi=90)
    plt.close(figure)


def short(label: str) -> str:
    """A label without the common parts of its keys."""
    return ", ".join(word.rpartition(".")[2] if "=" in word.rpartition(".")[2] else word for word in label.split(", "))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tables-only", action="store_true", help="run nothing")
    arguments = parser.parse_args(argv)
    out = arguments.out.absolute()
    known = {path.stem for path in Path(str(files("grasp_rl.conf") / "experiment/tiny")).glob("[a-z]*.yaml")}
    assert known == set(GRIDS), known ^ set(GRIDS)
    if not arguments.tables_only:
        for grid in GRIDS:
            run(grid, out)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda folder: out_of_domain(folder, out), sorted((out / "runs").glob("*/"))))
    grids = {grid: points(grid, out) for grid in GRIDS}
    grids = {grid: found for grid, found in grids.items() if len(measured(found, "test", "giou", out)) > 1}
    lines = [*claims(grids, out), *(line for grid, found in grids.items() for line in table(grid, found, out))]
    write_text(out / "tables.md", "\n".join(lines) + "\n")
    plot(grids, out)
    curves(grids, out)
    sys.stdout.write(f"{out / 'tables.md'}\n")


if __name__ == "__main__":
    main()
