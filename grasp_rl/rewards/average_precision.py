"""COCO's average precision of one image and class where every box has the same score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grasp_rl.geometry import FloatArray, pairwise_box_iou
from grasp_rl.types import Box

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100
"""Detections that count, the first ones."""


def coco_average_precision(
    found: Sequence[Box], true: Sequence[Box], thresholds: Sequence[float] | FloatArray = THRESHOLDS
) -> float:
    """Mean over IoU ``thresholds`` of the interpolated precision at 101 recalls, as pycocotools computes it.

    With equal scores the boxes count in the order in which they were said: each takes the reference box that it
    overlaps most of those that are free. 0 where either list is empty.

    Args:
        found: K predicted boxes.
        true: J reference boxes.
        thresholds: an overlap of exactly one is enough.
    """
    if not found or not true:
        return 0.0
    iou = pairwise_box_iou(found[:MOST], true)
    return float(np.mean([_interpolated(_hits(iou, threshold), len(true)) for threshold in thresholds]))


def _hits(iou: FloatArray, threshold: float) -> list[bool]:
    """Whether each predicted box found a free reference box; ``iou`` is [K, J]."""
    taken: set[int] = set()
    hits = []
    for row in iou.tolist():
        best, place = min(threshold, 1 - 1e-10), -1
        for column, value in enumerate(row):
            if column not in taken and value >= best:
                best, place = value, column
        hits.append(place >= 0)
        taken.add(place)
    return hits


def _interpolated(hits: Sequence[bool], true: int) -> float:
    """Mean over :data:`RECALLS` of the highest precision at that recall or a higher one."""
    right = np.cumsum(hits)
    recall, precision = right / true, right / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, RECALLS, side="left")
    return float(np.mean([envelope[place] if place < len(envelope) else 0.0 for place in places]))
