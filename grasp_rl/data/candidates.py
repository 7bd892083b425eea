"""Candidate points with labels: a grid in each box whose spacing follows the box's size (ReSaP's second task)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from grasp_rl.config.errors import ConfigError
from grasp_rl.types import Box, Point, Sample, SpatialPrompt


def candidate_grid(box: Box, size: tuple[int, int], *, alpha: float = 16.0, most: int = 6) -> list[Point]:
    """Centres of the cells of a grid in ``box``, column by column, in original-image pixels.

    floor(alpha h / H) rows, at least one and at most ``most``, for a box h pixels high in an image of H; columns
    likewise (gray114514/ReSaP, grpo_ref_split.py of e0aa33e: alpha 16, at most 6).

    Args:
        box: (x0, y0, x1, y1).
        size: (height, width) of the image.
        alpha: rows in a box as high as the image.
        most: rows, and columns, at most.
    """
    x0, y0, x1, y1 = box
    rows, columns = (
        int(np.clip(np.floor(alpha * extent / whole), 1, most))
        for extent, whole in zip((y1 - y0, x1 - x0), size, strict=True)
    )
    xs = x0 + (np.arange(columns) + 0.5) * (x1 - x0) / columns
    ys = y0 + (np.arange(rows) + 0.5) * (y1 - y0) / rows
    return [(float(x), float(y)) for x in xs for y in ys]


def with_candidates(sample: Sample, *, alpha: float = 16.0, most: int = 6) -> Sample:
    """``sample`` with the candidate points of its true boxes, labelled by its mask.

    Raises:
        ConfigError: it has no mask or no boxes.
    """
    if sample.target_mask is None or not sample.weak_labels:
        raise ConfigError(
            f"rollout.tasks: sample {sample.sample_id} of {sample.dataset} has no mask or no box to take candidate "
            "points from; take data with masks"
        )
    boxes = [label.box for label in sample.weak_labels if label.box is not None]
    points = [point for box in boxes for point in candidate_grid(box, sample.size, alpha=alpha, most=most)]
    height, width = sample.size
    labels = [int(sample.target_mask[min(int(y), height - 1), min(int(x), width - 1)]) for x, y in points]
    return replace(sample, candidates=SpatialPrompt(point_coords=tuple(points), point_labels=tuple(labels)))
