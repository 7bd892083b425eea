"""Which of several scenes show the same ground, or lie edge to edge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from grasp_rl.config.errors import ConfigError
from grasp_rl.geo.grid import LONGITUDE_LATITUDE, Grid, dense

NEAR = 1.5
"""Pixels between two scenes up to which they count as edge to edge."""
LONG = 16
"""Pixels that two edges lie together at least; corners alone do not count."""


def neighbours(grids: Mapping[str, Grid]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Pairs of scenes that overlap by more than an edge, and pairs that lie edge to edge.

    Each pair is compared in the CRS of its first scene, in pixels. Scenes without a CRS, and such as lead nowhere on
    the earth, are in no pair.

    Args:
        grids: of the scenes, by name.
    """
    import shapely

    outlines = {name: outline for name, grid in grids.items() if (outline := _outline(grid, LONGITUDE_LATITUDE))}
    names = list(outlines)
    if not names:
        return [], []
    boxes = [shapely.box(*outlines[name].buffer(1e-4).bounds) for name in names]
    overlapping, touching = list[tuple[str, str]](), list[tuple[str, str]]()
    for a, b in sorted((int(a), int(b)) for a, b in shapely.STRtree(boxes).query(boxes).T if a < b):
        first = grids[names[a]]
        other = _outline(grids[names[b]], first.projection)
        if other is None:
            continue
        own, there = shapely.box(0, 0, first.width, first.height), first.to_pixels(other)
        inner = own.buffer(-NEAR)
        if (own if inner.is_empty else inner).intersection(there).area > 0:
            overlapping.append((names[a], names[b]))
        elif _around(own).intersection(_around(there)).area > LONG * NEAR:
            touching.append((names[a], names[b]))
    return overlapping, touching


def _around(polygon: Any) -> Any:
    return polygon.buffer(NEAR, join_style="mitre")


def _outline(grid: Grid, crs: Any) -> Any:
    """The outline of ``grid`` as a shapely polygon in coordinates of ``crs``; None where there is none."""
    import pyproj
    import shapely

    if grid.crs is None:
        return None
    try:
        own = grid.projection
        move = pyproj.Transformer.from_crs(own, crs, always_xy=True)
    except (ConfigError, pyproj.exceptions.ProjError):
        return None
    edges = shapely.segmentize(shapely.box(0, 0, grid.width, grid.height), max(grid.width, grid.height) / 32)
    world = dense(grid.to_world(edges), own)
    moved = shapely.transform(world, lambda p: np.column_stack(move.transform(p[:, 0], p[:, 1])))
    return moved if np.isfinite(shapely.get_coordinates(moved)).all() else None
