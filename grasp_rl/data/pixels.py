"""What every decoder of images gives: bands as they are stored, block by block, and what is known about them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from grasp_rl.config.errors import ConfigError
from grasp_rl.types import BoolMask

MAX_PIXELS = 100_000_000
"""Largest image that is read, 100 megapixels: 300 MB as RGB."""
BLOCK_VALUES = 4_000_000
"""Values that are converted at a time; a block has no more, but at least one row."""
REMEDY = "convert it to an 8-bit RGB PNG or JPEG (gdal_translate -ot Byte -scale -b 1 -b 2 -b 3 IN OUT)"


DAMAGED = (OSError, SyntaxError, ValueError, TypeError, IndexError, OverflowError, EOFError, struct.error, zlib.error)
"""What Pillow's decoders raise on files that are damaged; they have no common class of their own."""


class ImageError(ConfigError):
    """An image that cannot be used. The message names the file, what was found and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A rectangle of some bands."""

    place: tuple[slice, slice]
    """Which rows and columns of the stored image, before any rotation."""
    values: NDArray[Any]
    """[h, W, C] as stored."""
    valid: BoolMask | None = None
    """[h, W, C] False where the file declares no data, or holds a number that is not finite; None where all is data."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a file says about its pixels."""

    height: int
    """Rows as stored, before :attr:`orientation` is applied."""
    width: int
    dtype: np.dtype[Any]
    bits: int
    """Bits a value uses: 1..64; fewer than the dtype has where the file says so."""
    colour: tuple[int, ...]
    """The bands, from 0, that make the picture: one (grey, palette) or three (red, green, blue)."""
    count: int
    """Bands in all."""
    alpha: int | None = None
    """The band, from 0, that the file tags as transparency."""
    surely_transparent: bool = True
    """Whether a band tagged as transparency is that. In TIFF and JPEG 2000 the tag often stands on near infrared."""
    palette: NDArray[np.uint8] | None = None
    """[N, 4] RGBA of the values of a single band."""
    inverted: bool = False
    """Whether the smallest value is white."""
    lossy: bool = False
    """Whether compression may have changed values."""
    no_data: bool = False
    """Whether the file declares pixels without data."""
    uneven_scales: bool = False
    """Whether scale and offset tags differ between the bands of the picture, or turn light to dark."""
    orientation: int = 1
    """EXIF's code 1..8 of how the stored rows are to be turned."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the upright image."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


class Source(Protocol):
    """An open image file."""

    @property
    def layout(self) -> Layout: ...

    def blocks(self, bands: Sequence[int]) -> Iterator[Block]:
        """All pixels of ``bands`` (from 0), block by block; every call begins anew."""
        ...


def check_size(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    """Demand that ``size`` (width, height) has pixels, and no more than ``max_pixels``.

    Raises:
        ImageError: it has not.
    """
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{path}: {width} x {height} pixels, nothing to look at")
    if width * height > max_pixels:
        raise ImageError(
            f"{path}: {width} x {height} pixels = {width * height:,}, more than {max_pixels:,}; cut it into tiles or "
            "make it smaller"
        )


def row_slices(rows: range, values_a_row: int) -> Iterator[slice]:
    """``rows`` in turn, as many at a time as :data:`BLOCK_VALUES` allows."""
    step = max(1, BLOCK_VALUES // max(1, values_a_row))
    for start in rows[::step]:
        yield slice(start, min(start + step, rows.stop))


def upright(stored: NDArray[Any], orientation: int) -> NDArray[Any]:
    """``stored`` [H, W, ...] turned as EXIF's ``orientation`` 1..8 says."""
    turned = stored.swapaxes(0, 1) if orientation >= 5 else stored
    if orientation in (3, 4, 7, 8):
        turned = turned[::-1]
    if orientation in (2, 3, 6, 7):
        turned = turned[:, ::-1]
    return np.ascontiguousarray(turned)
