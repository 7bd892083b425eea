"""The way back: the targets of a dataset whose images keep their place on the earth, as a map layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.annotations import Row
from grasp_rl.data.base import Split
from grasp_rl.data.rasterize import parts
from grasp_rl.geo.grid import areas_and_perimeters
from grasp_rl.geo.layers import together
from grasp_rl.geo.polygons import polygons_of
from grasp_rl.geo.scene import grid_of


def table_of_targets(splits: Sequence[Split], count: int | None = None) -> tuple[Any, str]:
    """A GeoDataFrame of one row an instance, with ``query``, ``split``, ``id``, ``image``, ``area_m2``; and a remark.

    Args:
        splits: of a dataset of image files.
        count: samples of each split, evenly spaced; None for all.

    Raises:
        ConfigError: an image has no CRS, a target is no mask, or no sample has a target.
    """
    import geopandas

    by_crs: dict[str, tuple[Any, list[dict[str, Any]]]] = {}
    queries: list[str] = []
    for split in splits:
        records = {_id(record): record for record in split.records}
        for _, sample in split.usable_samples(count):
            record = records[sample.sample_id]
            path = Path(record.image)
            grid = grid_of(path)
            if grid is None or grid.crs is None:
                raise ConfigError(
                    f"{path}: has no place on the earth, so --geo has no map to draw on; datasets of grasp-rl data "
                    "from-gis have one"
                )
            if sample.target_mask is None:
                raise ConfigError(f"{record.location}: has boxes and no mask; --geo draws masks")
            masks = sample.instance_masks() if sample.instance_masks else parts(sample.target_mask)
            shapes = [grid.to_world(polygons_of(mask)) for mask in masks]
            areas, _ = areas_and_perimeters(shapes, grid.projection)
            queries.append(sample.query)
            rows = by_crs.setdefault(grid.projection.to_wkt(), (grid.projection, []))[1]
            rows += [
                {
                    "query": sample.query, "split": split.split, "id": sample.sample_id, "image": path.name,
                    "area_m2": area, "geometry": shape,
                }
                for shape, area in zip(shapes, areas, strict=True)
            ]  # fmt: skip
    tables = [geopandas.GeoDataFrame(rows, geometry="geometry", crs=crs) for crs, rows in by_crs.values() if rows]
    if not tables:
        raise ConfigError(f"none of {len(queries)} samples has a target; name another --split")
    return together(tables)


def _id(record: Any) -> str:
    if not isinstance(record, Row):
        raise ConfigError("--geo: goes with datasets of image files")
    return record.sample_id
