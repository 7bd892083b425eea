"""Numbers of an answer as original-image pixels."""

from __future__ import annotations

from collections.abc import Sequence

from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.prompts.json_text import ReadError
from grasp_rl.types import Box, ParseStatus, Point


def image_box(edges: Sequence[float], frame: CoordinateFrame) -> Box:
    """Ordered, clipped and scaled corners.

    Raises:
        ReadError: the box has no area then.
    """
    scale_x, scale_y = frame.scale
    x0, x1 = (min(max(0.0, x) * scale_x, frame.image_width) for x in sorted(edges[::2]))
    y0, y1 = (min(max(0.0, y) * scale_y, frame.image_height) for y in sorted(edges[1::2]))
    if (x1 - x0) * (y1 - y0) <= 0:
        raise ReadError(ParseStatus.BAD_NUMBER)
    return x0, y0, x1, y1


def image_point(point: Sequence[float], frame: CoordinateFrame) -> Point:
    """The centre of the named cell, the cell clipped to the frame."""
    scale_x, scale_y = frame.scale
    x = min(max(0.0, point[0]), frame.width - 1) + 0.5
    y = min(max(0.0, point[1]), frame.height - 1) + 0.5
    return x * scale_x, y * scale_y


def scaled(numbers: Sequence[float], frame: CoordinateFrame) -> tuple[float, ...]:
    """x, y, x, y, ... scaled and nothing else."""
    return tuple(number * frame.scale[index % 2] for index, number in enumerate(numbers))
