"""The matching of predicted and reference instances that the terms of a rubric share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from grasp_rl.geometry import FloatArray, match
from grasp_rl.types import SpatialPrompt

MATCHINGS = ("hungarian", "greedy", "order", "union_box")
"""hungarian: the one-to-one pairs whose sum is largest. greedy: the best pair first, then the best of the rest; pairs
worth nothing are not made. order: the first with the first, the second with the second. union_box: the box around all
predicted instances with the box around all reference instances."""


def matched_pairs(
    tables: Mapping[str, FloatArray], weights: Mapping[str, float], how: str = "hungarian"
) -> list[tuple[int, int]]:
    """One-to-one pairs (predicted, reference), by one of :data:`MATCHINGS` on the weighted sum of the tables [M, N]."""
    scores = sum((weights.get(name, 0.0) * table for name, table in tables.items()), np.zeros(()))
    if how == "order":
        return [(index, index) for index in range(min(scores.shape))]
    return greedy(scores) if how == "greedy" else match(scores)


def greedy(scores: FloatArray) -> list[tuple[int, int]]:
    """Pairs in falling order of their score [M, N], each row and column once; only scores above 0.

    Of equal scores the one with the smaller row, then the smaller column, comes first.
    """
    pairs: list[tuple[int, int]] = []
    rows, columns = set(range(scores.shape[0])), set(range(scores.shape[1]))
    for flat in np.argsort(-scores, axis=None, kind="stable").tolist():
        row, column = divmod(flat, scores.shape[1])
        if row in rows and column in columns and scores[row, column] > 0:
            pairs.append((row, column))
            rows.discard(row)
            columns.discard(column)
    return pairs


def union_of(instances: Sequence[SpatialPrompt]) -> list[SpatialPrompt]:
    """One instance for all: the box around their boxes, with all their points; () stays ()."""
    boxes = [item.box for item in instances if item.box is not None]
    if not instances:
        return []
    box = None
    if boxes:
        box = (min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes))
    return [
        SpatialPrompt(
            box=box,
            point_coords=tuple(point for item in instances for point in item.point_coords),
            point_labels=tuple(label for item in instances for label in item.point_labels),
        )
    ]


def repeats(predicted: Sequence[SpatialPrompt]) -> list[bool]:
    """For each instance whether an earlier one is the same: same box, same points in whatever order."""
    known: set[object] = set()
    flags = []
    for item in predicted:
        key = (item.box, tuple(sorted(item.positive_points)), tuple(sorted(item.negative_points)))
        flags.append(key in known)
        known.add(key)
    return flags
