"""Masks as polygons and back, without a loss: a polygon runs along the edges of pixels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
from affine import Affine

from grasp_rl.types import BoolMask


def polygons_of(mask: BoolMask, left: int = 0, top: int = 0) -> Any:
    """A shapely MultiPolygon, valid, that covers exactly the pixels of ``mask`` [H, W]; empty where none is set.

    Args:
        mask: [H, W] bool.
        left: column of its first pixel in the frame that the polygons are in.
        top: row of it.
    """
    import shapely
    from rasterio.features import shapes
    from shapely.geometry import shape

    if not mask.any():
        return shapely.MultiPolygon()
    outlines = shapes(mask.astype(np.uint8), mask=mask, connectivity=4, transform=Affine.translation(left, top))
    parts = [shape(outline) for outline, _ in outlines]
    whole = [part if part.is_valid else shapely.make_valid(part) for part in parts]
    return multi(polygon for part in whole for polygon in shapely.get_parts([part]).tolist())


def multi(polygons: Iterable[Any]) -> Any:
    """One MultiPolygon of polygons that do not overlap; lines and points among them are left out."""
    import shapely

    return shapely.MultiPolygon([p for p in polygons if p.geom_type == "Polygon" and not p.is_empty])


def mask_of(geometries: Iterable[Any], size: tuple[int, int], left: float = 0, top: float = 0) -> BoolMask:
    """The pixels [H, W] whose centre is inside one of some shapely geometries in pixels.

    Args:
        geometries: polygons or multipolygons.
        size: (height, width) of the mask.
        left: x of the mask's own left edge in the frame of the geometries.
        top: y of its top edge.
    """
    from rasterio.features import rasterize

    kept = [geometry for geometry in geometries if not geometry.is_empty]
    if not kept:
        return np.zeros(size, dtype=np.bool_)
    drawn = rasterize(kept, out_shape=size, transform=Affine.translation(left, top), dtype=np.uint8)
    return np.asarray(drawn != 0, dtype=np.bool_)


def components(mask: BoolMask) -> list[BoolMask]:
    """The 8-connected parts [H, W] of a mask, all of them, the largest first."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    order = np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable") + 1
    return [np.asarray(labels == index, dtype=np.bool_) for index in order.tolist()]
