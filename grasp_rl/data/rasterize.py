"""Masks from what an annotation says: polygons, run lengths, connected parts. NumPy and OpenCV; nothing trusted.

Everything is in pixels of the image, in the house's one frame: (0, 0) is the outer corner of the top-left pixel and
a pixel belongs to a shape iff its centre does. So the ring (3, 3) (6, 3) (6, 6) (3, 6) covers columns and rows 3..5,
where OpenCV's filler, which paints outlines as well, would cover 3..6.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from grasp_rl.config.errors import ConfigError
from grasp_rl.types import BoolMask

MIN_PART = 4
"""Pixels that a part of a mask needs to count as an instance, unless all parts are smaller."""
MAX_PARTS = 64
"""Instances that are read from one mask, largest first: as many as an answer may name by default."""


class ShapeError(ConfigError):
    """A shape that cannot be used; the message says what was found and what to do."""


def ring_mask(ring: Sequence[Sequence[float]], size: tuple[int, int]) -> BoolMask:
    """The pixels inside a closed ring [[x, y], ...], clipped to an image of ``size`` (height, width): [H, W] bool.

    The even-odd rule decides, so that a ring that crosses itself covers what shapely's ``make_valid`` makes of it.

    Raises:
        ShapeError: no pixel's centre is inside.
    """
    height, width = size
    corners = np.asarray(ring, dtype=np.float64)
    (left, top), (right, bottom) = np.floor(corners.min(axis=0)), np.ceil(corners.max(axis=0))
    x0, x1 = (int(min(max(v, 0), width)) for v in (left, right))
    y0, y1 = (int(min(max(v, 0), height)) for v in (top, bottom))
    crossings = np.zeros((y1 - y0, x1 - x0 + 1), dtype=np.uint8)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        low, high = min(ay, by), max(ay, by)
        rows = np.arange(max(y0, math.ceil(low - 0.5)), min(y1, math.ceil(high - 0.5)))  # centres in [low, high)
        if len(rows):
            x = ax + (rows + 0.5 - ay) * (bx - ax) / (by - ay)
            columns = np.clip(np.ceil(x - 0.5), x0, x1).astype(np.intp)
            crossings[rows - y0, columns - x0] ^= 1
    mask = np.zeros(size, dtype=np.bool_)
    mask[y0:y1, x0:x1] = np.bitwise_xor.accumulate(crossings, axis=1)[:, :-1]
    if not mask.any():
        raise ShapeError(
            f"a ring from ({left:g}, {top:g}) to ({right:g}, {bottom:g}) holds no pixel of an image of {width} x "
            f"{height} (width x height); give it in pixels of this image, or leave it out"
        )
    return mask


def ring_masks(rings: Sequence[Sequence[Sequence[float]]], size: tuple[int, int], *, holes: bool) -> Iterator[BoolMask]:
    """The masks [H, W] bool of the instances that ``rings`` outline in an image of ``size`` (height, width).

    Args:
        rings: [[x, y], ...] each.
        size: of the image.
        holes: a ring within an odd number of others is a hole, cut out of the smallest ring around it; else every ring
            is an instance.

    Raises:
        ShapeError: a ring holds no pixel, or nothing is left of one around its holes.
    """
    if not holes:
        yield from (ring_mask(ring, size) for ring in rings)
        return
    masks = sorted((ring_mask(ring, size) for ring in rings), key=np.count_nonzero, reverse=True)
    around = [[n for n in range(i) if not (masks[i] & ~masks[n]).any()] for i in range(len(masks))]  # smallest last
    for index, outer in enumerate(masks):
        if len(around[index]) % 2:
            continue
        inner = [m for m, those in zip(masks, around, strict=True) if len(those) % 2 and those[-1] == index]
        left = outer & ~np.logical_or.reduce(inner) if inner else outer
        if not left.any():
            raise ShapeError("a ring that its holes cover whole; leave both out")
        yield np.asarray(left, dtype=np.bool_)


def decode_rle(rle: dict[str, Any], size: tuple[int, int]) -> BoolMask:
    """The mask [H, W] bool of a COCO run-length encoding, compressed (text) or not (a list of counts).

    Read here and not by pycocotools (2.0.11), which leaves pixels unset where counts fall short and aborts on
    some texts that are no run lengths (the whole process, not an exception).

    Args:
        rle: ``{"size": [height, width], "counts": ...}``, runs of 0 and 1 in turn, column by column.
        size: (height, width) of the image.

    Raises:
        ShapeError: it is of another size, or its counts do not fill it.
    """
    height, width = size
    if tuple(rle["size"]) != size:
        raise ShapeError(
            f"size {list(rle['size'])} for an image of [{height}, {width}] (height, width); encode a mask of that size"
        )
    counts = _counts(rle["counts"]) if isinstance(rle["counts"], str) else list(rle["counts"])
    if any(count < 0 for count in counts) or sum(counts) != height * width:
        raise ShapeError(f"counts of {sum(counts)} pixels in all for {height * width}, or a negative one; encode anew")
    values = np.arange(len(counts)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, counts).reshape(width, height).T)


def parts(mask: BoolMask) -> Iterator[BoolMask]:
    """The instances in a mask [H, W]: its 8-connected parts of at least :data:`MIN_PART` pixels.

    The :data:`MAX_PARTS` largest ones, largest first. Where every part is smaller, the largest alone, so that only an
    empty mask has none.
    """
    _, labels, result, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas: NDArray[np.int32] = result[1:, cv2.CC_STAT_AREA]
    order = np.argsort(-areas, kind="stable")[:MAX_PARTS]
    kept = [index for index in order if areas[index] >= MIN_PART] or order[:1].tolist()
    for index in kept:
        yield np.asarray(labels == index + 1, dtype=np.bool_)


def _counts(text: str) -> list[int]:
    """The run lengths in COCO's text: 5 bits a character, low ones first; the fourth on less the one two before."""
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ShapeError("counts that are no run lengths of COCO; encode anew")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ShapeError("counts that break off in the middle of a number; encode anew")
    return counts
