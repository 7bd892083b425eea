"""From a row of an annotations file to its picture, its mask and its cues."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from grasp_rl.data.annotations import AnnotationError, Row
from grasp_rl.data.image_io import ImageError, read_image, read_mask
from grasp_rl.data.rasterize import ShapeError, decode_rle, parts, ring_mask
from grasp_rl.data.weak_labels import cues_from_masks
from grasp_rl.types import BoolMask, Box, Image, SpatialPrompt


def read_picture(row: Row, max_pixels: int) -> Image:
    """The picture of ``row``, [H, W, 3] uint8 RGB.

    Raises:
        AnnotationError: it cannot be read.
    """
    try:
        return read_image(row.image, max_pixels)
    except ImageError as error:
        raise AnnotationError(f"image: {error}") from error


def target_of(row: Row, size: tuple[int, int], max_pixels: int) -> tuple[BoolMask | None, tuple[SpatialPrompt, ...]]:
    """The mask [H, W] and the cues of ``row`` in a picture of ``size`` (height, width).

    A ring of ``polygons`` is an instance; in a ``mask`` or ``rle`` every connected part is one. ``boxes`` are cues
    without points, and there is no mask.

    Raises:
        AnnotationError: the target does not fit the picture.
    """
    try:
        if row.kind == "boxes":
            return None, tuple(sorted((_box_cue(box, size) for box in row.target), key=lambda cue: cue.box or ()))
        if row.kind == "polygons":
            mask = np.zeros(size, dtype=np.bool_)
            cues = cues_from_masks(_rings_into(mask, row))
            return mask, cues
        mask = read_mask(row.target, size, max_pixels) if row.kind == "mask" else decode_rle(row.target, size)
        return mask, cues_from_masks(parts(mask))
    except (ShapeError, ImageError) as error:
        raise AnnotationError(f"{row.kind}: {error}") from error


def _rings_into(mask: BoolMask, row: Row) -> Iterator[BoolMask]:
    """The mask of every ring, each added to ``mask`` in passing."""
    for ring in row.target:
        instance = ring_mask(ring, (mask.shape[0], mask.shape[1]))
        mask |= instance
        yield instance


def _box_cue(box: Sequence[float], size: tuple[int, int]) -> SpatialPrompt:
    height, width = size
    x0, x1 = (float(min(max(v, 0), width)) for v in (box[0], box[2]))
    y0, y1 = (float(min(max(v, 0), height)) for v in (box[1], box[3]))
    if x0 >= x1 or y0 >= y1:
        raise ShapeError(f"{list(box)} is outside the picture of {width} x {height}; give it in pixels of this picture")
    clipped: Box = (x0, y0, x1, y1)
    return SpatialPrompt(box=clipped)
