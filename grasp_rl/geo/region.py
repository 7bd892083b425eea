"""A part of a scene, from a bounding box or the polygons of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grasp_rl.config.errors import ConfigError
from grasp_rl.geo.grid import Grid, dense, name_of
from grasp_rl.geo.paths import check_vector

_POLYGONS = ("Polygon", "MultiPolygon")


def read_polygons(name: str, *, trust: bool = False, option: str = "") -> Any:
    """The layer of polygons in ``name``, a file or FILE:LAYER, as a GeoDataFrame; geometries are made valid.

    Rows without a geometry are left out, and whatever is no polygon is an error.

    Args:
        name: of a GeoPackage, GeoJSON, Shapefile, GeoParquet or FlatGeobuf.
        trust: whether other formats and addresses are opened.
        option: what names it, for messages.

    Raises:
        ConfigError: there is no such layer, or it has no polygons.
    """
    import geopandas
    import pyogrio

    path, layer = _split(name)
    check_vector(path, trust=trust)
    where = f"{option} {name}".strip()
    try:
        if Path(path).suffix.lower() in (".parquet", ".geoparquet"):
            table = geopandas.read_parquet(path)
        else:
            layers = [str(each) for each, kind in pyogrio.list_layers(path) if kind is not None]
            if layer is None and len(layers) != 1:
                names = ", ".join(layers) or "none"
                raise ConfigError(f"{where}: its layers with geometries are {names}; name one: {path}:LAYER")
            if layer is not None and layer not in layers:
                raise ConfigError(f"{where}: has no layer {layer}; it has {', '.join(layers)}")
            table = pyogrio.read_dataframe(path, layer=layer or layers[0])
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where}: cannot be read ({' '.join(str(error).split())[:200]}); save it anew") from error
    table = table[~(table.geometry.isna() | table.geometry.is_empty)]
    kinds = sorted(set(table.geometry.geom_type) - set(_POLYGONS))
    if kinds or not len(table):
        raise ConfigError(f"{where}: holds {', '.join(kinds) or 'no geometry'}; must be polygons")
    return table.set_geometry(table.geometry.make_valid())


def in_pixels(table: Any, grid: Grid, where: str) -> Any:
    """The geometries of ``table`` as an array in pixels of ``grid``.

    Raises:
        ConfigError: one of them has a CRS and the other none.
    """
    if grid.crs is None:
        if table.crs is not None and not table.crs.name.startswith("Undefined"):
            raise ConfigError(
                f"{where}: is in {name_of(table.crs)}, and the raster has no CRS; assign it (gdal_edit -a_srs "
                "EPSG:CODE FILE), or give polygons in pixels, without a CRS"
            )
        return table.geometry.array
    if table.crs is None:
        raise ConfigError(f"{where}: has no CRS; assign it (ogr2ogr -a_srs EPSG:CODE OUT IN)")
    same = table.crs == grid.projection
    moved = table.geometry if same else table.set_geometry(dense(table.geometry.array, table.crs)).to_crs(
        grid.projection
    ).geometry  # fmt: skip
    return grid.to_pixels(moved.array)


def of_bounds(bounds: tuple[float, float, float, float], crs: str | None, grid: Grid) -> Any:
    """The box (x0, y0, x1, y1) in pixels of ``grid``.

    Args:
        bounds: coordinates of ``crs``, longitude before latitude.
        crs: what they are in; None for the grid's own.
        grid: of the scene.

    Raises:
        ConfigError: there is no such CRS, or the grid has none.
    """
    import geopandas
    import pyproj
    import shapely

    if grid.crs is None and crs is not None:
        raise ConfigError(f"--bbox-crs {crs}: the raster has no CRS; give --bbox in pixels")
    try:
        known = pyproj.CRS.from_user_input(crs) if crs else grid.projection if grid.crs is not None else None
    except pyproj.exceptions.CRSError as error:
        raise ConfigError(f"--bbox-crs {crs}: no such CRS; must be like EPSG:4326") from error
    return in_pixels(geopandas.GeoDataFrame(geometry=[shapely.box(*bounds)], crs=known), grid, "--bbox")[0]


def part_of(grid: Grid, region: Any, where: str) -> Any:
    """What of ``region`` is in ``grid``.

    Args:
        grid: of the scene.
        region: a shapely geometry in its pixels.
        where: what gave it, for messages.

    Raises:
        ConfigError: they do not overlap.
    """
    import shapely

    part = shapely.intersection(region, shapely.box(0, 0, grid.width, grid.height))
    if part.area == 0:
        x0, y0, x1, y1 = grid.to_world(shapely.box(0, 0, grid.width, grid.height)).bounds
        raise ConfigError(
            f"{where}: does not overlap the scene, which reaches from ({x0:.9g}, {y0:.9g}) to ({x1:.9g}, {y1:.9g}) in "
            f"{grid.name if grid.crs is not None else 'pixels'} (x, y)"
        )
    return part


def _split(name: str) -> tuple[str, str | None]:
    """File and layer of ``FILE:LAYER``; the layer None where it is a file by itself."""
    file, colon, layer = name.rpartition(":")
    if colon and layer and not Path(name).exists() and Path(file).exists():
        return file, layer
    return name, None
