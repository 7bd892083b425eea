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


def blob(rng: Rng, centre: tuple[float, float], sides: tuple[float, float], crowns: int) -> Points:
    """[96, 2]: a rough ellipse of ``sides`` pixels, its outline made of ``crowns`` arcs where there are any."""
    angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    rough = rng.standard_normal(16)
    coarse = np.clip(1 + 0.16 * (rough + np.roll(rough, 1) + np.roll(rough, -1)) / 1.7, 0.65, 1.3)
    radii = np.interp(angles, np.linspace(0, 2 * np.pi, 17), np.append(coarse, coarse[0]))
    if crowns:
        radii = radii * (0.92 + 0.16 * np.abs(np.sin(crowns / 2 * angles + rough[0])))
    (cx, cy), (w, h) = centre, sides
    return np.stack([cx + w / 2 * radii * np.cos(angles), cy + h / 2 * radii * np.sin(angles)], 1)


def outline(
    rng: Rng, category: str, centre: tuple[float, float], sides: tuple[float, float], angle: float, unit: float
) -> Points:
    """[N, 2]: a disc for a tank, a hull for a vessel, a rectangle or, of a large roof, an L for all else.

    Args:
        rng: decides on the L.
        category: of what stands there.
        centre: (x, y) in pixels.
        sides: length and width in pixels.
        angle: of the length against x, radians.
        unit: pixels of a unit, of which a roof with an L is longer than 18.
    """
    if category == "tank":
        turns = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        return np.asarray(np.stack([np.cos(turns), np.sin(turns)], 1) * sides[0] / 2 + centre)
    if category == "vessel":
        ring = np.array([[-0.5, -0.34], [0.2, -0.5], [0.5, 0.0], [0.2, 0.5], [-0.5, 0.34]])
    elif category == "roof" and sides[0] > 18 * unit and rng.random() < 0.35:
        ring = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [0.1, 0.5], [0.1, 0.05], [-0.5, 0.05]])
    else:
        return rectangle(centre, *sides, angle)
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.asarray((ring * sides) @ turned.T + centre)


def noise(rng: Rng, size: int, cells: int) -> NDArray[np.float32]:
    """[size, size] of standard normal values at ``cells`` x ``cells`` places, smooth in between."""
    coarse = rng.standard_normal((cells, cells)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC))
