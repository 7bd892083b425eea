"""Features as a map layer: GeoPackage, GeoJSON, GeoParquet, Shapefile, FlatGeobuf, with a style for QGIS beside it.

Written by pyogrio and geopandas. A file is written under another name and renamed, so that it is whole or not there.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grasp_rl.config.errors import ConfigError
from grasp_rl.geo.grid import Grid, areas_and_perimeters, dense, name_of
from grasp_rl.geo.merge import Feature
from grasp_rl.geo.style import is_untouched, style
from grasp_rl.utils.files import write_text

VECTORS = {"gpkg": ".gpkg", "geojson": ".geojson", "parquet": ".parquet", "shp": ".shp", "fgb": ".fgb"}
"""Formats of polygons, and the ending that means each."""
_DRIVERS = {"gpkg": "GPKG", "geojson": "GeoJSON", "shp": "ESRI Shapefile", "fgb": "FlatGeobuf"}
COLUMNS: dict[str, str] = {
    "query": "object",
    "score": "float64",
    "confidence": "float64",
    "area_m2": "float64",
    "perimeter_m": "float64",
    "source": "object",
    "window": "object",
    "gsd_m": "float64",
    "prompt": "object",
    "thinking": "object",
    "model": "object",
    "date": "object",
}
"""The attributes of a feature. docs/gis.md says what each means."""
_SHORT = {"perimeter_m": "perim_m"}
"""Names that a Shapefile cuts to ten characters."""
_TEXT = 254
"""Bytes of text that a Shapefile keeps."""
_DIGITS = 9
"""Of degrees in GeoJSON: a tenth of a millimetre, where the usual 7 would move an edge by a centimetre."""
LAYER = "grasp_rl"


def table_of(features: Sequence[Feature], grid: Grid, common: Mapping[str, object]) -> Any:
    """A GeoDataFrame of MultiPolygons, one row a feature, with :data:`COLUMNS`; with them and no row for no feature.

    Args:
        features: geometries in pixels of ``grid``.
        grid: theirs. Without a CRS the geometries stay in pixels, and areas and lengths on the ground are missing.
        common: columns that are the same for all rows: of ``query``, ``source``, ``gsd_m``, ``prompt``, ``model`` and
            ``date``.
    """
    import geopandas
    import pandas as pd

    geometries = [grid.to_world(feature.geometry) for feature in features]
    areas: Sequence[float | None] = [None] * len(features)
    perimeters = areas
    if grid.crs is not None:
        areas, perimeters = areas_and_perimeters(geometries, grid.projection)
    rows: dict[str, Any] = {
        "score": [feature.score for feature in features],
        "confidence": [feature.confidence for feature in features],
        "area_m2": areas,
        "perimeter_m": perimeters,
        "window": [";".join(window.text for window in feature.windows) for feature in features],
        "thinking": [feature.thinking for feature in features],
    }
    rows |= {name: [value] * len(features) for name, value in common.items()}
    columns = {name: pd.Series(rows[name], dtype=kind) for name, kind in COLUMNS.items()}
    projection = grid.projection if grid.crs is not None else None
    return geopandas.GeoDataFrame(columns, geometry=geopandas.GeoSeries(geometries, crs=projection), crs=projection)


def together(tables: Sequence[Any]) -> tuple[Any, str]:
    """All rows in the CRS of the first table, and a remark where another had another one.

    Raises:
        ConfigError: some tables have a CRS and some have none.
    """
    import geopandas
    import pandas as pd

    first = tables[0].crs
    if any((table.crs is None) != (first is None) for table in tables):
        raise ConfigError("some scenes have a CRS and some have none, which make no one layer; ask about them apart")
    others = sum(table.crs != first for table in tables)
    moved = [table if table.crs == first else table.to_crs(first) for table in tables]
    rows = [table for table in moved if len(table)] or moved[:1]
    joined = geopandas.GeoDataFrame(pd.concat(rows, ignore_index=True), geometry="geometry", crs=first)
    if not others:
        return joined, ""
    return joined, f"{others} of {len(tables)} layers brought into the CRS of the first, {name_of(first)}"


def style_file(path: Path) -> Path:
    """Where the style of a layer in ``path`` stands."""
    return path.with_suffix(".qml")


def has_style(path: Path, queries: Sequence[str]) -> bool:
    """Whether the style beside ``path`` is the one for ``queries``."""
    beside = style_file(path)
    return beside.is_file() and beside.read_bytes() == style(list(dict.fromkeys(queries))).encode()


def write_layer(table: Any, path: Path, kind: str, queries: Sequence[str], *, renew: bool = False) -> list[str]:
    """Write ``table`` to ``path`` with its style beside it; what was changed for the format, in words.

    A style that is there already stays, since somebody may have worked on it; with ``renew`` only if somebody has.

    Args:
        table: of :func:`table_of` or :func:`together`.
        path: of the file; with a Shapefile its companions get the same stem.
        kind: of :data:`VECTORS`.
        queries: that were asked, each with a colour of its own.
        renew: whether a style of other questions that this function wrote, and nobody changed, is replaced.

    Raises:
        OSError: it cannot be written.
    """
    import pyogrio

    said: list[str] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    with _aside(path) as temporary, warnings.catch_warnings():
        # of pyogrio about a layer without a CRS, said by whoever calls
        warnings.filterwarnings("ignore", message="'crs' was not provided")
        if kind == "parquet":
            table.to_parquet(temporary, index=False)
        else:
            options: dict[str, Any] = {"driver": _DRIVERS[kind], "geometry_type": "MultiPolygon", "layer": LAYER}
            if kind == "geojson" and table.crs is not None:
                table = table.set_geometry(dense(table.geometry.array, table.crs))
                options |= {"RFC7946": "YES", "COORDINATE_PRECISION": _DIGITS}
            elif kind == "shp":
                table, said = _for_shapefile(table)
                options |= {"layer": path.stem, "ENCODING": "UTF-8"}
            pyogrio.write_dataframe(table, temporary, **options)
    beside = style_file(path)
    if not beside.exists() or (renew and is_untouched(beside.read_bytes().decode(errors="replace"))):
        write_text(beside, style(list(dict.fromkeys(queries))))
    elif not has_style(path, queries):
        said.append(f"{beside}: is another style, and stays; remove it for one of these questions")
    return said


def _for_shapefile(table: Any) -> tuple[Any, list[str]]:
    """``table`` as a Shapefile can hold it, and what that changes."""
    import pandas as pd

    said = [f"a Shapefile calls {old} {new}" for old, new in _SHORT.items()]
    cut = 0
    table = table.rename(columns=_SHORT)
    for name in table.columns:
        if table[name].dtype == object or str(table[name].dtype) == "str":
            texts = [text if isinstance(text, str) else None for text in table[name]]
            short = [None if t is None else t.encode()[:_TEXT].decode(errors="ignore") for t in texts]
            cut += sum(a != b for a, b in zip(texts, short, strict=True))
            table[name] = pd.Series(short, dtype=object, index=table.index)
    return table, said + ([f"{cut} texts cut to {_TEXT} bytes, as a Shapefile has it"] if cut else [])


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A path of the same name in a folder beside ``path``; all that is written there is moved once the body is done."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        yield Path(folder) / path.name
        for file in sorted(Path(folder).iterdir()):
            os.replace(file, path.parent / file.name)
