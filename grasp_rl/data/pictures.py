"""PNG, JPEG, WebP, GIF, BMP and PPM by Pillow: the first frame, decoded whole, given out block by block."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from grasp_rl.data.pixels import DAMAGED, REMEDY, Block, ImageError, Layout, check_size, row_slices
from grasp_rl.data.rasters import ORIENTATION

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "WEBP")
_DEEP = {"I": np.int32, "F": np.float32}
_KINDS = {
    b"\x89HDF": "HDF5 or netCDF",
    b"CDF": "netCDF",
    b"NITF": "NITF",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"<VRT": "a GDAL VRT, which only refers to other files",
    b"<svg": "SVG",
    b"<?xml": "XML",
    b"SQLite": "SQLite (GeoPackage, MBTiles)",
    b"PK\x03\x04": "a zip archive",
    b"EHFA": "ERDAS Imagine",
    b"\x93NUMPY": "a NumPy array",
    b"8BPS": "Photoshop",
}
"""What a file is that begins so."""


class Picture:
    """A decoded picture, a :class:`~grasp_rl.data.pixels.Source`."""

    def __init__(self, image: Pillow.Image, lossy: bool) -> None:
        self.image, self.mode = image, _plain_mode(image)
        names = Pillow.new(self.mode, (1, 1)).getbands()
        grey, alpha = len(names) < 3, "A" in names
        orientation = image.getexif().get(ORIENTATION, 1)
        dtype = np.dtype(_DEEP.get(self.mode, np.uint8))
        self.layout = Layout(
            height=image.height,
            width=image.width,
            dtype=dtype,
            bits=8 * dtype.itemsize,
            colour=(0,) if grey else (0, 1, 2),
            count=len(names),
            alpha=len(names) - 1 if alpha else None,
            palette=_palette(image) if self.mode == "P" else None,
            lossy=lossy,
            orientation=orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1,
        )

    def blocks(self, bands: Sequence[int]) -> Iterator[Block]:
        image, chosen = self.image, list(bands)
        for rows in row_slices(range(image.height), image.width * self.layout.count):
            whole = rows.stop - rows.start == image.height
            cut = image if whole else image.crop((0, rows.start, image.width, rows.stop))
            values = np.asarray(cut if cut.mode == self.mode else cut.convert(self.mode), dtype=self.layout.dtype)
            values = values.reshape(rows.stop - rows.start, image.width, self.layout.count)
            values = values if chosen == list(range(self.layout.count)) else values[..., chosen]
            valid = np.isfinite(values) if self.mode == "F" else None
            yield Block(place=(rows, slice(None)), values=values, valid=valid)


def _plain_mode(image: Pillow.Image) -> str:
    """The mode among L, LA, P, RGB, RGBA, I and F that holds ``image``, its transparency included."""
    if image.mode in (*_DEEP, "P"):
        return image.mode
    if image.mode in ("1", "L", "LA", "La"):
        return "LA" if image.has_transparency_data or image.mode == "La" else "L"
    return "RGBA" if image.has_transparency_data or image.mode == "RGBa" else "RGB"


def _palette(image: Pillow.Image) -> NDArray[np.uint8]:
    """[256, 4] RGBA of every index."""
    table = np.zeros((256, 4), dtype=np.uint8)
    table[:, 3] = 255
    colours = np.asarray(image.getpalette() or [], dtype=np.uint8).reshape(-1, 3)[:256]
    table[: len(colours), :3] = colours
    clear = image.info.get("transparency")
    if isinstance(clear, bytes):
        table[: len(clear), 3] = np.frombuffer(clear[:256], dtype=np.uint8)
    elif isinstance(clear, int) and 0 <= clear < 256:
        table[clear, 3] = 0
    return table


_JPEG_DEPTH = re.compile(rb"\xff[\xc0-\xc3]\0[\x0b\x11\x14]([\x0c\x10])")
"""A JPEG's frame header of 12 or 16 bits."""


@contextmanager
def open_picture(path: Path, max_pixels: int) -> Iterator[Picture]:
    """The first frame of ``path``, decoded. What the body raises on it is the file's fault, too.

    Raises:
        ImageError: it is damaged, too large, or not an image of :data:`FORMATS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow about size and EXIF: the size is checked here
            with Pillow.open(path, formats=FORMATS) as image:
                check_size(path, image.size, max_pixels)
                image.load()
                yield Picture(image, lossy=_is_lossy(path, image.format))
    except ImageError:
        raise
    except Pillow.DecompressionBombError as error:
        raise ImageError(f"{path}: {error}; at most {max_pixels:,} pixels are read; cut it into tiles") from error
    except UnidentifiedImageError as error:
        known = ", ".join((*FORMATS, "TIFF", "JPEG 2000"))
        raise ImageError(f"{path}: {_content(path)}, not an image that can be read ({known}); {REMEDY}") from error
    except DAMAGED as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise ImageError(f"{path}: damaged or truncated ({said}); get it again, or {REMEDY}") from error


def _is_lossy(path: Path, kind: str | None) -> bool:
    if kind == "WEBP":
        with path.open("rb") as file:
            return b"VP8L" not in file.read(64)
    return kind in ("JPEG", "MPO")


def _content(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(1 << 16)
    if not head:
        return "an empty file"
    depth = _JPEG_DEPTH.search(head) if head.startswith(b"\xff\xd8") else None
    if depth:
        return f"a JPEG of {depth[1][0]} bits"
    kind = next((name for magic, name in _KINDS.items() if head.startswith(magic)), None)
    if head[4:12] in (b"ftypavif", b"ftypheic", b"ftypmif1"):
        kind = "AVIF or HEIF"
    return kind or f"{path.stat().st_size:,} bytes that begin with {head[:12]!r}"
