"""A systematic error of predicted boxes, estimated on a calibration split and taken out again.

GeoSeg (arXiv 2603.03983) refines boxes by a "bias-aware coordinate refinement" whose formula is not published. This is
our estimate of such a correction: per axis a shift of the centre and a factor of the side, both relative to the box's
own side, each the median over pairs of a predicted and its matched true box. Points move with their box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from grasp_rl.config.errors import ConfigError
from grasp_rl.geometry import box_iou, match, pairwise_box_iou
from grasp_rl.segmenters.segment import within
from grasp_rl.types import Answer, Box, SpatialPrompt
from grasp_rl.utils.files import Record, read_json, write_json

FILE = "inference.json"
"""In a run directory: the fit that its boxes were refined by."""
SAME_OBJECT = 0.1
"""Least IoU of a predicted and a true box that count as a pair."""
FEWEST_PAIRS = 8

Pair = tuple[Box, Box]


@dataclass(frozen=True, kw_only=True)
class Affine:
    """The map of a box of centre c and side s, per axis: centre c + d * s, side k * s."""

    sx: float
    """Factor of the width."""
    sy: float
    dx: float
    """Shift of the centre to the right, in widths of the predicted box."""
    dy: float
    pairs: int
    """Predicted boxes with a true one that it was fitted on."""

    def box(self, box: Box) -> Box:
        """``box`` corrected; it may reach beyond the image."""
        x0, x1 = _side(box[0], box[2], self.sx, self.dx)
        y0, y1 = _side(box[1], box[3], self.sy, self.dy)
        return x0, y0, x1, y1

    def prompt(self, prompt: SpatialPrompt) -> SpatialPrompt:
        """``prompt`` with its box corrected and its points carried along; as it is without a box."""
        if prompt.box is None:
            return prompt
        old, new = prompt.box, self.box(prompt.box)
        points = tuple(
            (_carried(x, old[0], old[2], new[0], new[2]), _carried(y, old[1], old[3], new[1], new[3]))
            for x, y in prompt.point_coords
        )
        return replace(prompt, box=new, point_coords=points)

    def answer(self, answer: Answer, size: tuple[int, int]) -> Answer:
        """``answer`` with all its prompts corrected and clipped to the image of ``size`` (height, width)."""
        return replace(answer, prompts=tuple(within(self.prompt(prompt), size) for prompt in answer.prompts))

    def write(self, run_dir: Path, about: Record) -> None:
        """Write it into ``run_dir`` with what there is to say ``about`` its fit."""
        write_json(run_dir / FILE, {"refine": asdict(self), "fit": about})


def _side(low: float, high: float, factor: float, shift: float) -> tuple[float, float]:
    side = high - low
    centre = (low + high) / 2 + shift * side
    return centre - factor * side / 2, centre + factor * side / 2


def _carried(value: float, low: float, high: float, new_low: float, new_high: float) -> float:
    """``value`` where it was relative to the side that went from ``low``..``high`` to ``new_low``..``new_high``."""
    if high <= low:
        return value
    return new_low + (value - low) / (high - low) * (new_high - new_low)


def fit(pairs: Sequence[Pair]) -> Affine:
    """The medians over ``pairs`` of (predicted, true) boxes: half of the pairs may be arbitrarily wrong.

    Raises:
        ConfigError: there are fewer than :data:`FEWEST_PAIRS`.
    """
    if len(pairs) < FEWEST_PAIRS:
        raise ConfigError(
            f"inference.refine: {len(pairs)} predicted boxes overlap a true one by IoU {SAME_OBJECT}, at least "
            f"{FEWEST_PAIRS} are needed; raise inference.refine.limit, and take a prompt scheme with boxes"
        )
    said, true = (np.array([pair[side] for pair in pairs], dtype=np.float64) for side in (0, 1))
    sides, true_sides = said[:, 2:] - said[:, :2], true[:, 2:] - true[:, :2]
    shift = np.median(((true[:, 2:] + true[:, :2]) - (said[:, 2:] + said[:, :2])) / 2 / sides, axis=0)
    factor = np.median(true_sides / sides, axis=0)
    return Affine(
        sx=float(factor[0]), sy=float(factor[1]), dx=float(shift[0]), dy=float(shift[1]), pairs=len(pairs)
    )  # fmt: skip


def pairs_of(said: Sequence[SpatialPrompt], true: Sequence[SpatialPrompt]) -> list[Pair]:
    """Predicted boxes with their true ones: the best one-to-one matching by IoU, pairs below the least IoU left out."""
    boxes = [prompt.box for prompt in said if prompt.box is not None]
    references = [prompt.box for prompt in true if prompt.box is not None]
    table = pairwise_box_iou(boxes, references)
    return [(boxes[i], references[j]) for i, j in match(table) if table[i, j] >= SAME_OBJECT]


def mean_iou(pairs: Sequence[Pair], affine: Affine | None = None) -> float:
    """Mean box IoU of ``pairs``, the predicted boxes corrected by ``affine``."""
    return float(np.mean([box_iou(affine.box(said) if affine else said, true) for said, true in pairs]))


def read(path: Path) -> Affine:
    """The fit in ``path``: a run directory, or the file in it.

    Raises:
        ConfigError: there is none.
    """
    file = path / FILE if path.is_dir() else path
    stored = (read_json(file) or {}).get("refine")
    names = {part.name for part in fields(Affine)}
    if not isinstance(stored, dict) or set(stored) != names:
        raise ConfigError(
            f"inference.refine: {file} holds no fit; evaluate with inference.refine.fit_split=SPLIT makes one, "
            "inference.refine.path=RUN takes another run's"
        )
    return Affine(**stored)
