"""How gIoU of the drawn scenes falls with the error of the prompt, for every prompt scheme.

python experiments/2026-11-20_calibration/calibrate.py --scenes 150 --out experiments/2026-11-20_calibration
python experiments/2026-11-20_calibration/calibrate.py --scenes 150 --level hard
python experiments/2026-11-20_calibration/calibrate.py --level hard --segmenter synthetic_sam2_small --out DIR
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from grasp_rl.config.targets import instantiate
from grasp_rl.data.synthetic.scenes import OOD_STYLE, TRAIN_STYLE, Scene, draw_scene
from grasp_rl.data.synthetic.scenes_hard import OOD_HARD, TRAIN_HARD, draw_hard_scene
from grasp_rl.geometry import box_iou, exterior_points, interior_points, mask_iou, mask_to_box
from grasp_rl.interfaces import Segmenter
from grasp_rl.launch.compose import option
from grasp_rl.types import BoolMask, SpatialPrompt

SCHEMES = {"box": (True, 0, 0), "points": (False, 2, 0), "box_2points": (True, 2, 0), "box_4points": (True, 4, 0),
           "box_2pos_2neg": (True, 2, 2)}  # fmt: skip
SCALES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0)
SHIFTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)


def disturbed(mask: BoolMask, scheme: str, scale: float, shift: float, angle: float) -> tuple[SpatialPrompt, float]:
    """The reference prompt with box and points scaled about the box's centre and shifted by a share of its side."""
    with_box, positives, negatives = SCHEMES[scheme]
    box = mask_to_box(mask)
    assert box is not None
    centre = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
    side = np.array([box[2] - box[0], box[3] - box[1]])
    move = shift * side * np.array([np.cos(angle), np.sin(angle)])

    def moved(point: tuple[float, float]) -> tuple[float, float]:
        p = centre + (np.array(point) - centre) * scale + move
        limit = np.array(mask.shape[::-1]) - 1e-3
        x, y = np.clip(p, 0, limit)
        return float(x), float(y)

    points = interior_points(mask, positives) + exterior_points(mask, box, negatives)
    new = (*moved(box[:2]), *moved(box[2:]))
    prompt = SpatialPrompt(
        box=new if with_box else None,
        point_coords=tuple(moved(p) for p in points),
        point_labels=(1,) * positives + (0,) * negatives,
    )
    return prompt, box_iou(new, box)


def drawn(level: str, style: str, rng: np.random.Generator) -> Scene:
    if level == "hard":
        return draw_hard_scene(rng, {"train": TRAIN_HARD, "ood": OOD_HARD}[style])
    return draw_scene(rng, {"train": TRAIN_STYLE, "ood": OOD_STYLE}[style])


def score(
    segmenter: Segmenter, level: str, style: str, scheme: str, scale: float, shift: float, count: int
) -> tuple[float, float]:
    """(gIoU, mean box IoU) over ``count`` scenes, all instances of one category each."""
    ious, boxes = [], []
    for index in range(count):
        rng = np.random.default_rng([7, index])
        scene = drawn(level, style, rng)
        category = str(rng.choice(sorted({o.category for o in scene.objects})))
        masks = [o.mask for o in scene.objects if o.category == category]
        angle = rng.uniform(0, 2 * np.pi)
        pairs = [disturbed(m, scheme, scale, shift, angle) for m in masks]
        predicted = segmenter.decode(segmenter.encode(scene.image), [p for p, _ in pairs]).union
        ious.append(mask_iou(predicted, np.any(masks, axis=0)))
        boxes += [b for _, b in pairs]
    return float(np.mean(ious)), float(np.mean(boxes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--schemes", nargs="*", default=list(SCHEMES))
    parser.add_argument("--level", choices=("easy", "hard"), default="easy")
    parser.add_argument("--segmenter", default="grabcut")
    arguments = parser.parse_args()
    segmenter = instantiate(option(f"segmenter/{arguments.segmenter}"))
    rows = []
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    for scheme in arguments.schemes:
        for axis, name, values in ((axes[0], "scale", SCALES), (axes[1], "shift", SHIFTS)):
            curve = []
            for value in values:
                scale, shift = (value, 0.0) if name == "scale" else (1.0, value)
                giou, biou = score(segmenter, arguments.level, "train", scheme, scale, shift, arguments.scenes)
                curve.append(giou)
                rows.append(("train", scheme, name, value, round(giou, 4), round(biou, 4)))
            axis.plot(values, curve, marker="o", label=scheme)
            print(scheme, name, [round(c, 2) for c in curve], flush=True)
        rows.append(
            (
                "ood",
                scheme,
                "scale",
                1.0,
                *(round(v, 4) for v in score(segmenter, arguments.level, "ood", scheme, 1.0, 0.0, arguments.scenes)),
            )
        )
        print("ood", rows[-1])
    axes[0].set_xlabel("box and points scaled about the box's centre")
    axes[1].set_xlabel("box and points shifted, share of the side")
    axes[0].set_ylabel("gIoU")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.axhline(0.85, color="grey", lw=0.8, ls="--")
        axis.set_ylim(0, 1)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    name = "calibration" if arguments.level == "easy" else f"calibration_{arguments.level}"
    figure.savefig(arguments.out / f"{name}.png", dpi=110)
    with (arguments.out / f"{name}.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("style", "scheme", "error", "value", "giou", "box_iou"))
        writer.writerows(rows)


if __name__ == "__main__":
    main()
