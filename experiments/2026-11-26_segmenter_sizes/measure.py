"""IoU against prompt quality for every trained member and seed and for GrabCut; a table, paired intervals and a plot.

    python experiments/2026-11-26_segmenter_sizes/measure.py RUNS --scenes 128

RUNS is the output folder of train.sh. One prompt an instance, kind and error. Scores are means over the instances of a
scene, then over scenes; a pair of members is compared on the same scenes, drawing scenes and seeds anew (bootstrap).
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray

from grasp_rl.config.targets import instantiate
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.data.weak_labels import weak_labels_from_masks
from grasp_rl.launch.compose import option
from grasp_rl.training.fit_scores import host, instances_of
from grasp_rl.types import BoolMask, SpatialPrompt

HERE = Path(__file__).parent
MEMBERS = ("sam2_tiny", "sam2_small", "sam2_large", "sam_base", "sam_huge")
WORLDS = ("hard/test", "hard/test_ood", "easy/test", "easy/test_ood")
ERRORS = (0.0, 0.05, 0.1, 0.2, 0.3)
"""Of the box's side."""
KINDS = (
    *((kind, error) for kind in ("shifted", "grown", "shrunk") for error in ERRORS[1:]),
    *((kind, 0.0) for kind in ("tight", "box_2points", "points")),
)
PAIRS = (
    ("sam2_tiny", "sam2_large"),
    ("sam2_small", "sam2_large"),
    ("sam2_tiny", "sam2_small"),
    ("sam_base", "sam_huge"),
)


def prompt(mask: BoolMask, number: int, kind: str, error: float) -> SpatialPrompt:
    """A prompt for ``mask`` [H, W]; ``number`` decides where a shifted box goes."""
    label = weak_labels_from_masks([mask])[0]
    assert label.box is not None
    points = label.positive_points[:2]
    if kind in ("points", "box_2points"):
        box = None if kind == "points" else label.box
        return SpatialPrompt(box=box, point_coords=points, point_labels=(1,) * len(points))
    exact = np.array(label.box)
    side = np.array([exact[2] - exact[0], exact[3] - exact[1]] * 2)
    if kind == "shifted":
        move = np.tile([1 if number >> bit & 1 else -1 for bit in (0, 1)], 2) * error
    else:
        move = np.array([-1, -1, 1, 1]) * (error if kind == "grown" else -error)
    height, width = mask.shape
    x0, y0, x1, y1 = np.clip(exact + move * side, 0, [width, height, width, height]).tolist()
    return SpatialPrompt(box=(x0, y0, x1, y1))


def measured(segmenter: Any, world: str, scenes: int) -> NDArray[np.float64]:
    """[scenes, kinds] mean IoU over the instances of each scene."""
    level, split_name = world.split("/")
    split = SyntheticSource(level=level, test_size=max(512, scenes)).split(split_name)
    rows = []
    for index in range(scenes):
        image, masks = instances_of(split, index)
        embedding, row = segmenter.encode(image), []
        for kind, error in KINDS:
            prompts = [prompt(mask, index + place, kind, error) for place, mask in enumerate(masks)]
            predicted = host(segmenter.decode(embedding, prompts).masks)
            row.append(np.mean([(a & b).sum() / (a | b).sum() for a, b in zip(predicted, masks, strict=True)]))
        rows.append(row)
    return np.array(rows)


def of_one(job: tuple[str, str, int]) -> dict[str, NDArray[np.float64]]:
    """The scores of a run folder, or of GrabCut where it is empty, by world."""
    name, folder, scenes = job
    torch.set_num_threads(1)
    base = option("segmenter/grabcut" if name == "grabcut" else f"segmenter/synthetic_{name}")
    segmenter = instantiate(base if name == "grabcut" else {**base, "path": f"{folder}/segmenter"})
    return {world: measured(segmenter, world, scenes) for world in WORLDS}


def difference(a: NDArray[np.float64], b: NDArray[np.float64], rng: np.random.Generator) -> tuple[float, float, float]:
    """Mean of ``a`` - ``b`` [seeds, scenes] with its 95 % interval, scenes and each side's seeds drawn anew."""
    seeds, scenes = a.shape
    draws = []
    for _ in range(4000):
        at = rng.integers(scenes, size=scenes)
        draws.append(
            a[rng.integers(seeds, size=seeds)][:, at].mean() - b[rng.integers(seeds, size=seeds)][:, at].mean()
        )
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(a.mean() - b.mean()), float(low), float(high)


def table(found: dict[str, dict[str, NDArray[np.float64]]]) -> Iterator[str]:
    names = [f"{kind} {error:g}" if error else kind for kind, error in KINDS]
    shown = [names.index(name) for name in ("tight", "box_2points", "points", "shifted 0.2", "grown 0.2", "shrunk 0.1")]
    for world in WORLDS:
        yield f"\n**{world}**\n"
        yield "| segmenter | " + " | ".join(names[i] for i in shown) + " |"
        yield "|---" * (len(shown) + 1) + "|"
        for name, worlds in found.items():
            by_seed = worlds[world].mean(1)  # [seeds, kinds]
            cells = [
                f"{by_seed[:, i].mean():.3f} ({by_seed[:, i].min():.3f} to {by_seed[:, i].max():.3f})" for i in shown
            ]
            yield f"| `{name}` | " + " | ".join(cells if len(by_seed) > 1 else [c.split(" ")[0] for c in cells]) + " |"
    rng = np.random.default_rng(0)
    yield "\n| world | pair | " + " | ".join(names[i] for i in shown) + " |"
    yield "|---" * (len(shown) + 2) + "|"
    for world in WORLDS:
        for one, other in PAIRS:
            if one in found and other in found:
                cells = []
                for i in shown:
                    mean, low, high = difference(found[one][world][:, :, i], found[other][world][:, :, i], rng)
                    cells.append(f"{mean:+.3f} ({low:+.3f} to {high:+.3f})")
                yield f"| {world} | `{one}` minus `{other}` | " + " | ".join(cells) + " |"


def plot(found: dict[str, dict[str, NDArray[np.float64]]], path: Path) -> None:
    kinds = ("shifted", "grown", "shrunk")
    figure, axes = plt.subplots(
        len(WORLDS), len(kinds), figsize=(11, 11), sharex=True, sharey="row", layout="constrained"
    )
    for row, world in zip(axes, WORLDS, strict=True):
        for axis, kind in zip(row, kinds, strict=True):
            columns = [KINDS.index(("tight", 0.0)), *(KINDS.index((kind, error)) for error in ERRORS[1:])]
            for number, (name, worlds) in enumerate(found.items()):
                by_seed = worlds[world].mean(1)[:, columns]
                style = {"color": "0.3", "linestyle": "--"} if name == "grabcut" else {"color": f"C{number}"}
                axis.plot(ERRORS, by_seed.mean(0), marker="o", markersize=3, label=name, **style)
                axis.fill_between(ERRORS, by_seed.min(0), by_seed.max(0), color=style["color"], alpha=0.15, linewidth=0)
            axis.set_title(f"{world}: {kind}", fontsize=10)
            axis.grid(alpha=0.3)
        row[0].set_ylabel("mean IoU by scene")
    for axis in axes[-1]:
        axis.set_xlabel("error of the box, of its side")
    axes[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--scenes", type=int, default=128)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args(argv)
    folders = {name: sorted(arguments.runs.glob(f"{name}-[0-9]*/segmenter")) for name in MEMBERS}
    jobs = [("grabcut", "", arguments.scenes)]
    jobs += [(name, str(path.parent), arguments.scenes) for name, paths in folders.items() for path in paths]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(of_one, jobs))
    found: dict[str, dict[str, NDArray[np.float64]]] = {}
    for name in dict.fromkeys(job[0] for job in jobs):
        mine = [result for job, result in zip(jobs, results, strict=True) if job[0] == name]
        found[name] = {world: np.stack([result[world] for result in mine]) for world in WORLDS}
    with (HERE / "scores.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["segmenter", "seed", "world", "kind", "error", "iou"])
        for name, worlds in found.items():
            for world, scores in worlds.items():
                for seed, means in enumerate(scores.mean(1)):
                    for (kind, error), value in zip(KINDS, means, strict=True):
                        writer.writerow([name, seed, world, kind, error, f"{value:.4f}"])
    print("\n".join(table(found)))
    plot(found, HERE / "prompt_quality.png")


if __name__ == "__main__":
    main()
