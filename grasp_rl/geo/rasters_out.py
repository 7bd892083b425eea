"""Results as rasters on the scene's own grid: a mask or an agreement as cloud-optimised GeoTIFF, an overlay as PNG.

Written block by block, so that a large scene fits the memory; blocks that nobody looked at take no room.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grasp_rl.data.visualization import draw_overlay, with_caption
from grasp_rl.geo.grid import IDENTITY, Grid
from grasp_rl.geo.polygons import mask_of
from grasp_rl.geo.scan import FULL
from grasp_rl.geo.scene import Scene, Stored, overview
from grasp_rl.geo.windows import Window
from grasp_rl.types import BoolMask, Image

NOT_SEEN = 255
"""In a mask and in an agreement: no answer, or none that could be read."""
_BLOCK = 512
Values = NDArray[np.uint8]
Validity = Callable[[Window], BoolMask]
"""[H, W] where there are data in a window."""


def write_mask(
    path: Path,
    grid: Grid,
    geometries: Sequence[Any],
    seen: Sequence[Any],
    valid: Validity | None = None,
    *,
    stored: Stored | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write a COG of ``grid``: 1 on the target, 0 beside it, :data:`NOT_SEEN` without data or an answer that was read.

    Args:
        path: of the file.
        grid: size, transform and CRS of the result.
        geometries: shapely polygons of the target in pixels of ``grid``; a pixel is on it iff its centre is.
        seen: polygons of what was looked at.
        valid: says where ``grid`` has data; None for everywhere.
        stored: see :func:`write_cog`.
        tags: see :func:`write_cog`.

    Raises:
        OSError: it cannot be written.
    """
    import shapely

    targets, places = shapely.STRtree(list(geometries)), shapely.STRtree(list(seen))

    def values(block: Window) -> Values | None:
        near = [seen[i] for i in places.query(block.polygon)]
        if not near:
            return None
        size = (block.height, block.width)
        known = mask_of(near, size, block.left, block.top)
        if valid is not None:
            known &= valid(block)
        on = mask_of([geometries[i] for i in targets.query(block.polygon)], size, block.left, block.top)
        return np.where(known, on.astype(np.uint8), np.uint8(NOT_SEEN))

    said = "1 target, 0 not, 255 no data or not looked at"
    write_cog(path, grid, values, description=said, stored=stored, tags=tags)


def write_agreement(
    path: Path,
    grid: Grid,
    windows: Sequence[Window],
    share: Callable[[Window], Values],
    valid: Validity | None = None,
    *,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write a COG of ``grid``: percent of the answers that have a pixel, the mean of the windows that show it.

    Args:
        path: of the file.
        grid: of the windows.
        windows: that were answered.
        share: gives shares [H, W] of a window in steps of 1 / :data:`~grasp_rl.geo.scan.FULL`.
        valid: says where ``grid`` has data; None for everywhere.
        tags: see :func:`write_cog`.

    Raises:
        OSError: it cannot be written.
    """
    import shapely

    tree = shapely.STRtree([window.polygon for window in windows])

    def values(block: Window) -> Values | None:
        near = [windows[i] for i in tree.query(block.polygon)]
        total = np.zeros((block.height, block.width), dtype=np.float32)
        count = np.zeros_like(total)
        for window in near:
            left, top = max(window.left, block.left), max(window.top, block.top)
            right, bottom = min(window.right, block.right), min(window.bottom, block.bottom)
            if left < right and top < bottom:
                here = slice(top - block.top, bottom - block.top), slice(left - block.left, right - block.left)
                there = slice(top - window.top, bottom - window.top), slice(left - window.left, right - window.left)
                total[here] += share(window)[there]
                count[here] += 1
        if not count.any():
            return None
        if valid is not None:
            count *= valid(block)
        percent = np.rint(total / np.maximum(count, 1) * (100 / FULL)).astype(np.uint8)
        return np.where(count > 0, percent, np.uint8(NOT_SEEN))

    write_cog(path, grid, values, description="percent of the answers, 255 no data or not looked at", tags=tags)


def write_cog(
    path: Path,
    grid: Grid,
    values: Callable[[Window], Values | None],
    *,
    description: str,
    stored: Stored | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write a cloud-optimised GeoTIFF of one 8-bit band, whole or not at all.

    Args:
        path: of the file.
        grid: size, transform and CRS.
        values: gives [H, W] of a block of ``grid``; None leaves it :data:`NOT_SEEN`.
        description: of the band.
        stored: the file that the raster is to match in transform, CRS and order of its pixels; None for ``grid``.
        tags: of the file by name.

    Raises:
        OSError: it cannot be written.
    """
    import rasterio
    from rio_cogeo.cogeo import cog_translate
    from rio_cogeo.profiles import cog_profiles

    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": "GTiff", "dtype": "uint8", "count": 1, "width": grid.width, "height": grid.height, "nodata": NOT_SEEN,
        "tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "deflate", "SPARSE_OK": "TRUE",
        "BIGTIFF": "IF_SAFER",
    }  # fmt: skip
    stored = stored or Stored(crs=grid.crs, transform=grid.transform if grid.crs is not None else IDENTITY)
    profile |= {"crs": stored.crs} if stored.crs is not None else {}
    profile |= {} if stored.transform.is_identity else {"transform": stored.transform}
    order = slice(None, None, -1 if stored.rows else 1), slice(None, None, -1 if stored.columns else 1)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rasterio about a raster without a place on the earth
        plain, cog = Path(folder, "plain.tif"), Path(folder, path.name)
        with rasterio.Env(GDAL_CACHEMAX=64 << 20, GDAL_NUM_THREADS=1):
            with rasterio.open(plain, "w", **profile) as file:
                file.set_band_description(1, description)
                file.update_tags(**(tags or {}))
                for top in range(0, grid.height, _BLOCK):
                    for left in range(0, grid.width, _BLOCK):
                        block = Window(left, top, min(_BLOCK, grid.width - left), min(_BLOCK, grid.height - top))
                        left_shown = grid.width - block.right if stored.columns else left
                        top_shown = grid.height - block.bottom if stored.rows else top
                        pixels = values(Window(left_shown, top_shown, block.width, block.height))
                        if pixels is not None:
                            file.write(pixels[order], 1, window=((block.top, block.bottom), (block.left, block.right)))
            options = {**cog_profiles.get("deflate"), "SPARSE_OK": True, "BIGTIFF": "IF_SAFER"}
            cog_translate(
                str(plain), str(cog), options, nodata=NOT_SEEN, in_memory=False, overview_resampling="nearest",
                forward_band_tags=True, quiet=True,
            )  # fmt: skip
        os.replace(cog, path)


def draw(scene: Scene, geometries: Sequence[Any], query: str, side: int) -> Image:
    """The scene, at most ``side`` pixels long, with the target tinted and the question above it: [h, w, 3] uint8 RGB.

    Args:
        scene: is read once, small.
        geometries: shapely polygons in pixels of the scene's own grid.
        query: the question.
        side: of the longer side.
    """
    import shapely

    small, image = overview(scene, side)
    across, down = small.width / scene.grid.width, small.height / scene.grid.height
    scaled = [shapely.transform(geometry, lambda p: p * [across, down]) for geometry in geometries]
    mask: BoolMask = mask_of(scaled, small.size)
    return with_caption(draw_overlay(image, mask=mask, side=max(small.size)), query)
