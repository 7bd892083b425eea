"""Prompts as a policy might say them, drawn from an instance's mask: what a promptable segmenter is trained on.

All prompts of a decoder call have one layout: a box or none, and as many points with the same labels. A box is
distorted as one of ``tight``, ``loose``, ``shifted`` and ``shrunk``, by their weights in ``fit.mix``. Coordinates are
pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grasp_rl.config.schema import PROMPT_KINDS
from grasp_rl.geometry import mask_to_box
from grasp_rl.types import BoolMask, SpatialPrompt

Rng = np.random.Generator
BOXES = PROMPT_KINDS[:4]

JITTER, LOOSE, SHRUNK, SHIFT = 0.02, (-0.05, 0.25), (0.0, 0.15), 0.22
"""Of the box's side: deviation of each edge of every box; ranges by which edges of loose and shrunk boxes move outward
and inward, each for itself; largest shift. From -0.05: a box said loosely cuts a side off now and then."""
MARGIN = 0.3
"""How far outside the box background points lie at most, of its side."""
MISSED, MISS = 0.3, 0.05
"""Share of the prompts whose foreground points are off, and the deviation, of the box's side."""
TRIES = 20
"""Draws until a background point lies off the instance; a box full of it leaves the last one out of the box."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the prompts of one decoder call have."""

    box: bool
    positive: int = 0
    negative: int = 0


_POINTS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "box_points": ((1, 0), (2, 0), (2, 0), (4, 0)),
    "box_negatives": ((2, 2), (2, 2), (0, 1)),
    "points": ((1, 0), (2, 0), (2, 0), (4, 0)),
    "point_negatives": ((2, 2), (1, 1)),
}
"""(foreground, background) points of a kind, one drawn; two of them are the most frequent in published systems."""


def draw_layout(rng: Rng, mix: Mapping[str, float]) -> Layout:
    """The layout of a call, its kind drawn by the weights in ``mix``."""
    kind = _draw(rng, mix, PROMPT_KINDS)
    if kind in BOXES:
        return Layout(box=True)
    choices = _POINTS[kind]
    positive, negative = choices[int(rng.integers(len(choices)))]
    return Layout(box=kind.startswith("box"), positive=positive, negative=negative)


def draw_prompt(rng: Rng, mask: BoolMask, layout: Layout, mix: Mapping[str, float]) -> SpatialPrompt:
    """A prompt for the instance ``mask`` [H, W], which is not empty; clipped to the image."""
    box = mask_to_box(mask)
    assert box is not None
    exact, limit = np.array(box), np.array([mask.shape[1], mask.shape[0]] * 2, dtype=np.float64)
    points = np.clip(_points(rng, mask, exact, layout), 0, limit[:2])
    said = np.clip(distorted(rng, exact, _draw(rng, mix, BOXES)), 0, limit) if layout.box else None
    return SpatialPrompt(
        box=None if said is None else (float(said[0]), float(said[1]), float(said[2]), float(said[3])),
        point_coords=tuple((float(x), float(y)) for x, y in points),
        point_labels=(1,) * layout.positive + (0,) * layout.negative,
    )


def distorted(rng: Rng, box: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
    """``box`` [4] as it is said, not clipped."""
    side = np.array([box[2] - box[0], box[3] - box[1]] * 2)
    move = rng.normal(0, JITTER, 4)
    if kind == "shifted":
        move += np.tile(rng.uniform(-SHIFT, SHIFT, 2), 2)
    elif kind != "tight":
        low, high = LOOSE if kind == "loose" else SHRUNK
        outward = np.array([-1, -1, 1, 1]) * rng.uniform(low, high, 4)
        move += outward if kind == "loose" else -outward
    return np.asarray(box + move * side)


def _points(rng: Rng, mask: BoolMask, box: NDArray[np.float64], layout: Layout) -> NDArray[np.float64]:
    """[K, 2] (x, y): foreground points on the mask, then background points in and around its box."""
    side = box[2:] - box[:2]
    rows, columns = np.nonzero(mask)
    picked = rng.integers(len(rows), size=layout.positive)
    inside = np.stack([columns[picked], rows[picked]], 1) + 0.5
    if rng.random() < MISSED:
        inside = inside + rng.normal(0, MISS, inside.shape) * side
    outside = np.array([_background(rng, mask, box, side) for _ in range(layout.negative)]).reshape(-1, 2)
    return np.concatenate([inside, outside])


def _background(rng: Rng, mask: BoolMask, box: NDArray[np.float64], side: NDArray[np.float64]) -> tuple[float, float]:
    height, width = mask.shape
    x = y = 0.0
    for _ in range(TRIES):
        x, y = rng.uniform(box[:2] - MARGIN * side, box[2:] + MARGIN * side)
        if 0 <= x < width and 0 <= y < height and not mask[int(y), int(x)]:
            break
    return float(x), float(y)


def _draw(rng: Rng, mix: Mapping[str, float], kinds: tuple[str, ...]) -> str:
    """One of ``kinds`` by its weight; the first where all weigh nothing."""
    weights = np.array([mix.get(kind, 0.0) for kind in kinds])
    if not weights.any():
        return kinds[0]
    return kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
