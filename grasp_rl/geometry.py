"""Boxes, points and masks: the only IoU in the house. Pure NumPy, SciPy and OpenCV.

All functions take original-image pixels (see :mod:`grasp_rl.types` for the frame).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from grasp_rl.types import BoolMask, Box, Point, SpatialPrompt

FloatArray = NDArray[np.float64]


def box_iou(a: Box, b: Box) -> float:
    """IoU of two XYXY boxes; 0 when both are empty."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(0.0, width) * max(0.0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union > 0 else 0.0


def pairwise_box_iou(a: Sequence[Box] | FloatArray, b: Sequence[Box] | FloatArray) -> FloatArray:
    """IoU of every box of ``a`` [M, 4] with every box of ``b`` [N, 4]: [M, N]."""
    if not len(a) or not len(b):
        return np.zeros((len(a), len(b)))
    first, second = np.asarray(a, float)[:, None, :], np.asarray(b, float)[None, :, :]
    size = np.clip(np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2]), 0, None)
    inter = size[..., 0] * size[..., 1]
    area_a = np.prod(first[..., 2:] - first[..., :2], axis=-1)
    area_b = np.prod(second[..., 2:] - second[..., :2], axis=-1)
    union = area_a + area_b - inter
    iou: FloatArray = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
    return iou


def mask_iou(a: BoolMask, b: BoolMask) -> float:
    """IoU of two masks [H, W]. Two empty masks agree perfectly: 1 (the no-target rule of SegEarth-R1)."""
    if a.shape != b.shape:
        raise ValueError(f"mask_iou: shapes differ, {a.shape} and {b.shape}")
    union = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / union if union else 1.0


def match(scores: FloatArray) -> list[tuple[int, int]]:
    """One-to-one assignment [(row, column), ...] that maximises the summed ``scores`` [M, N] (Hungarian)."""
    rows, columns = linear_sum_assignment(scores, maximize=True)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def mask_to_box(mask: BoolMask) -> Box | None:
    """Tight XYXY box of a mask [H, W], or None when it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def clipped(mask: BoolMask, box: Box | None) -> BoolMask:
    """``mask`` [H, W] with all outside ``box`` removed; unchanged without one. See :func:`pixel_window`."""
    if box is None:
        return mask
    x0, y0, x1, y1 = pixel_window(box)
    result = np.zeros_like(mask)
    result[y0:y1, x0:x1] = mask[y0:y1, x0:x1]
    return result


def pixel_window(box: Box) -> tuple[int, int, int, int]:
    """First pixel and end (x0, y0, x1, y1) of a box whose edges are cut to whole pixels, none of them negative.

    So does Geo-R1 (test_gres_eval.py of Geo-R1/geo-r1@2301bbf) where it cuts a mask at its box.
    """
    x0, y0, x1, y1 = (max(0, int(edge)) for edge in box)
    return x0, y0, x1, y1


def interior_points(mask: BoolMask, count: int) -> tuple[Point, ...]:
    """``count`` pixel centres deep inside a mask [H, W]: peaks of the distance transform, each peak's disc suppressed.

    The first is the centre of the largest inscribed circle, the next that of the largest one centred outside it, after
    the two largest inscribed circles that Seg-Zero's prompt asks for. A mask used up before that repeats its points in
    turn; an empty mask gives ().
    """
    if count <= 0 or not mask.any():
        return ()
    padded = np.pad(mask.astype(np.uint8), 1)  # the image's edge is an edge of the object
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1].copy()
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]]
    points: list[Point] = []
    while len(points) < count:
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        radius = float(depth[y, x])
        if radius <= 0 and points:
            points.append(points[len(points) % len(set(points))])
            continue
        points.append((float(x) + 0.5, float(y) + 0.5))
        depth[(rows - y) ** 2 + (columns - x) ** 2 <= max(0.7 * radius, 1.0) ** 2] = 0
    return tuple(points)


def exterior_points(mask: BoolMask, box: Box, count: int) -> tuple[Point, ...]:
    """``count`` background pixel centres inside or near ``box``, deepest first: reference negative points."""
    height, width = mask.shape
    margin_x, margin_y = 0.25 * (box[2] - box[0]) + 2, 0.25 * (box[3] - box[1]) + 2
    x0, y0 = max(0, int(box[0] - margin_x)), max(0, int(box[1] - margin_y))
    x1, y1 = min(width, int(box[2] + margin_x) + 1), min(height, int(box[3] + margin_y) + 1)
    return tuple((x + x0, y + y0) for x, y in interior_points(~mask[y0:y1, x0:x1], count))


def outside(prompts: Sequence[SpatialPrompt], ignored: BoolMask | None) -> tuple[SpatialPrompt, ...]:
    """The ``prompts`` that do not lie in ``ignored`` [H, W] alone: their box, or without one all positive points, does.

    What reaches beyond the image does not lie in it.
    """
    return tuple(prompt for prompt in prompts if ignored is None or not _inside(prompt, ignored))


def _inside(prompt: SpatialPrompt, region: BoolMask) -> bool:
    """Whether every pixel that the box touches, or without a box that a positive point is in, is True in ``region``."""
    height, width = region.shape
    pixels = (
        [prompt.box] if prompt.box else [(int(x), int(y), int(x) + 1, int(y) + 1) for x, y in prompt.positive_points]
    )
    for x0, y0, x1, y1 in pixels:
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            return False
        if not region[int(y0) : math.ceil(y1), int(x0) : math.ceil(x1)].all():
            return False
    return bool(pixels)


def nms(boxes: Sequence[Box], threshold: float) -> list[int]:
    """Indices kept by greedy suppression, largest area first, in their original order.

    A box is dropped when its IoU with a kept, larger one exceeds ``threshold`` (the rule of Think2Seg-RS, threshold
    0.5). Runs in O(n * kept).
    """
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in boxes]
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: -areas[i]):
        if all(box_iou(boxes[index], boxes[other]) <= threshold for other in kept):
            kept.append(index)
    return sorted(kept)
