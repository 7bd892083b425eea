"""Images from files, by one careful reader: rasterio for TIFF, JPEG 2000 and 16 bits, Pillow for the rest.

Reading gives 8-bit RGB, whatever the file holds, or an :class:`ImageError` that says what was found and what to do:

- the orientation that a camera wrote down is applied, and of several frames or pages the first one is read;
- grey, palette, CMYK and YCbCr are converted; of more bands than three the red, green and blue one are taken, else the
  first three, unless ``bands`` says which;
- integers with sign, of more than 8 bits, and floats are stretched from the 2nd..98th percentile of their valid values,
  over all bands together, to 0..255; integers without sign that use their range keep their highest 8 bits;
- what the file declares as no data, and NaN, takes no part in that and is black; so is what is transparent;
- in TIFF and JPEG 2000 a band tagged as transparency is that where it holds none and full, and at most a soft edge
  between; else it is near infrared or the like, and the colours stay.

The size in the file's header is checked before a pixel is decoded, and values are converted block by block, so that a
small file cannot fill the memory. Masks are read by :mod:`grasp_rl.data.masks`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from grasp_rl.config.errors import require
from grasp_rl.data.pictures import open_picture
from grasp_rl.data.pixels import MAX_PIXELS, REMEDY, Block, ImageError, Layout, Source, upright
from grasp_rl.data.pnm import is_deep, open_deep
from grasp_rl.data.rasters import driver_of, open_raster
from grasp_rl.data.stretch import Scale, choose_scale
from grasp_rl.types import BoolMask, Image

__all__ = [
    "MAX_PIXELS",
    "ImageError",
    "ImageReading",
    "Rendering",
    "open_source",
    "read_described",
    "read_image",
    "rendering_of",
    "write_image",
]


@dataclass(frozen=True, kw_only=True)
class ImageReading:
    """How files become 8-bit RGB.

    Raises:
        ConfigError: a value that no file can be read by.
    """

    bands: Sequence[int] | None = None
    """The bands, from 1, that are shown as red, green and blue; None for what the file says, else the first three."""
    stretch: str | Sequence[float] = "auto"
    """``auto``; ``none``: the highest 8 bits of integers; or the two stored values that become 0 and 255."""

    def __post_init__(self) -> None:
        bands, bounds = self.bands, self.stretch
        whole = bands is None or (_numbers(bands, 3) and all(isinstance(b, int) and b >= 1 for b in bands))
        require(whole, "data.bands", bands, "three numbers of bands, from 1, for red, green and blue, or null")
        preset = isinstance(bounds, str) and bounds in ("auto", "none")
        ordered = not isinstance(bounds, str) and _numbers(bounds, 2) and bounds[0] < bounds[1]
        require(
            preset or ordered, "data.stretch", bounds, "auto, none, or [low, high]: the values that become 0 and 255"
        )


def _numbers(value: Any, count: int) -> bool:
    """Whether ``value`` is a list of ``count`` finite numbers."""
    if not isinstance(value, Sequence) or len(value) != count:
        return False
    return all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in value)


AS_STORED = ImageReading()
_SOFT_EDGE = 0.1
"""Largest share of graded values, of those that are not 0, in a band that is transparency with a soft edge."""


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS, reading: ImageReading = AS_STORED) -> Image:
    """The image in ``path`` as [H, W, 3] uint8 RGB; see the module docstring for the conversions.

    Args:
        path: A file, its kind told by its content and not by its name.
        max_pixels: Largest width times height that is decoded.
        reading: Which bands, and how they become 8 bits.

    Raises:
        ImageError: there is no such file, it is damaged, too large, or of a kind that has no image in 8-bit RGB.
    """
    return read_described(path, max_pixels, reading)[0]


def read_described(
    path: str | Path, max_pixels: int = MAX_PIXELS, reading: ImageReading = AS_STORED
) -> tuple[Image, str]:
    """:func:`read_image`, and what was done to the stored values in words; "" where they are shown as they are.

    Raises:
        ImageError: as for :func:`read_image`.
    """
    stored, orientation, description = _read(Path(path), max_pixels, reading)
    return upright(stored, orientation), description


def write_image(path: str | Path, image: Image | BoolMask) -> None:
    """Write [H, W, 3] uint8 RGB, or a mask [H, W] as 0 and 255, to ``path``; its ending names the format."""
    pixels = np.where(image, np.uint8(255), np.uint8(0)) if image.dtype == np.bool_ else image
    Pillow.fromarray(np.ascontiguousarray(pixels)).save(path)


@contextmanager
def open_source(path: Path, max_pixels: int) -> Iterator[Source]:
    """The image file ``path``, opened by the library for its content.

    Raises:
        ImageError: as for :func:`read_image`; what the body raises about damage is turned into one, too.
    """
    if not path.is_file():
        raise ImageError(f"{path}: {'not a file' if path.exists() else 'no such file'}; name an image")
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except PermissionError as error:
        raise ImageError(f"{path}: may not be read; change its permissions") from error
    driver = driver_of(head)
    if driver is not None:
        opened: AbstractContextManager[Source] = open_raster(path, driver, max_pixels)
    else:
        opened = open_deep(path, max_pixels) if is_deep(head) else open_picture(path, max_pixels)
    with opened as source:
        yield source


def _read(path: Path, max_pixels: int, reading: ImageReading) -> tuple[Image, int, str]:
    """The image as its rows are stored, EXIF's code for turning it, and what was done in words."""
    with open_source(path, max_pixels) as source:
        layout, rendering = source.layout, rendering_of(path, source, reading)
        image = np.zeros((layout.height, layout.width, 3), dtype=np.uint8)
        for block in source.blocks(rendering.used):
            image[block.place] = rendering.colours(block)
        return image, layout.orientation, rendering.note


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """How the stored values of one file become 8-bit RGB: the same for all of its blocks."""

    layout: Layout
    bands: tuple[int, ...]
    """The bands, from 0, that are shown."""
    alpha: int | None
    """The band, from 0, that says what is transparent."""
    scale: Scale
    table: bool
    """Whether a palette's colours are shown, and not its numbers."""
    note: str
    """What is done to the stored values in words; empty where they are shown as they are."""

    @property
    def used(self) -> tuple[int, ...]:
        """The bands of the blocks that :meth:`colours` takes, the transparency last."""
        return self.bands if self.alpha is None else (*self.bands, self.alpha)

    def colours(self, block: Block) -> Image:
        """[h, w, 1 or 3] uint8 of a block of :attr:`used`, no data and what is transparent black."""
        return _coloured(block, self.layout, self.scale, self.alpha, table=self.table)

    def seen(self, block: Block) -> BoolMask:
        """[h, w] False where a block of :attr:`used` has no data in any of its bands, or is wholly transparent."""
        shown = _without_transparent(block, self.layout, self.alpha)
        if shown.valid is None:
            return np.ones(block.values.shape[:2], dtype=np.bool_)
        return np.asarray(shown.valid[..., : len(self.bands)].any(axis=2), dtype=np.bool_)


def rendering_of(path: Path, source: Source, reading: ImageReading) -> Rendering:
    """How the image in ``source`` is to be shown; its blocks are read where their values decide.

    Raises:
        ImageError: it cannot be shown as ``reading`` says.
    """
    layout = source.layout
    bands = _bands(path, layout, reading)
    alpha, alpha_note = _transparency(source, bands)
    used = bands if alpha is None else (*bands, alpha)
    if layout.palette is not None and reading.bands is None:
        scale = Scale(bounds=None, note="")
    else:
        if reading.stretch == "none" and layout.dtype.kind != "u":
            raise ImageError(
                f"{path}: values of {layout.dtype.name} have no range of their own for data.stretch=none; give "
                "data.stretch=[low, high]"
            )
        shown = (_without_transparent(block, layout, alpha) for block in source.blocks(used))
        scale = choose_scale(layout, reading.stretch, shown, len(bands))
    if scale.bounds is not None and layout.uneven_scales:
        raise ImageError(f"{path}: scale tags that differ between its bands or are negative; {REMEDY}")
    more = layout.count - len(used) > 0 or (reading.bands is not None and list(bands) != [0, 1, 2])
    chosen = f"band{'s' * (len(bands) > 1)} {', '.join(str(b + 1) for b in bands)} of {layout.count}" if more else ""
    parts = (chosen, alpha_note, scale.note, "no data black" if layout.no_data else "")
    return Rendering(
        layout=layout,
        bands=bands,
        alpha=alpha,
        scale=scale,
        table=reading.bands is None,
        note="; ".join(part for part in parts if part),
    )


def _bands(path: Path, layout: Layout, reading: ImageReading) -> tuple[int, ...]:
    """The bands, from 0, that are shown."""
    if reading.bands is None:
        return layout.colour
    if max(reading.bands) > layout.count:
        raise ImageError(
            f"{path}: has {layout.count} band{'s' * (layout.count > 1)}, and data.bands={list(reading.bands)} asks for "
            f"band {max(reading.bands)}; name bands that it has"
        )
    return tuple(band - 1 for band in reading.bands)


def _transparency(source: Source, bands: Sequence[int]) -> tuple[int | None, str]:
    """The band, from 0, that says what is transparent, None for none; and a remark on one that is not believed."""
    layout, alpha = source.layout, source.layout.alpha
    if alpha is None or alpha in bands or layout.surely_transparent:
        return (None if alpha in bands else alpha), ""
    full = 2**layout.bits - 1 if layout.dtype.kind == "u" else 1
    slack = full // 32 if layout.lossy else 0
    clear = opaque = graded = 0
    for block in source.blocks([alpha]):
        none = int(np.count_nonzero(block.values <= slack))
        all_of_it = int(np.count_nonzero((block.values >= full - slack) & (block.values <= full)))
        clear, opaque, graded = clear + none, opaque + all_of_it, graded + block.values.size - none - all_of_it
    if graded > _SOFT_EDGE * (opaque + graded) or (graded and not clear):
        return None, f"band {alpha + 1} is tagged as transparency but graded: taken for a band like the others"
    if not opaque:
        return None, f"band {alpha + 1} is tagged as transparency but 0 throughout: left aside"
    return alpha, ""


def _opacity(values: NDArray[Any], layout: Layout) -> NDArray[np.float64]:
    """The opacity 0..1 in ``values`` [h, w] of a band of transparency; of a lossy file 0 or 1."""
    full = 2**layout.bits - 1 if layout.dtype.kind == "u" else 1
    opacity = values.astype(np.float64) / full
    return np.rint(opacity) if layout.lossy and not layout.surely_transparent else opacity


def _without_transparent(block: Block, layout: Layout, alpha: int | None) -> Block:
    """``block`` with what is wholly transparent as no data."""
    if alpha is None:
        return block
    seen = (_opacity(block.values[..., -1], layout) > 0)[..., None]
    valid = np.broadcast_to(seen, block.values.shape) if block.valid is None else block.valid & seen
    return Block(place=block.place, values=block.values, valid=valid)


def _coloured(block: Block, layout: Layout, scale: Scale, alpha: int | None, *, table: bool) -> Image:
    """[h, w, 1 or 3] uint8 of a block, no data and what is transparent black."""
    values, valid = block.values, block.valid
    if alpha is not None:
        values, valid = values[..., :-1], None if valid is None else valid[..., :-1]
    if layout.palette is not None and table:
        entries = layout.palette[np.minimum(values[..., 0], len(layout.palette) - 1)]
        colours, opacity = entries[..., :3], entries[..., 3] / 255
    else:
        colours = scale(values, layout)
        colours = ~colours if layout.inverted else colours
        opacity = None if alpha is None else _opacity(block.values[..., -1], layout)
    if opacity is not None:
        colours = np.rint(colours * opacity[..., None]).astype(np.uint8)
    if valid is None:
        return np.asarray(colours, dtype=np.uint8)
    seen = valid.any(axis=2, keepdims=True) if scale.bounds is None else valid
    return np.asarray(np.where(seen, colours, np.uint8(0)), dtype=np.uint8)
