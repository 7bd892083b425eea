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
        region: a shapely geometry in pixels; windows that do not touch it are left out. None for all.

    Raises:
        ConfigError: they are too many.
    """
    import shapely

    rows, columns = starts(area.height, side, overlap), starts(area.width, side, overlap)
    if len(rows) * len(columns) > MOST:
        raise ConfigError(
            f"{len(columns)} x {len(rows)} windows of {side} pixels: more than {MOST:,}; take a coarser --gsd, a "
            "larger --window or a part of the scene (--bbox)"
        )
    if region is not None:
        shapely.prepare(region)
    width, height = min(side, area.width), min(side, area.height)
    for row in rows:
        for column in columns:
            window = Window(area.left + column, area.top + row, width, height)
            if region is None or region.intersects(window.polygon):
                yield window
