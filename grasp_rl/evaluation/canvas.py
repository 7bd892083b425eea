"""Where masks are compared: the original image, or the resized one of a published evaluator."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np

from grasp_rl.geometry import mask_to_box
from grasp_rl.types import BoolMask

Canvas = Literal["original", "squash", "corner", "centre"]
"""squash: to a square, whatever the shape; corner, centre: the longer side fills the square, the rest is padded, right
and below or all around."""


def place(mask: BoolMask, canvas: Canvas, side: int, *, bilinear: bool = False) -> BoolMask:
    """``mask`` [H, W] on a canvas of ``side`` x ``side``; padding is False.

    Args:
        mask: at the original resolution.
        canvas: see :data:`Canvas`; original gives ``mask`` back.
        side: of the canvas in pixels.
        bilinear: interpolate and take all above 0, which widens the mask; else the nearest pixel.
    """
    if canvas == "original":
        return mask
    height, width = mask.shape
    if canvas == "squash":
        return _resized(mask, side, side, bilinear)
    scale = side / max(height, width)
    rows, columns = max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
    top, left = ((side - rows) // 2, (side - columns) // 2) if canvas == "centre" else (0, 0)
    result = np.zeros((side, side), dtype=np.bool_)
    result[top : top + rows, left : left + columns] = _resized(mask, rows, columns, bilinear)
    return result


def _resized(mask: BoolMask, rows: int, columns: int, bilinear: bool) -> BoolMask:
    if mask.shape == (rows, columns):
        return mask
    values, how = (np.float32, cv2.INTER_LINEAR) if bilinear else (np.uint8, cv2.INTER_NEAREST)
    return np.asarray(cv2.resize(mask.astype(values), (columns, rows), interpolation=how) > 0, dtype=np.bool_)


def clipped(mask: BoolMask, box: tuple[float, float, float, float] | None) -> BoolMask:
    """``mask`` [H, W] with all outside ``box`` removed, whose edges are truncated to whole pixels as in Geo-R1's
    test_gres_eval.py; unchanged without one.
    """
    if box is None:
        return mask
    x0, y0, x1, y1 = (int(edge) for edge in box)
    result = np.zeros_like(mask)
    window = (slice(max(y0, 0), max(y1, 0)), slice(max(x0, 0), max(x1, 0)))
    result[window] = mask[window]
    return result


def rectangle(mask: BoolMask) -> BoolMask:
    """The smallest upright rectangle around ``mask`` [H, W]; nothing for an empty one."""
    return clipped(np.ones_like(mask), mask_to_box(mask)) if mask.any() else mask
