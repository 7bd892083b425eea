"""A map maker's own polygons with questions: what they cover in a chip, as the target of a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.annotations import problem_of
from grasp_rl.data.importers.base import Ring, question_of, run_lengths
from grasp_rl.data.rasterize import ShapeError, ring_mask, ring_masks
from grasp_rl.geo.grid import Grid
from grasp_rl.geo.polygons import mask_of
from grasp_rl.geo.region import in_pixels, read_polygons
from grasp_rl.geo.windows import Window
from grasp_rl.types import BoolMask
from grasp_rl.utils.files import Record

_DECIMALS = 3
"""Of coordinates in pixels."""


@dataclass(frozen=True)
class Labels:
    """Polygons in pixels of a scene's grid, each with a question."""

    geometries: Any
    """[N] shapely polygons and multipolygons, as an array."""
    queries: Sequence[str]
    """Of each."""
    left_out: int = 0
    """Rows without a question."""

    @property
    def questions(self) -> list[str]:
        """Each question once, in the order of the file."""
        return list(dict.fromkeys(self.queries))


def read_labels(name: str, column: str, grid: Grid, *, question: str | None = None, trust: bool = False) -> Labels:
    """The polygons of ``name`` that lie in the scene.

    Args:
        name: FILE or FILE:LAYER, as for :func:`~grasp_rl.geo.region.read_polygons`.
        column: that holds the questions, or categories.
        grid: of the scene.
        question: asks for a ``{category}``; None where the column holds questions.
        trust: see :func:`~grasp_rl.geo.region.read_polygons`.

    Raises:
        ConfigError: there is no such column, a value cannot be asked, or no polygon lies in the scene.
    """
    import shapely

    table = read_polygons(name, trust=trust)
    if column not in table.columns or column == table.geometry.name:
        columns = ", ".join(str(each) for each in table.columns if each != table.geometry.name) or "none"
        raise ConfigError(f"--query-column {column}: {name} has no such column; it has {columns}")
    texts = [_text(value, question) for value in table[column]]
    for number, text in enumerate(texts, 1):
        problem = None if text is None else problem_of("query", text)
        if problem is not None:
            raise ConfigError(f"{name}: feature {number}, column {column}: {problem}")
    geometries = in_pixels(table, grid, name)
    scene = shapely.box(0, 0, grid.width, grid.height)
    inside = shapely.intersects(np.asarray(geometries), scene)
    if not inside.any():
        x0, y0, x1, y1 = table.total_bounds
        sx0, sy0, sx1, sy1 = grid.to_world(scene).bounds
        raise ConfigError(
            f"{name}: no polygon lies in the scene: they reach from ({x0:.9g}, {y0:.9g}) to ({x1:.9g}, {y1:.9g}) in "
            f"{table.crs.name if table.crs is not None else 'pixels'}, the scene from ({sx0:.9g}, {sy0:.9g}) to "
            f"({sx1:.9g}, {sy1:.9g}) in {grid.name}; see that both have the right CRS"
        )
    asked = [index for index, text in enumerate(texts) if text is not None and inside[index]]
    if not asked:
        raise ConfigError(f"--query-column {column}: is empty in every polygon of {name} that lies in the scene")
    return Labels(
        geometries=np.asarray(geometries)[asked],
        queries=[str(texts[index]) for index in asked],
        left_out=int(inside.sum()) - len(asked),
    )


def _text(value: Any, question: str | None) -> str | None:
    """What a cell asks; None where it is empty."""
    import pandas as pd

    if pd.isna(value) or not str(value).strip():
        return None
    text = str(value).strip()
    return text if question is None else question_of(question, text)


def target_of(geometries: Sequence[Any], window: Window, least: int) -> tuple[Record, BoolMask] | None:
    """What ``geometries`` cover of ``window``: ``polygons`` of a row, or its ``rle`` where rings cannot say it.

    Args:
        geometries: shapely polygons in the frame of the window, of one question.
        window: of the chip.
        least: pixels below which there is no target.

    Returns:
        The target in pixels of the chip, and the same as a mask [H, W]; None where it is too small.
    """
    import shapely

    size, box = (window.height, window.width), shapely.box(0, 0, window.width, window.height)
    moved = shapely.transform(list(geometries), lambda points: points - [window.left, window.top])
    parts = [p for p in shapely.get_parts(shapely.intersection(moved, box)) if p.geom_type == "Polygon"]
    mask = mask_of(parts, size)
    if int(mask.sum()) < least:
        return None
    rings = _rings(_without_covered(parts), size)
    try:
        drawn = np.logical_or.reduce(list(ring_masks(rings, size, holes=True)))
    except (ShapeError, ValueError):
        drawn = ~mask
    if not np.array_equal(drawn, mask):  # polygons that overlap so that one would be another's hole, and the like
        return {"rle": run_lengths(mask)}, mask
    holes = {"holes": True} if any(len(part.interiors) for part in parts) else {}
    return {"polygons": rings, **holes}, mask


def _without_covered(parts: Sequence[Any]) -> list[Any]:
    """``parts`` without those that lie within another one, of equal ones the first."""
    import shapely

    tree = shapely.STRtree(list(parts))
    inner, outer = tree.query(list(parts), predicate="covered_by")
    covered = {
        int(a) for a, b in zip(inner, outer, strict=True) if a != b and not (a < b and parts[a].equals(parts[b]))
    }
    return [part for index, part in enumerate(parts) if index not in covered]


def _rings(parts: Sequence[Any], size: tuple[int, int]) -> list[Ring]:
    """Rings, exterior and interior, that hold the centre of a pixel."""
    result: list[Ring] = []
    for part in parts:
        for line in (part.exterior, *part.interiors):
            ring = np.round(np.asarray(line.coords)[:-1, :2], _DECIMALS).tolist()
            try:
                ring_mask(ring, size)
            except ShapeError:
                continue
            result.append(ring)
    return result
