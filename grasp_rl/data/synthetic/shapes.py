"""What drawn scenes are made of, whatever their level: filled polygons, bands along a line, parts and smooth noise."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from grasp_rl.types import BoolMask

Rng = np.random.Generator
Points = NDArray[np.float64]
"""[N, 2] (x, y) in pixels."""


def canvas(size: int) -> NDArray[np.uint8]:
    """[size, size] of zeros."""
    return np.zeros((size, size), dtype=np.uint8)


def polygon(size: int, points: Points) -> BoolMask:
    """[size, size], True within the ring of ``points``, to a sixteenth of a pixel."""
    drawn = canvas(size)
    cv2.fillPoly(drawn, [np.round(points * 16).astype(np.int32)], 1, shift=4)
    return drawn.astype(bool)


def rectangle(centre: tuple[float, float], width: float, height: float, angle: float) -> Points:
    """[4, 2] corners of a rectangle turned by ``angle`` radians about its ``centre``."""
    corners = np.array([[-width, -height], [width, -height], [width, height], [-width, height]]) / 2
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.asarray(corners @ rotation.T + centre)


def band(size: int, line: Points, width: float) -> BoolMask:
    """[size, size], True within half a ``width`` in pixels of the gently bent ``line``, which has square ends."""
    steps = np.gradient(line, axis=0)
    normals = np.stack([-steps[:, 1], steps[:, 0]], 1) / np.maximum(np.hypot(*steps.T)[:, None], 1e-6)
    return polygon(size, np.concatenate([line + normals * width / 2, (line - normals * width / 2)[::-1]]))


def largest_part(mask: BoolMask) -> BoolMask:
    """The largest 8-connected part of a mask [H, W]; the mask itself where it is empty."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count <= 2:
        return mask
    return np.asarray(labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax()), dtype=np.bool_)


def noise(rng: Rng, size: int, cells: int) -> NDArray[np.float32]:
    """[size, size] of standard normal values at ``cells`` x ``cells`` places, smooth in between."""
    coarse = rng.standard_normal((cells, cells)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC))
