"""Masks from files: which values mean the target, which are to be ignored, and what cannot be meant.

Without further word the target is every value that is not 0: of a palette the index counts, of colour any channel, of
a lossy file a value of at least half. Where the values speak against that (no background, a border of unknown pixels,
fractions) the mask is in doubt, and it says why and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grasp_rl.config.errors import require
from grasp_rl.data.image_io import open_source
from grasp_rl.data.pixels import MAX_PIXELS, Block, ImageError, Layout, upright
from grasp_rl.types import BoolMask

Values = int | Sequence[int] | Sequence[Sequence[int]]
"""A value, several, or colours [r, g, b]."""
_CLASS_IDS = 64
"""Below it a value beside the largest one is a class or an instance, and the largest means "ignore"."""
_SHOWN = 6
_MEANT = "say what is meant: data.mask_foreground=VALUE for the target, data.ignore_value=VALUE for what does not count"


@dataclass(frozen=True, kw_only=True)
class MaskReading:
    """Which values of a mask file mean what.

    A value is a number of the file, of a palette the index; [r, g, b] is a colour of a mask in colour, as a list of
    [r, g, b] is of any.

    Raises:
        ConfigError: what is given is no value.
    """

    foreground: Values | None = None
    """What means the target; None for all that is not 0 and not ignored."""
    ignore: Values | None = None
    """What is neither target nor background: it counts in no metric and no reward."""

    def __post_init__(self) -> None:
        for key, value in (("data.mask_foreground", self.foreground), ("data.ignore_value", self.ignore)):
            valid = value is None or (bool(_listed(value)) and all(map(_is_value, _listed(value))))
            require(valid, key, value, "a whole number, a list of such, a colour [r, g, b] or a list of such, or null")


def _listed(values: Values) -> list[Any]:
    return list(values) if isinstance(values, Sequence) else [values]


def _is_value(value: Any) -> bool:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return len(value) == 3 and all(isinstance(v, int) and 0 <= v < 1 << 16 for v in value)
    return isinstance(value, int) and not isinstance(value, bool)


ALL_BUT_ZERO = MaskReading()


@dataclass(frozen=True, kw_only=True)
class Mask:
    """What a mask file says."""

    target: BoolMask
    """[H, W] True for the target."""
    ignored: BoolMask | None
    """[H, W] True where a pixel does not count; None where nothing is ignored."""
    doubt: str | None
    """Why :attr:`target` may not be what is meant: file, what was found, remedy."""


def read_mask(
    path: str | Path, size: tuple[int, int], max_pixels: int = MAX_PIXELS, reading: MaskReading = ALL_BUT_ZERO
) -> BoolMask:
    """The mask in ``path`` as [H, W] bool, True for the target.

    Args:
        path: A file as for :func:`grasp_rl.data.image_io.read_image`.
        size: (height, width) of the image it belongs to.
        max_pixels: Largest width times height that is decoded.
        reading: Which values mean what.

    Raises:
        ImageError: the file cannot be read, has another size, or is in doubt.
    """
    mask = inspect_mask(path, size, max_pixels, reading)
    if mask.doubt is not None:
        raise ImageError(mask.doubt)
    return mask.target


def inspect_mask(
    path: str | Path, size: tuple[int, int], max_pixels: int = MAX_PIXELS, reading: MaskReading = ALL_BUT_ZERO
) -> Mask:
    """The target in a mask file, the pixels that do not count, and whether it can be meant so.

    What the file declares as no data, NaN and what is transparent is background. A file whose colours are all black and
    whose transparency is not all the same means what is opaque. Arguments as for :func:`read_mask`.

    Raises:
        ImageError: the file cannot be read, or has another size.
    """
    path = Path(path)
    with open_source(path, max_pixels) as source:
        layout = source.layout
        if layout.size != size:
            result, expected = f"{layout.size[1]} x {layout.size[0]}", f"{size[1]} x {size[0]}"
            raise ImageError(
                f"{path}: a mask of {result} pixels (width x height) for an image of {expected}; make one of its size"
            )
        bands = _bands(path, layout)
        codes = _Codes(path, layout, reading, len(bands))
        for block in source.blocks(bands if layout.alpha is None else (*bands, layout.alpha)):
            codes.add(block)
    return codes.result()


def _bands(path: Path, layout: Layout) -> tuple[int, ...]:
    """The bands of a mask: one, or red, green and blue."""
    others = layout.count - len(layout.colour) - (layout.alpha is not None)
    if others:
        raise ImageError(f"{path}: a mask of {layout.count} bands; write one band (gdal_translate -b 1 IN OUT)")
    if len(layout.colour) == 3 and (layout.dtype.kind != "u" or layout.bits > 16):
        raise ImageError(f"{path}: a mask in colours of {layout.dtype.name}; write one band of 8 bits")
    return layout.colour


class _Codes:
    """The blocks of a mask, told apart as they come in: one whole number a pixel.

    Of one band, or of three that are equal, it is the value; a colour has its own number beyond them.
    """

    def __init__(self, path: Path, layout: Layout, reading: MaskReading, bands: int) -> None:
        self.path, self.layout, self.reading, self.bands = path, layout, reading, bands
        shape = (layout.height, layout.width)
        self.target = np.zeros(shape, dtype=np.bool_)
        self.opaque = np.ones(shape, dtype=np.bool_) if layout.alpha is not None else None
        self.ignored = np.zeros(shape, dtype=np.bool_) if reading.ignore is not None else None
        self.found: set[int] = set()
        """Codes of the pixels that count."""
        self.fraction: float | None = None
        if layout.lossy and (reading.foreground is not None or reading.ignore is not None):
            raise ImageError(
                f"{path}: a lossy file, which does not keep values, for data.mask_foreground or data.ignore_value; "
                "write the mask as PNG"
            )
        self._foreground, self._ignore = self._codes_of(reading.foreground), self._codes_of(reading.ignore)

    def add(self, block: Block) -> None:
        """Tell a block apart."""
        values = block.values[..., : self.bands]
        counts = np.ones(values.shape[:2], dtype=np.bool_)
        if block.valid is not None:
            counts = np.asarray(block.valid[..., : self.bands].all(axis=2))
        codes = self._coded(values, counts)
        if self.opaque is not None:
            self.opaque[block.place] = self._is_opaque(block.values[..., self.bands])
            counts &= self.opaque[block.place]
        if self.ignored is not None:
            ignored = np.isin(codes, self._ignore) & np.isfinite(values).all(axis=2)
            self.ignored[block.place] = ignored
            counts &= ~ignored
        self.found.update(np.unique(codes[counts]).tolist())
        if self.reading.foreground is not None:
            target = np.isin(codes, self._foreground)
        else:
            target = values.max(axis=2) >= self._half if self.layout.lossy else codes != 0
        self.target[block.place] = target & counts

    def result(self) -> Mask:
        """The target, what is ignored, and why it may not be meant so."""
        target, doubt = self.target, None
        if self.reading.foreground is None:
            if self.opaque is not None and self.found <= {0} and self.opaque.any() and not self.opaque.all():
                target = self.opaque
            else:
                doubt = self._doubt()
        turn = self.layout.orientation
        ignored = None if self.ignored is None else upright(self.ignored, turn)
        return Mask(target=upright(target, turn), ignored=ignored, doubt=doubt and f"{self.path}: {doubt}")

    def _doubt(self) -> str | None:
        """What speaks against "not 0 is the target", if anything does."""
        values, layout = self.found, self.layout
        smallest, largest = min(values, default=0), max(values, default=0)
        if self.target.any() and (self.target if self.ignored is None else self.target | self.ignored).all():
            return f"a mask without background: its values are {self._shown()}; {_MEANT}"
        if layout.lossy:
            empty = largest > 0 and not self.target.any()
            doubt = f"a lossy mask whose largest value is {largest}, where the target begins at {self._half}"
            return f"{doubt}; write it as PNG, with 0 and 255" if empty else None
        if self.fraction is not None:
            return f"a mask with fractions, such as {self.fraction:g}; write what is meant as 0 and 255"
        top = 2**layout.bits - 1 if layout.dtype.kind == "u" else 255
        others = values - {0, top}
        beside = top in values and others and max(others) < _CLASS_IDS <= top
        if smallest < 0 or beside:
            odd = smallest if smallest < 0 else top
            return f"{odd} beside {self._shown(odd)}, as if it were to be ignored; {_MEANT}"
        return None

    @property
    def _half(self) -> int:
        """The least value of the target in a lossy file."""
        return int(2 ** (self.layout.bits - 1))

    def _shown(self, without: int | None = None) -> str:
        shown = [self._named(code) for code in sorted(self.found - {without})]
        return ", ".join(shown[:_SHOWN]) + (f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else "")

    def _named(self, code: int) -> str:
        base = 1 << self.layout.bits
        if code < base or self.bands == 1:
            return str(code)
        code -= base
        return str([code // base**2, code // base % base, code % base])

    def _coded(self, values: NDArray[Any], counts: BoolMask) -> NDArray[np.int64]:
        """[h, w] the code of every pixel; a fraction counts as 1."""
        layout = self.layout
        if layout.dtype.kind == "f":
            values = np.clip(np.where(np.isfinite(values), values, 0), -(2.0**53), 2.0**53)
            broken = values % 1 != 0
            if broken[counts].any():
                self.fraction = float(values[counts][broken[counts]].flat[0])
            values = np.where(broken, 1, values)
        plain = values.astype(np.int64)
        if layout.inverted and layout.dtype.kind == "u":
            plain = 2**layout.bits - 1 - plain
        if self.bands == 1:
            return plain[..., 0]
        red, green, blue = np.moveaxis(plain, -1, 0)
        codes = np.where((red == green) & (green == blue), red, self._colour_code(red, green, blue))
        return np.asarray(codes, dtype=np.int64)

    def _colour_code(self, red: Any, green: Any, blue: Any) -> Any:
        base = 1 << self.layout.bits
        return base + (red * base + green) * base + blue

    def _codes_of(self, values: Values | None) -> list[int]:
        """The codes of the values and colours that the config names."""
        entries, codes = [] if values is None else _listed(values), list[int]()
        if self.bands == 3 and len(entries) == 3 and all(isinstance(entry, int) for entry in entries):
            entries = [entries]
        for entry in entries:
            if isinstance(entry, int):
                codes.append(entry)
            elif self.layout.palette is not None:
                codes += np.flatnonzero((self.layout.palette[:, :3] == entry).all(axis=1)).tolist()
            else:
                codes.append(entry[0] if len(set(entry)) == 1 else self._colour_code(*entry))
        return codes

    def _is_opaque(self, alpha: NDArray[Any]) -> BoolMask:
        layout = self.layout
        full = 2**layout.bits - 1 if layout.dtype.kind == "u" else 1
        if not layout.surely_transparent and ((alpha != 0) & (alpha < full)).any() and not layout.lossy:
            raise ImageError(
                f"{self.path}: a mask of {layout.count} bands, the last of which is graded; write one band "
                "(gdal_translate -b 1 IN OUT)"
            )
        return np.asarray(alpha > (full // 2 if layout.lossy else 0), dtype=np.bool_)
