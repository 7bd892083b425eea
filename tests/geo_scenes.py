"""Scenes for the tests of map layers: bright things on dark ground, in any CRS, and who finds them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray

from grasp_rl.geo.grid import Grid
from grasp_rl.geo.polygons import components
from grasp_rl.geo.scan import WindowAnswer
from grasp_rl.types import BoolMask, Image

BRIGHT = 150
"""From here on a pixel belongs to a thing."""

PLACES: dict[str, tuple[str, Affine]] = {
    "4326": ("EPSG:4326", Affine(1e-5, 0, 24.9, 0, -1e-5, 60.2)),
    "32617": ("EPSG:32617", Affine(0.5, 0, 500000, 0, -0.5, 4000000)),
    "32733": ("EPSG:32733", Affine(2.0, 0, 300000, 0, -2.0, 6200000)),
    "3395": ("EPSG:3395", Affine(1.5, 0, -12000000, 0, -1.5, 4400000)),
    "28992": ("EPSG:28992", Affine(0.25, 0, 120000, 0, -0.25, 487000)),
    "31467": ("EPSG:31467", Affine(1.0, 0, 3500000, 0, -1.0, 5400000)),  # defined as northing, easting
    "2263": ("EPSG:2263", Affine(1.0, 0, 990000, 0, -1.0, 200000)),  # US survey feet
    "rotated": ("EPSG:32617", Affine(0.4, 0.3, 500000, 0.3, -0.4, 4000000)),
    "upwards": ("EPSG:32617", Affine(0.5, 0, 500000, 0, 0.5, 4000000)),
    "half": ("EPSG:32617", Affine(-0.5, 0, 500000, 0, 0.5, 4000000)),
    "leftwards": ("EPSG:32617", Affine(-0.5, 0, 500000, 0, -0.5, 4000000)),
}
"""CRS and transform by name, also turned and mirrored ones."""


def grid(size: tuple[int, int], place: str = "32617") -> Grid:
    """A grid of ``size`` (height, width) at one of :data:`PLACES`."""
    crs, transform = PLACES[place]
    return Grid(size[1], size[0], transform, rasterio.CRS.from_user_input(crs))


def ground(size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """[H, W, 3] dark noise."""
    return np.random.default_rng(seed).integers(20, 90, (*size, 3)).astype(np.uint8)


def things(size: tuple[int, int], boxes: Sequence[tuple[int, int, int, int]], seed: int = 0) -> NDArray[np.uint8]:
    """:func:`ground` with bright boxes (x0, y0, x1, y1)."""
    image = ground(size, seed)
    for x0, y0, x1, y1 in boxes:
        image[y0:y1, x0:x1] = 200
    return image


def write(path: Path, image: NDArray[Any], place: str | None = "32617", **profile: Any) -> Path:
    """Write [H, W, bands] as a GeoTIFF at one of :data:`PLACES`; nowhere for None."""
    where = {} if place is None else dict(zip(("crs", "transform"), PLACES[place], strict=True))
    shape = {"height": image.shape[0], "width": image.shape[1], "count": image.shape[2], "dtype": image.dtype}
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", **({"driver": "GTiff"} | where | shape | profile)) as file:
            file.write(np.moveaxis(image, -1, 0))
    return path


def bright(image: Image) -> BoolMask:
    """[H, W] where a thing is."""
    return np.asarray(image[..., 0] >= BRIGHT, dtype=np.bool_)


class Finder:
    """Finds every bright thing of every window; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[int, int], str]] = []

    def __call__(self, images: Sequence[Image], query: str) -> list[WindowAnswer]:
        self.asked += [((image.shape[0], image.shape[1]), query) for image in images]
        found = [components(bright(image)) for image in images]
        return [WindowAnswer(masks=masks, confidences=[None] * len(masks), text="said") for masks in found]
