"""The one-to-one matching of predicted and reference instances that the terms of a rubric share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from grasp_rl.geometry import FloatArray, match
from grasp_rl.types import SpatialPrompt


def matched_pairs(tables: Mapping[str, FloatArray], weights: Mapping[str, float]) -> list[tuple[int, int]]:
    """The pairs (predicted, reference) whose weighted sum over the tables [M, N] is largest (Hungarian)."""
    return match(sum((weights[name] * table for name, table in tables.items()), np.zeros(())))


def repeats(predicted: Sequence[SpatialPrompt]) -> list[bool]:
    """For each instance whether an earlier one is the same: same box, same points in whatever order."""
    known: set[object] = set()
    flags = []
    for item in predicted:
        key = (item.box, tuple(sorted(item.positive_points)), tuple(sorted(item.negative_points)))
        flags.append(key in known)
        known.add(key)
    return flags
