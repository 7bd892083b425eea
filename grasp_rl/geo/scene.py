"""A raster as a scene: windows of 8-bit RGB at any resolution, by the rules of :mod:`grasp_rl.data.image_io`.

Values become 8 bits by one rule for the whole file, so that neighbouring windows look alike. What lies beside the file
(.aux.xml, .ovr, world files) changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from affine import Affine

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.image_io import MAX_PIXELS, ImageReading, Rendering, read_described, rendering_of
from grasp_rl.data.rasters import Raster, driver_of, hold_raster, hold_trusted, open_raster
from grasp_rl.geo.grid import IDENTITY, Grid
from grasp_rl.geo.paths import is_address, refers
from grasp_rl.geo.windows import Window, whole
from grasp_rl.types import BoolMask, Image

MOST_PIXELS = 100_000_000_000
"""Pixels that a header may claim."""
_WORLD_FILES = (".tfw", ".tifw", ".jgw", ".pgw", ".wld", ".prj")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """How a file has its pixels, for a raster that is to match it."""

    crs: Any = None
    """A rasterio CRS; None for none."""
    transform: Affine = IDENTITY
    columns: bool = False
    """Whether the scene shows its columns in the opposite order, and :attr:`rows` its rows."""
    rows: bool = False


class Scene(Protocol):
    """An open raster."""

    @property
    def grid(self) -> Grid:
        """Its pixels, in the order in which they are shown: not mirrored, north up."""
        ...

    @property
    def stored(self) -> Stored: ...

    @property
    def description(self) -> str:
        """What is done to stored values in words, and what is known of the place."""
        ...

    @property
    def gaps(self) -> bool:
        """Whether some pixels may have no data."""
        ...

    @property
    def assumed(self) -> tuple[int, ...]:
        """The bands, from 1, that are shown as red, green and blue although nobody says that they are."""
        ...

    def read(self, grid: Grid, window: Window) -> tuple[Image, BoolMask]:
        """A window of ``grid``, this scene's own or one that :meth:`Grid.resampled` made of it.

        Returns:
            [H, W, 3] uint8 RGB, and [H, W] where there are data.
        """
        ...


@dataclass(frozen=True)
class RasterScene:
    """A TIFF or the like, read window by window."""

    raster: Raster
    rendering: Rendering
    grid: Grid
    stored: Stored
    description: str
    assumed: tuple[int, ...] = ()

    @property
    def gaps(self) -> bool:
        layout = self.raster.layout
        return layout.no_data or layout.dtype.kind == "f" or self.rendering.alpha is not None

    def read(self, grid: Grid, window: Window) -> tuple[Image, BoolMask]:
        across, down = self.grid.width / grid.width, self.grid.height / grid.height
        left = grid.width - window.right if self.stored.columns else window.left
        top = grid.height - window.bottom if self.stored.rows else window.top
        place = (left * across, top * down, window.width * across, window.height * down)
        with self.raster.guarded():
            block = self.raster.block(self.rendering.used, place, (window.height, window.width))
        colours = np.broadcast_to(self.rendering.colours(block), (window.height, window.width, 3))
        order = slice(None, None, -1 if self.stored.rows else 1), slice(None, None, -1 if self.stored.columns else 1)
        return np.ascontiguousarray(colours[order]), np.ascontiguousarray(self.rendering.seen(block)[order])


@dataclass(frozen=True)
class PictureScene:
    """An image without a place on the earth, held whole."""

    image: Image
    grid: Grid
    description: str
    stored: Stored = Stored()
    gaps: bool = False
    assumed: tuple[int, ...] = ()

    def read(self, grid: Grid, window: Window) -> tuple[Image, BoolMask]:
        image = self.image
        if grid.size != self.grid.size:
            image = np.asarray(cv2.resize(image, grid.size[::-1], interpolation=cv2.INTER_AREA), dtype=np.uint8)
        part = image[window.top : window.bottom, window.left : window.right]
        return np.ascontiguousarray(part), np.ones(part.shape[:2], dtype=np.bool_)


@contextmanager
def open_scene(name: str, reading: ImageReading, *, trust: bool = False) -> Iterator[Scene]:
    """The scene that ``name``, a path, means; with ``trust`` also a VRT, or a path of GDAL's such as ``/vsicurl/...``.

    Raises:
        ImageError: as :func:`~grasp_rl.data.image_io.read_image`.
        ConfigError: its place on the earth makes no sense.
    """
    path = Path(name)
    if trust and (is_address(name) or refers(path)):
        with hold_trusted(name, MOST_PIXELS) as raster:
            yield _scene(path, raster, reading)
        return
    driver = driver_of(_head(path))
    if driver is None or _is_turned(path, driver):
        image, description = read_described(path, MAX_PIXELS, reading)
        grid = Grid(image.shape[1], image.shape[0])
        yield PictureScene(image, grid, "; ".join(part for part in ("no CRS", _beside(path), description) if part))
        return
    with hold_raster(path, driver, MOST_PIXELS) as raster:
        yield _scene(path, raster, reading)


def crs_of(path: Path) -> str | None:
    """The CRS of a raster for a person, such as ``EPSG:32617``, told by its header; None where it has none.

    Needs nothing of the extra ``geo``.
    """
    grid = grid_of(path)
    if grid is None or grid.crs is None:
        return None
    authority = grid.crs.to_authority()
    return ":".join(authority) if authority else "a CRS of its own"


def grid_of(path: Path) -> Grid | None:
    """The size and the place of a raster, told by its header; None for an image of another kind.

    Raises:
        ImageError: it is damaged.
    """
    driver = driver_of(_head(path))
    if driver is None:
        return None
    with open_raster(path, driver, MOST_PIXELS) as raster:
        return _grid(raster)


def grid_by_name(name: str, *, trust: bool = False) -> Grid | None:
    """:func:`grid_of`; with ``trust`` also of what :func:`open_scene` opens then. None where it cannot be read."""
    path = Path(name)
    try:
        if trust and (is_address(name) or refers(path)):
            with hold_trusted(name, MOST_PIXELS) as raster:
                return _grid(raster)
        return grid_of(path)
    except (ConfigError, OSError):
        return None


def fingerprint(name: str) -> str:
    """Tells a scene from another by name, size, time of change and its first and last megabyte."""
    path = Path(name)
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass"))
    if path.is_file():
        state = path.stat()
        digest.update(f"{state.st_size} {state.st_mtime_ns}".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, state.st_size - (1 << 20)))
            digest.update(file.read(1 << 20))
    return digest.hexdigest()


def pixel_text(size: tuple[float, float]) -> str:
    """How :attr:`Scene.description` says the size (width, height) of a pixel in metres."""
    return f"{size[0]:.3g} x {size[1]:.3g} m a pixel"


def _scene(path: Path, raster: Raster, reading: ImageReading) -> RasterScene:
    own, dataset = _grid(raster), raster.dataset
    with raster.guarded():
        rendering = rendering_of(path, raster, reading)
    columns, rows = own.reversals
    grid, size = own.reversed(columns, rows), own.ground_size
    stored = Stored(crs=dataset.crs, transform=dataset.transform, columns=columns, rows=rows)
    if size is None:
        place = "; ".join(part for part in ("no CRS", _half_a_place(raster), _beside(path)) if part)
    else:
        place = f"{grid.name}, {pixel_text(size)}"
    if columns or rows:
        order = " and ".join(name for name, given in (("rows", rows), ("columns", columns)) if given)
        place += f", {order} shown in the opposite order so that the image is not mirrored and north is up"
    shown = {dataset.colorinterp[band].name for band in rendering.bands}
    guessed = reading.bands is None and dataset.count > len(rendering.bands) == 3 and shown != {"red", "green", "blue"}
    assumed = tuple(band + 1 for band in rendering.bands) if guessed else ()
    description = "; ".join(part for part in (place, rendering.note) if part)
    return RasterScene(raster, rendering, grid, stored, description, assumed)


def _grid(raster: Raster) -> Grid:
    dataset = raster.dataset
    if dataset.crs is None or dataset.transform.is_identity:
        return Grid(dataset.width, dataset.height)
    if dataset.transform.is_degenerate:
        raise ConfigError(f"{raster.path}: its transform {tuple(dataset.transform)[:6]} makes no pixel; repair it")
    return Grid(dataset.width, dataset.height, dataset.transform, dataset.crs)


def _beside(path: Path) -> str:
    """A remark on a file beside ``path`` that may say where it lies, and is not read."""
    names = [f"{path.name}.aux.xml", *(f"{path.stem}{ending}" for ending in _WORLD_FILES)]
    sidecar = next((name for name in names if path.with_name(name).is_file()), None)
    return (
        f"{sidecar} beside it is not read: put its place into the file (gdal_translate IN OUT.tif)" if sidecar else ""
    )


def _half_a_place(raster: Raster) -> str:
    """A remark on what a raster without a place on the earth has of one."""
    dataset = raster.dataset
    if dataset.gcps[0]:
        return "ground control points alone: warp it first (gdalwarp IN OUT.tif) to have a map layer"
    if dataset.crs is not None:
        return "a CRS without a transform: its corners are not known (gdal_edit -a_ullr X0 Y0 X1 Y1 FILE)"
    if not dataset.transform.is_identity:
        return "a transform without a CRS: assign it (gdal_edit -a_srs EPSG:CODE FILE) to have a map layer"
    return ""


def _is_turned(path: Path, driver: str) -> bool:
    """Whether a raster's rows are to be turned, so that it is read whole; one with a place on the earth never is."""
    with open_raster(path, driver, MOST_PIXELS) as raster:
        return raster.layout.orientation != 1 and _grid(raster).crs is None


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1024)
    except OSError:
        return b""  # the reader says what is wrong


def overview(scene: Scene, side: int) -> tuple[Any, Image]:
    """Its grid and [H, W, 3] uint8 RGB at most ``side`` pixels long, which are square on the ground."""
    grid = scene.grid.squared()
    factor = min(1.0, side / max(grid.size))
    small = grid.of_size(max(1, round(grid.width * factor)), max(1, round(grid.height * factor)))
    return small, scene.read(small, whole(small))[0]
