"""What in a row is allowed and yet unlikely to be meant: coordinates of another frame, odd targets, odd pictures.

Every function returns one sentence: what was found and the remedy. Coordinates are pixels of the upright image, x to
the right, y down, (0, 0) at the outer corner of the top-left pixel.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from grasp_rl.data.annotations import Row
from grasp_rl.types import BoolMask, Image, SpatialPrompt

LARGEST, SMALLEST = 0.95, 4
"""Share of the image, and number of pixels, beyond which a target is unlikely."""
BEYOND = 0.01
"""How far an annotation may reach beyond the image, as hand-drawn ones do, in shares of its longer side."""
_FLAT = 3
"""Levels of 255 within which pixels count as equal, as JPEG's noise does."""
_BLACK = 0.99
"""Share of black pixels of a black picture."""
_ORIENTATION = 0x0112
"""The EXIF tag that says how the camera was held; 5..8 swap width and height."""
_UNREADABLE = (OSError, ValueError, SyntaxError, TypeError, Pillow.DecompressionBombError)
"""What Pillow raises for a file that is damaged, or none of its formats (which another reader may know)."""

USUAL_SPLITS = ("train", "val", "test", "test_ood")
_ALIASES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


def coordinates(row: Row, size: tuple[int, int], *, turned: bool) -> str | None:
    """What is wrong with the frame of a row's polygons or boxes in an image of ``size`` (height, width).

    Args:
        row: any row; those without coordinates are passed.
        size: of the upright image.
        turned: whether the file holds the image with width and height swapped, and an EXIF tag that says so.
    """
    if row.kind not in ("polygons", "boxes") or not row.target:
        return None
    points = np.concatenate([np.asarray(item, dtype=np.float64).reshape(-1, 2) for item in row.target])
    extent, slack = np.array([size[1], size[0]]), BEYOND * max(size)
    if row.extent is not None:  # the reader brings them into pixels
        points = points * extent / row.extent
    low, high = points.min(axis=0), points.max(axis=0)
    if row.extent is None and (low >= -0.01).all() and (high <= 1.01).all() and max(size) > 2:
        return (
            f"{row.kind}: all coordinates are between 0 and 1, shares of the image and not pixels; multiply x by its "
            f"width ({size[1]}) and y by its height ({size[0]})"
        )
    if (low >= -slack).all() and (high <= extent + slack).all():
        return None
    extreme = f"from ({low[0]:g}, {low[1]:g}) to ({high[0]:g}, {high[1]:g})"
    reach = (
        f"{row.kind}: reaches {extreme} in an image of {size[1]} x {size[0]} (width x height); training cuts it off: "
    )
    if turned and (low >= -slack).all() and (high <= extent[::-1] + slack).all():
        return reach + _turned(size)
    if (low >= 0).all() and (high <= 1000).all():
        reach += "where coordinates are thousandths of the image, multiply x by its width / 1000 and y by its height / "
        return reach + "1000; else give it in pixels of this image, or clip it yourself"
    return reach + "give it in pixels of this image, or clip it yourself"


def _turned(size: tuple[int, int]) -> str:
    return (
        f"it fits the {size[0]} x {size[1]} (width x height) that the file holds before its EXIF rotation is applied; "
        "turn the annotation with the image, or save the image upright and without the tag"
    )


def mask_before_rotation(row: Row, size: tuple[int, int]) -> str | None:
    """Whether a mask or run lengths are those of an image before it was turned to ``size`` (height, width)."""
    if row.kind not in ("mask", "rle") or size[0] == size[1]:
        return None
    first = row.target[0] if isinstance(row.target, list) else row.target  # run lengths may be several
    stored = tuple(first["size"]) if row.kind == "rle" else _header(first)[0]
    return f"{row.kind}: {_turned(size)}" if stored == size[::-1] else None


def target(row: Row, mask: BoolMask | None, labels: tuple[SpatialPrompt, ...], size: tuple[int, int]) -> Iterator[str]:
    """What is odd about a target: its ``mask`` [H, W], or its boxes in ``labels`` where there is no mask."""
    if mask is None and labels:
        mask = np.zeros(size, dtype=np.bool_)
        for x0, y0, x1, y1 in (label.box for label in labels if label.box):
            mask[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = True
    area = 0 if mask is None else int(np.count_nonzero(mask))
    share = area / (size[0] * size[1])
    if share > LARGEST:
        yield f"{row.kind}: the target is {share:.1%} of the image; check it, target and background may be swapped"
    elif 0 < area < SMALLEST:
        yield f"{row.kind}: the target has {area} of {size[0] * size[1]} pixels; check its coordinates, or leave it out"
    if row.kind == "polygons" and not row.holes:
        inner = ring_in_ring(row.target)
        if inner is not None:
            yield (
                f"polygons: ring {inner[0]} lies within ring {inner[1]} and is a second instance, no hole; for a hole "
                'give "holes": true in the row, or rle'
            )


def ring_in_ring(rings: list[Any]) -> tuple[int, int] | None:
    """The first (inner, outer) of ``rings`` of which one lies within the other; equal rings are passed."""
    corners = [np.asarray(ring, dtype=np.float64) for ring in rings]
    low, high = (np.array([edge(ring, axis=0) for ring in corners]) for edge in (np.min, np.max))
    for outer in range(len(corners)):
        within = (low >= low[outer]).all(axis=1) & (high <= high[outer]).all(axis=1)
        within &= (low > low[outer]).any(axis=1) | (high < high[outer]).any(axis=1)
        for inner in np.flatnonzero(within):
            contour = corners[outer].astype(np.float32)
            if all(cv2.pointPolygonTest(contour, (float(x), float(y)), False) >= 0 for x, y in corners[inner]):
                return int(inner), outer
    return None


def picture(image: Image) -> str | None:
    """What is odd about a decoded image [H, W, 3] uint8 RGB."""
    lowest, highest = image.min(axis=(0, 1)), image.max(axis=(0, 1))
    if int((highest.astype(int) - lowest).max()) <= _FLAT:
        colour = ", ".join(str(int(level)) for level in highest)
        return f"the picture is flat, every pixel is ({colour}); get it again, or leave it out"
    black = float(np.mean((image <= _FLAT).all(axis=2)))
    if black >= _BLACK:
        return f"the picture is black in {black:.1%} of its pixels; stretch its values to 0..255, or leave it out"
    return None


def is_turned(path: Path) -> bool:
    """Whether the EXIF tag of the image in ``path`` swaps its width and height."""
    return _header(path)[1]


SURELY_TRANSPARENT = ("PNG", "WEBP", "GIF")
"""Formats whose fourth band is transparency and nothing else."""


def transparency(path: Path) -> str | None:
    """What is odd about the transparency of the image in ``path``."""
    try:
        with _opened(path) as image:
            if image.format not in SURELY_TRANSPARENT or not image.has_transparency_data:
                return None  # of a TIFF the reader tells what it takes the band for
            alpha: NDArray[np.uint8] = np.asarray(image.convert("RGBA").getchannel("A"))
    except _UNREADABLE:
        return None
    clear = float(np.mean(alpha < 255))
    if not clear:
        return None
    return f"the picture is transparent in {clear:.1%} of its pixels; save it as RGB over the colour that you mean"


@contextmanager
def _opened(path: Path) -> Iterator[Pillow.Image]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow about size and EXIF: whoever decodes the image judges both
        with Pillow.open(path) as image:
            yield image


def _header(path: Path) -> tuple[tuple[int, int] | None, bool]:
    """(height, width) that a file holds, None where Pillow cannot tell, and whether its EXIF tag swaps them."""
    try:
        with _opened(path) as image:
            return (image.height, image.width), image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except _UNREADABLE:
        return None, False


def alias(split: str) -> str | None:
    """A split's name that other projects use for a usual one."""
    usual = _ALIASES.get(split.lower())
    if usual is None:
        return None
    return f"split={split!r}: did you mean {usual}? Runs ask for {', '.join(USUAL_SPLITS[:3])}; rename it"
