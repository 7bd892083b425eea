"""Portable grey and colour maps of 16 bits, read as they stand: Pillow cuts them to 8, GDAL reads files beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from grasp_rl.data.pixels import Block, ImageError, Layout, check_size, row_slices

_GAP = rb"\s+(?:#[^\n]*\n\s*)*"
_HEADER = re.compile(rb"P([356])" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})\s")
_HEAD_BYTES = 1024


class DeepMap:
    """A map of 16 bits, a :class:`~grasp_rl.data.pixels.Source`."""

    def __init__(self, path: Path, start: int, layout: Layout) -> None:
        shape = (layout.height, layout.width, layout.count)
        self.layout, self._values = layout, np.memmap(path, ">u2", "r", offset=start, shape=shape)

    def blocks(self, bands: Sequence[int]) -> Iterator[Block]:
        for rows in row_slices(range(self.layout.height), self.layout.width * self.layout.count):
            values = self._values[rows][..., list(bands)].astype(np.uint16)
            yield Block(place=(rows, slice(None)), values=values)


def is_deep(head: bytes) -> bool:
    """Whether ``head`` begins a PGM or PPM of more than 8 bits."""
    header = _HEADER.match(head)
    return header is not None and int(header[4]) > 255


@contextmanager
def open_deep(path: Path, max_pixels: int) -> Iterator[DeepMap]:
    """The map in ``path``, for which :func:`is_deep`.

    Raises:
        ImageError: it is too large, truncated, or written as text.
    """
    with path.open("rb") as file:
        header = _HEADER.match(file.read(_HEAD_BYTES))
    assert header is not None
    width, height, count = int(header[2]), int(header[3]), 1 if header[1] == b"5" else 3
    check_size(path, (width, height), max_pixels)
    if header[1] == b"3":
        raise ImageError(f"{path}: a PPM of 16 bits written as text; write it in binary (P6)")
    needed, there = 2 * width * height * count, path.stat().st_size - header.end()
    if there < needed:
        raise ImageError(f"{path}: truncated: {there:,} bytes of pixels for {needed:,}; get it again")
    colour = (0,) if count == 1 else (0, 1, 2)
    layout = Layout(height=height, width=width, dtype=np.dtype(np.uint16), bits=16, colour=colour, count=count)
    yield DeepMap(path, header.end(), layout)
