"""From values of any depth to 0..255: as they are, by their high byte, or stretched between two bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grasp_rl.data.pixels import Block, Layout

PERCENTILES = (2, 98)
"""Which of the valid values become 0 and 255."""
_MOST = 0.5
"""Of pixels that are without data; a value that more share is a background."""
SAMPLED = 4_000_000
"""Pixels whose values the percentiles are taken from, evenly spread; all of them in an image of no more."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How values become 0..255."""

    bounds: tuple[float, float] | None
    """The values that become 0 and 255; None for unsigned integers that keep their highest eight bits."""
    note: str
    """What is done, in words; empty where nothing is."""

    def __call__(self, values: NDArray[Any], layout: Layout) -> NDArray[np.uint8]:
        """``values`` [..., C] of ``layout`` as uint8."""
        if self.bounds is None:
            return _highest_bits(values, layout.bits)
        low, high = (bound / 2 for bound in self.bounds)  # halves, so that the difference of two float64 is finite
        span = max(high - low, np.finfo(np.float64).tiny)
        with np.errstate(all="ignore"):
            scaled = (values.astype(np.float64) / 2 - low) / span * 255
        return np.asarray(np.clip(np.rint(np.nan_to_num(scaled, nan=0.0)), 0, 255), dtype=np.uint8)


def choose_scale(layout: Layout, wanted: str | Sequence[float], blocks: Iterable[Block], bands: int) -> Scale:
    """How the picture of ``layout`` becomes 8 bits.

    Integers without sign stay as they are where they have 8 bits or fewer, or use their range: a 98th percentile in its
    upper half. All else is stretched, the bands together, between the percentiles of the valid values.

    Args:
        layout: of the file.
        wanted: ``auto``, ``none`` (of integers without sign), or the values that become 0 and 255.
        blocks: of the file; read where the values decide.
        bands: how many bands of ``blocks``, the first ones, take part.
    """
    kind = f"{layout.dtype.name}" + (f" of {layout.bits} bits" if layout.bits < 8 * layout.dtype.itemsize else "")
    if not isinstance(wanted, str):
        low, high = wanted
        return Scale(bounds=(float(low), float(high)), note=f"{kind} stretched from {low:g}..{high:g} to 0..255")
    unsigned = layout.dtype.kind == "u"
    if unsigned and layout.bits <= 8:
        return Scale(bounds=None, note="")
    if wanted == "none":
        return Scale(bounds=None, note=f"{kind} cut to its highest 8 bits")
    low, high, odd = _percentiles(blocks, bands, layout)
    if unsigned and high >= 2 ** (layout.bits - 1):
        return Scale(bounds=None, note=f"{kind} that uses its range cut to its highest 8 bits{odd}")
    first, last = PERCENTILES
    return Scale(bounds=(low, high), note=f"{kind} stretched from its {first}nd..{last}th percentile to 0..255{odd}")


def _percentiles(blocks: Iterable[Block], bands: int, layout: Layout) -> tuple[float, float, str]:
    """The two percentiles of the valid values, or the smallest and largest where those are one; (0, 0) of none.

    And a word on an extreme value that so many pixels share as if it meant that there are no data.
    """
    step = math.ceil(layout.height * layout.width / SAMPLED)
    while math.gcd(step, layout.width) > 1:  # a step that divides the width would see some columns only
        step += 1
    samples, offset = [], 0
    for block in blocks:
        pixels = block.values[..., :bands].reshape(-1, bands)[offset::step]
        if block.valid is not None:
            pixels = pixels[block.valid[..., :bands].reshape(-1, bands)[offset::step]]
        offset = -(block.values[..., 0].size - offset) % step
        samples.append(pixels.ravel().astype(np.float64))
    sample = np.concatenate(samples) if samples else np.zeros(0)
    if not sample.size:
        return 0.0, 0.0, ""
    low, high = np.percentile(sample, PERCENTILES, overwrite_input=True)
    smallest, largest = sample.min(), sample.max()
    odd = ""
    for bound, extreme in ((low, smallest), (high, largest)):
        share = float(np.mean(sample == extreme))
        if bound == extreme != 0 and smallest < largest and share < _MOST:
            odd = (
                f"; at least 2% of its values are {extreme:g}: if that means no data, declare it (gdal_edit -a_nodata)"
            )
    if high <= low:
        low, high = smallest, largest
    return float(low), float(high), odd


def _highest_bits(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Unsigned ``values`` of ``bits`` bits as 8: white stays white."""
    if bits == 8:
        return values
    if bits < 8:
        return np.asarray(np.minimum(values.astype(np.uint16) * 255 // (2**bits - 1), 255), dtype=np.uint8)
    return np.asarray(np.minimum(values >> (bits - 8), 255), dtype=np.uint8)
