"""Where the pixels of a raster lie on the earth.

Pixels are in the frame of :mod:`grasp_rl.types`: x to the right, y down, (0, 0) at the outer corner of the top-left
pixel. Coordinates of the earth are (x, y) = (easting, northing) or (longitude, latitude), in this order whatever the
definition of the CRS says, as in GeoTIFF, GeoPackage and GeoJSON.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from grasp_rl.config.errors import ConfigError

if TYPE_CHECKING:
    from pyproj import CRS

IDENTITY = Affine.identity()
LONGITUDE_LATITUDE = "OGC:CRS84"
SQUARE = 1.02
"""Largest ratio of the sides of a pixel on the ground that is shown as a square without resampling."""


@dataclass(frozen=True)
class Grid:
    """A raster's size and its place: an affine transform into a coordinate reference system."""

    width: int
    height: int
    transform: Affine = IDENTITY
    """From (x, y) in pixels to coordinates of :attr:`crs`; any, also turned or with y upwards."""
    crs: Any = None
    """A rasterio CRS, kept as the file has it; None where the place on the earth is not known."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width

    @cached_property
    def projection(self) -> CRS:
        """The CRS for pyproj and geopandas.

        Raises:
            ConfigError: there is none.
        """
        import pyproj

        if self.crs is None:
            raise ConfigError("the raster has no CRS; assign it (gdal_edit -a_srs EPSG:CODE FILE)")
        return pyproj.CRS.from_user_input(self.crs)

    @property
    def name(self) -> str:
        """Of the CRS, for a person: ``EPSG:32617`` where it has a code."""
        return "no CRS" if self.crs is None else name_of(self.projection)

    @cached_property
    def _middle(self) -> tuple[list[float], list[float]]:
        """Azimuths in degrees and lengths in metres of a step of one pixel to the right and one down, in the middle.

        Raises:
            ConfigError: the CRS and the transform lead nowhere on the earth.
        """
        import pyproj

        x, y = self.width / 2, self.height / 2
        ends = placed(np.array([(x - 0.5, y), (x + 0.5, y), (x, y - 0.5), (x, y + 0.5)]), self.transform)
        lon, lat = to_lonlat(self.projection).transform(ends[:, 0], ends[:, 1])
        if not np.isfinite([*lon, *lat]).all():
            raise ConfigError(
                f"the middle of the raster has no longitude and latitude in {self.name}: is that its CRS?"
            )
        azimuths, _, lengths = pyproj.Geod(ellps="WGS84").inv(lon[::2], lat[::2], lon[1::2], lat[1::2])
        return [float(azimuth) for azimuth in azimuths], [float(length) for length in lengths]

    @property
    def ground_size(self) -> tuple[float, float] | None:
        """(width, height) in metres on the WGS 84 ellipsoid of the pixel in the middle; None without a CRS.

        Raises:
            ConfigError: the CRS and the transform lead nowhere on the earth.
        """
        if self.crs is None:
            return None
        _, (width, height) = self._middle
        return width, height

    @property
    def gsd(self) -> float | None:
        """Metres of a pixel in the middle, the root of its area; None without a CRS."""
        size = self.ground_size
        return None if size is None else math.sqrt(math.prod(size))

    @property
    def reversals(self) -> tuple[bool, bool]:
        """Whether columns, and whether rows, are to be reversed so that the image is not mirrored and north is up.

        What is turned alone stays as it is, unless its transform turns it by half a circle: a polar projection has
        north in every direction. Nothing is reversed without a CRS.
        """
        if self.crs is None:
            return False, False
        right, down = np.radians(self._middle[0])
        east, north = np.sin(right), -np.cos(down)
        if np.sin(down - right) < 0:  # down lies to the left of right: mirrored
            columns = bool(east < 0 and abs(east) >= abs(np.cos(right)))
            return columns, not columns
        half = bool(east < 0 and north < 0 and self.transform.a < 0 < self.transform.e)
        return half, half

    def reversed(self, columns: bool, rows: bool) -> Grid:
        """The same ground with columns, or rows, in the opposite order."""
        a, b, c, d, e, f = self.transform[:6]
        if columns:
            a, c, d, f = -a, c + a * self.width, -d, f + d * self.width
        if rows:
            b, c, e, f = -b, c + b * self.height, -e, f + e * self.height
        return Grid(self.width, self.height, Affine(a, b, c, d, e, f), self.crs)

    def to_look_at(self, gsd: float | None) -> Grid:
        """:meth:`resampled` to ``gsd`` metres; :meth:`squared` where that is None."""
        return self.squared() if gsd is None else self.resampled(gsd)

    def squared(self) -> Grid:
        """The same ground in pixels that are square there, as fine as the shorter side of its own.

        Itself where its own are square (:data:`SQUARE`), or without a CRS.
        """
        size = self.ground_size
        if size is None or max(size) <= SQUARE * min(size):
            return self
        return self.of_size(
            *(max(1, round(n * m / min(size))) for n, m in zip((self.width, self.height), size, strict=True))
        )

    def resampled(self, gsd: float) -> Grid:
        """The same ground in pixels of ``gsd`` metres, to the next whole number of pixels.

        Raises:
            ConfigError: there is no CRS to know metres by, or the pixels would be too many or none.
        """
        if self.ground_size is None:
            raise ConfigError(
                "--gsd: the raster has no CRS, so its metres are not known; leave it out, or assign the CRS"
            )
        across, down = self.width * self.ground_size[0] / gsd, self.height * self.ground_size[1] / gsd
        if not (0.5 <= across <= 4e6 and 0.5 <= down <= 4e6):
            raise ConfigError(
                f"--gsd {gsd:g}: makes {across:.3g} x {down:.3g} pixels of a raster whose pixels are "
                f"{self.ground_size[0]:.3g} x {self.ground_size[1]:.3g} m; take a value nearer to that"
            )
        return self.of_size(max(1, round(across)), max(1, round(down)))

    def of_size(self, width: int, height: int) -> Grid:
        """The same ground in ``width`` x ``height`` pixels."""
        across, down = self.width / width, self.height / height
        a, b, c, d, e, f = self.transform[:6]
        scaled = Affine(a * across, b * down, c, d * across, e * down, f)
        return Grid(width, height, scaled, self.crs)

    def to_world(self, geometries: Any) -> Any:
        """Shapely geometries of pixels in coordinates of :attr:`crs`; as they are without one."""
        return geometries if self.crs is None else _moved(geometries, self.transform)

    def to_pixels(self, geometries: Any) -> Any:
        """Shapely geometries of coordinates of :attr:`crs` in pixels; as they are without one."""
        return geometries if self.crs is None else _moved(geometries, ~self.transform)


def name_of(crs: CRS) -> str:
    """``crs`` for a person: ``EPSG:32617`` where it has a code."""
    authority = crs.to_authority()
    return ":".join(authority) if authority else str(crs.name)


def to_lonlat(crs: CRS) -> Any:
    """The pyproj transformer from ``crs`` to WGS 84, (x, y) to (longitude, latitude).

    Raises:
        ConfigError: there is none, as from a grid of somebody's own.
    """
    import pyproj

    try:
        return pyproj.Transformer.from_crs(crs, LONGITUDE_LATITUDE, always_xy=True)
    except pyproj.exceptions.ProjError as error:
        raise ConfigError(
            f"CRS {crs.name}: has no known place on the earth; assign the one it stands for (gdal_edit -a_srs "
            "EPSG:CODE FILE), or take it away (gdal_edit -a_srs None FILE) to work in pixels"
        ) from error


def areas_and_perimeters(geometries: Any, crs: CRS) -> tuple[list[float], list[float]]:
    """Square metres and metres of polygons on the WGS 84 ellipsoid, holes taken out of the area.

    Args:
        geometries: N polygons or multipolygons in coordinates of ``crs``.
        crs: theirs.
    """
    import pyproj
    import shapely

    geod, transformer = pyproj.Geod(ellps="WGS84"), to_lonlat(crs)
    areas, perimeters = [], []
    for geometry in geometries:
        there = shapely.transform(
            dense(geometry, crs), lambda c: np.column_stack(transformer.transform(c[:, 0], c[:, 1]))
        )
        area = perimeter = 0.0
        for polygon in shapely.get_parts([there]).tolist():
            for number, ring in enumerate((polygon.exterior, *polygon.interiors)):
                signed, length = geod.geometry_area_perimeter(ring)
                area += -abs(signed) if number else abs(signed)
                perimeter += length
        areas.append(area)
        perimeters.append(perimeter)
    return areas, perimeters


def placed(points: NDArray[np.float64], transform: Affine) -> NDArray[np.float64]:
    """``transform`` of ``points`` [N, 2]."""
    a, b, c, d, e, f = transform[:6]
    return np.column_stack([a * points[:, 0] + b * points[:, 1] + c, d * points[:, 0] + e * points[:, 1] + f])


def _moved(geometries: Any, transform: Affine) -> Any:
    import shapely

    return shapely.transform(geometries, lambda points: placed(points, transform))


def dense(geometries: Any, crs: CRS) -> Any:
    """Shapely ``geometries`` with points along edges of more than about a kilometre.

    What is straight in one CRS is bent in another: by centimetres for an edge as short as that.
    """
    import shapely

    step = 0.01 if crs.is_geographic else 1000.0 / crs.axis_info[0].unit_conversion_factor
    return shapely.segmentize(geometries, step)
