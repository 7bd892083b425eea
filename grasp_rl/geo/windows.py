"""How a scene is cut into overlapping windows of one size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from grasp_rl.config.errors import ConfigError
from grasp_rl.geo.grid import Grid

MOST = 4_000_000
"""Windows of a scene: years of work for any policy, so a mistake."""


class Window(NamedTuple):
    """A rectangle of whole pixels of a grid."""

    left: int
    top: int
    width: int
    height: int

    @property
    def right(self) -> int:
        return self.left + self.width

    @property
    def bottom(self) -> int:
        return self.top + self.height

    @property
    def text(self) -> str:
        """``left,top,width,height``."""
        return ",".join(map(str, self))

    @property
    def polygon(self) -> Any:
        """As a shapely polygon."""
        import shapely

        return shapely.box(self.left, self.top, self.right, self.bottom)


def whole(grid: Grid) -> Window:
    """All of ``grid``."""
    return Window(0, 0, grid.width, grid.height)


def starts(extent: int, side: int, overlap: float) -> list[int]:
    """First pixels of windows of ``side`` pixels that cover ``extent``, evenly spaced; 0 alone where one does."""
    if extent <= side:
        return [0]
    step = max(1, math.floor(side * (1 - overlap)))
    count = math.ceil((extent - side) / step) + 1
    return [round(number * (extent - side) / (count - 1)) for number in range(count)]


def windows_of(area: Window, side: int, overlap: float, region: Any = None) -> Iterator[Window]:
    """Windows of ``side`` pixels, or as many as there are, that cover ``area``, row by row.

    Args:
        area: of a grid.
        side: width and height of a window in pixels.
        overlap: share of a window's side that its neighbour sees, too, at least.
        region: a shapely geometry in pixels; windows none of whose pixel centres it reaches are left out, so that
            rounding of its coordinates decides nothing where it ends at a window's edge. None for all.

    Raises:
        ConfigError: they are too many.
    """
    import shapely

    width, height = min(side, area.width), min(side, area.height)
    rows = [area.top + first for first in starts(area.height, side, overlap)]
    columns = [area.left + first for first in starts(area.width, side, overlap)]
    if region is not None:
        x0, y0, x1, y1 = region.bounds
        rows = [row for row in rows if row < y1 and y0 < row + height]
        columns = [column for column in columns if column < x1 and x0 < column + width]
        shapely.prepare(region)
    if len(rows) * len(columns) > MOST:
        raise ConfigError(
            f"{len(columns)} x {len(rows)} windows of {side} pixels: more than {MOST:,}; take a coarser --gsd, a "
            "larger --window or a part of the scene (--bbox)"
        )
    for row in rows:
        for column in columns:
            centres = shapely.box(column + 0.5, row + 0.5, column + width - 0.5, row + height - 0.5)
            if region is None or region.intersects(centres):
                yield Window(column, row, width, height)
