"""The files of a scan: layers, rasters and records of what was found in all scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grasp_rl import __version__
from grasp_rl.cli.scene_options import ONE_QUESTION, Target
from grasp_rl.data.image_io import ImageReading, write_image
from grasp_rl.geo.grid import Grid, areas_and_perimeters
from grasp_rl.geo.journal import Journal
from grasp_rl.geo.layers import VECTORS, has_style, style_file, table_of, together, write_layer
from grasp_rl.geo.merge import Feature
from grasp_rl.geo.rasters_out import Validity, draw, write_agreement, write_mask
from grasp_rl.geo.scan import Plan, looked_at, share_of, statuses_of
from grasp_rl.geo.scene import Scene, open_scene
from grasp_rl.geo.windows import Window
from grasp_rl.utils.files import Record, to_json, write_json

_OVERLAY = 1600
"""Longer side of an overlay in pixels."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One question about one scene, answered."""

    name: str
    query: str
    plan: Plan
    scene_grid: Grid
    features: Sequence[Feature]
    """In pixels of the plan's grid."""
    left_out: int
    """Features that were smaller than is wanted."""
    common: Mapping[str, object]
    """Attributes that all its features share."""

    @property
    def native(self) -> list[Any]:
        """The features' geometries in pixels of the scene's own grid."""
        return self.in_scene([feature.geometry for feature in self.features])

    def in_scene(self, geometries: Sequence[Any]) -> list[Any]:
        """Geometries in pixels of the plan's grid in those of the scene's own."""
        import shapely

        own, grid = self.scene_grid, self.plan.grid
        factor = np.array([own.width / grid.width, own.height / grid.height])
        return [shapely.transform(geometry, lambda points: points * factor) for geometry in geometries]


@dataclass(kw_only=True)
class Written:
    """What was written."""

    lines: list[str] = field(default_factory=list)
    """For a person."""
    remarks: list[str] = field(default_factory=list)
    """What a format changed, what could not be read."""
    record: Record = field(default_factory=dict)
    """For --json."""


def write_outputs(
    answered: Sequence[Answered],
    files: Mapping[tuple[str, str], Path],
    target: Target,
    journal: Journal,
    reading: ImageReading,
    *,
    trust: bool,
    renew: bool,
) -> Written:
    """Write every file that ``files`` names, and the rasters of agreement.

    Args:
        answered: all that was answered.
        files: of each question about each scene.
        target: the format.
        journal: holds the answers.
        reading: how a scene is shown, for overlays.
        trust: see :func:`~grasp_rl.geo.scene.open_scene`.
        renew: see :func:`~grasp_rl.geo.layers.write_layer`.

    Raises:
        OSError: one cannot be written.
        ConfigError: scenes with and without a CRS are to go into one layer.
    """
    written = Written()
    by_file: dict[Path, list[Answered]] = {}
    for each in answered:
        by_file.setdefault(files[each.name, each.query], []).append(each)
    tables = {id(each): table_of(each.features, each.plan.grid, each.common) for each in answered}
    records = {id(each): _record(each, tables[id(each)], journal) for each in answered}
    written.lines += [_line(each, records[id(each)]) for each in answered]
    for path, those in by_file.items():
        queries = [each.query for each in those]
        if target.kind in VECTORS:
            table, remark = together([tables[id(each)] for each in those])
            written.remarks += [remark] if remark else []
            written.remarks += write_layer(table, path, target.kind, queries, renew=renew)
            named = f", style {style_file(path).name}" if has_style(path, queries) else ""
            written.lines.append(f"{path}: {len(table)} features{named}")
            continue
        if target.kind == "json":
            write_json(path, _document(those, records, tables))
        for each in those if target.kind in ("cog", "png") else ():
            with open_scene(each.name, reading, trust=trust) as scene:
                if target.kind == "cog":
                    seen = [window.polygon for window in looked_at(each.plan, each.query, journal)]
                    restricted = each.in_scene(_restricted(seen, each.plan))
                    write_mask(
                        path, scene.grid, each.native, restricted, _validity(scene, scene.grid),
                        stored=scene.stored, tags=_tags(each),
                    )  # fmt: skip
                else:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_image(path, draw(scene, each.native, each.query, _OVERLAY))
        written.lines.append(f"{path}: written" + (f", {each.query}" if target.kind in ONE_QUESTION else ""))
    agreements = _agreements(answered, files, journal, reading, trust=trust)
    written.lines += [f"{path}: percent of the answers that have each pixel" for path in agreements]
    paths = [str(path) for path in (*by_file, *agreements)]
    written.record = {"state": "done", "files": paths, "scenes": to_json(list(records.values()))}
    return written


def _tags(each: Answered) -> dict[str, str]:
    """Of a GeoTIFF, by name: what was asked, of whom, when."""
    named = {f"GRASP_RL_{name.upper()}": str(value) for name, value in each.common.items() if value is not None}
    return named | {"TIFFTAG_SOFTWARE": f"grasp_rl {__version__}"}


def _validity(scene: Scene, grid: Grid) -> Validity | None:
    """What says where ``grid``, one of ``scene``, has data; None where it has them everywhere."""
    return (lambda window: scene.read(grid, window)[1]) if scene.gaps else None


def _restricted(polygons: Sequence[Any], plan: Plan) -> list[Any]:
    """``polygons`` cut to the plan's region."""
    if plan.region is None:
        return list(polygons)
    import shapely

    return [shapely.intersection(polygon, plan.region) for polygon in polygons]


def _record(each: Answered, table: Any, journal: Journal) -> Record:
    """What is said of one question about one scene."""
    grid = each.plan.grid
    return {
        "source": each.name,
        "crs": grid.name if grid.crs is not None else None,
        "query": each.query,
        "features": len(table),
        "left_out": each.left_out,
        "area_m2": _area([feature.geometry for feature in each.features], grid),
        "windows": statuses_of(each.plan, each.query, journal),
        "gsd_m": each.common["gsd_m"],
        "min_area_m2": each.common.get("min_area_m2"),
        "size": list(grid.size),
        "transform": list(grid.transform[:6]),
        "prompt": each.common["prompt"],
        "model": each.common["model"],
        "date": each.common["date"],
    }


def of_area(features: Sequence[Feature], grid: Grid, least: float) -> list[Feature]:
    """Those of ``features``, in pixels of ``grid``, that have at least ``least`` square metres of their own."""
    areas, _ = areas_and_perimeters([grid.to_world(feature.geometry) for feature in features], grid.projection)
    return [feature for feature, area in zip(features, areas, strict=True) if area >= least]


def _area(geometries: Sequence[Any], grid: Grid) -> float | None:
    """Square metres of the union of geometries in pixels of ``grid``; None without a CRS."""
    import shapely

    if grid.crs is None:
        return None
    (area,), _ = areas_and_perimeters([grid.to_world(shapely.union_all(list(geometries)))], grid.projection)
    return area


def _line(each: Answered, record: Record) -> str:
    """One line for a person."""
    count = record["features"]
    area = record["area_m2"]
    size = "" if area is None or not count else f", {area:,.0f} m2" if area < 1e6 else f", {area / 1e6:,.2f} km2"
    result = f"{count} feature{'s' * (count != 1)}{size}" if count else "nothing found"
    smaller = each.left_out
    result += f", {smaller} smaller than {each.common['min_area_m2']:g} m2 left out" if smaller else ""
    windows = record["windows"]
    read = windows.get("ok", 0) + windows.get("repaired", 0)
    unread = sum(windows.values()) - read - windows.get("empty", 0)
    parts = [f"{read} windows answered"]
    parts += [f"{windows['empty']} without data"] if "empty" in windows else []
    parts += [f"{unread} whose answer could not be read"] if unread else []
    return f"{each.name}: {each.query}: {result} ({', '.join(parts)})"


def _document(those: Sequence[Answered], records: Mapping[int, Record], tables: Mapping[int, Any]) -> Record:
    """What a .json file holds: scenes, their records, and features in the scene's CRS."""
    from shapely.geometry import mapping

    scenes = []
    for each in those:
        table = tables[id(each)]
        rows = table.drop(columns="geometry").to_dict("records")
        features = [
            row | {"geometry": mapping(geometry), "pixels": mapping(feature.geometry)}
            for row, geometry, feature in zip(rows, table.geometry, each.features, strict=True)
        ]
        crs = each.plan.grid.crs
        wkt = None if crs is None else each.plan.grid.projection.to_wkt()
        scenes.append(records[id(each)] | {"crs_wkt": wkt, "found": features})
    return {"scenes": scenes}


def _agreements(
    answered: Sequence[Answered],
    files: Mapping[tuple[str, str], Path],
    journal: Journal,
    reading: ImageReading,
    *,
    trust: bool,
) -> list[Path]:
    """A raster of agreement for each question about each scene whose answers were drawn several times."""
    result: list[Path] = []
    for each in answered:
        windows = looked_at(each.plan, each.query, journal)
        if not any("share" in journal[each.plan.name(each.query, window)] for window in windows):
            continue
        file = files[each.name, each.query]
        several = sum(path == file for path in files.values()) > 1
        number = list(files).index((each.name, each.query)) + 1
        path = file.with_name(f"{file.stem}{f'_{number}' if several else ''}_agreement.tif")

        @lru_cache(maxsize=64)
        def share(window: Window, each: Answered = each) -> NDArray[np.uint8]:
            return share_of(each.plan, each.query, journal, window)

        with open_scene(each.name, reading, trust=trust) as scene:
            valid = _validity(scene, each.plan.grid)
            write_agreement(path, each.plan.grid, windows, share, valid, tags=_tags(each))
        result.append(path)
    return result
