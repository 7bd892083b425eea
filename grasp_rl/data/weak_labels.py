"""Weak supervision from masks: the one place where a box or a point is derived from a mask."""

from __future__ import annotations

from collections.abc import Iterable

from grasp_rl.geometry import exterior_points, interior_points, mask_to_box
from grasp_rl.types import BoolMask, SpatialPrompt

POSITIVE_POINTS, NEGATIVE_POINTS = 4, 2


def weak_labels_from_masks(masks: Iterable[BoolMask], ignored: BoolMask | None = None) -> tuple[SpatialPrompt, ...]:
    """One weak label per non-empty instance mask [H, W], left to right.

    A weak label has the tight box, four interior points (peaks of the distance transform, deepest first) and two
    background points next to the instance, in original-image pixels. Prompt schemes with fewer points take the first
    ones. No point lies in what is ``ignored`` [H, W], where that is given.
    """
    weak_labels = []
    for mask in masks:
        box = mask_to_box(mask)
        if box is None:
            continue
        x0, y0, x1, y1 = map(int, box)  # a small thing in a large image costs what the thing costs
        inside = interior_points(mask[y0:y1, x0:x1], POSITIVE_POINTS)
        positive = tuple((x + x0, y + y0) for x, y in inside)
        negative = exterior_points(mask if ignored is None else mask | ignored, box, NEGATIVE_POINTS)
        weak_labels.append(
            SpatialPrompt(
                box=box,
                point_coords=positive + negative,
                point_labels=(1,) * len(positive) + (0,) * len(negative),
            )
        )
    return tuple(sorted(weak_labels, key=lambda weak_label: weak_label.box or ()))
