"""Weak supervision from masks: the one place where a box or a point is derived from a mask."""

from __future__ import annotations

from collections.abc import Sequence

from grasp_rl.geometry import exterior_points, interior_points, mask_to_box
from grasp_rl.types import BoolMask, SpatialPrompt

POSITIVE_POINTS, NEGATIVE_POINTS = 4, 2


def cues_from_masks(masks: Sequence[BoolMask]) -> tuple[SpatialPrompt, ...]:
    """One cue per non-empty instance mask [H, W], left to right.

    A cue has the tight box, four interior points (peaks of the distance transform, deepest first) and two background
    points next to the instance, in original-image pixels. Prompt schemes with fewer points take the first ones.
    """
    cues = []
    for mask in masks:
        box = mask_to_box(mask)
        if box is None:
            continue
        positive = interior_points(mask, POSITIVE_POINTS)
        negative = exterior_points(mask, box, NEGATIVE_POINTS)
        cues.append(
            SpatialPrompt(
                box=box,
                point_coords=positive + negative,
                point_labels=(1,) * len(positive) + (0,) * len(negative),
            )
        )
    return tuple(sorted(cues, key=lambda cue: cue.box or ()))
