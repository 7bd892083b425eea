"""TIFF, JPEG 2000 and images of 16 bits by rasterio: bands as stored, block by block, from the named file alone.

A file is opened by one driver, told by its first bytes, so that nothing is read that refers to other files or to the
network (VRT and its like). GDAL is told that the folder is empty: what lies beside the file (.aux.xml, .msk, .ovr,
world files) changes nothing. Overviews are read only where :meth:`Raster.block` resamples. What GDAL has to say goes
into the :class:`ImageError`.
"""

from __future__ import annotations

import logging
import re
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from grasp_rl.data.pixels import BLOCK_VALUES, DAMAGED, REMEDY, Block, ImageError, Layout, check_size, row_slices

if TYPE_CHECKING:
    from rasterio import DatasetReader

ORIENTATION = 0x0112
"""The tag in TIFF and EXIF that says how an image is to be turned."""
_ROWS_PER_STRIP = 0x0116
MAX_BLOCK_BYTES = 288 << 20
"""Largest strip or tile that is decoded at once, 100 megapixels of 8-bit RGB; it is held twice."""
CACHE_BYTES = 64 << 20
"""Of GDAL's cache of blocks, beyond the largest block of a file."""
_SETTINGS: dict[str, Any] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_NUM_THREADS": 1,  # other threads of GDAL write to the terminal
}
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG2000 = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
_DAMAGE = re.compile(r"corrupt|premature|truncat|bogus", re.IGNORECASE)
_LAB = ("CIELAB", "ICCLAB", "ITULAB", "LOGL", "LOGLUV")


def driver_of(head: bytes) -> str | None:
    """The GDAL driver for a file that begins with ``head``, None where it is not for rasterio."""
    if head.startswith(_TIFF):
        return "GTiff"
    if head.startswith(_JPEG2000):
        return "JP2OpenJPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n") and head[12:16] == b"IHDR" and head[24:25] == b"\x10":
        return "PNG"
    return None


class Raster:
    """An open raster file, a :class:`~grasp_rl.data.pixels.Source`."""

    def __init__(self, dataset: DatasetReader, layout: Layout, path: Path, heard: _Heard) -> None:
        self.dataset, self.layout, self.path, self._heard = dataset, layout, path, heard

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """What the body raises, and what GDAL read over in silence, as damage of the file.

        Raises:
            ImageError: it is damaged.
        """
        with _damage_named(self.path, self.dataset.name):
            yield
        if self._heard.damage:
            raise ImageError(f"{self.path}: damaged ({self._heard.damage[0][:200]}); get it again, or {REMEDY}")

    def blocks(self, bands: Sequence[int]) -> Iterator[Block]:
        for rows, columns in self._places(len(bands)):
            corner = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
            yield replace(self.block(bands, corner), place=(rows, columns))

    def block(
        self, bands: Sequence[int], place: tuple[float, float, float, float], size: tuple[int, int] | None = None
    ) -> Block:
        """A rectangle of ``bands`` (from 0), resampled where its size is another than its own.

        Args:
            bands: from 0.
            place: (column, row, width, height) in stored pixels; fractions of pixels only with ``size``.
            size: (height, width) to resample to: the mean of what a new pixel covers, no data left out, where pixels
                get larger, and bilinear where they get smaller; the nearest value of a palette. A file's own overviews
                serve where they are fine enough.

        Returns:
            Its own ``place`` counts from the rectangle's corner.
        """
        from rasterio.enums import Resampling
        from rasterio.windows import Window

        layout, indexes, options = self.layout, [band + 1 for band in bands], dict[str, Any]()
        if size is not None and size != (place[3], place[2]):
            larger = place[2] > size[1] or place[3] > size[0]
            how = Resampling.average if larger else Resampling.bilinear
            options = {"out_shape": size, "resampling": Resampling.nearest if layout.palette is not None else how}
        window = Window(*place)
        shape = {"out_shape": (len(indexes), *options["out_shape"])} if options else {}
        values = np.moveaxis(self.dataset.read(indexes, window=window, **(options | shape)), 0, -1)
        declared = [_declares_no_data(self.dataset, band) for band in bands]
        valid = np.isfinite(values) if layout.dtype.kind == "f" or any(declared) else None
        for number, index in enumerate(indexes):
            if valid is not None and declared[number]:
                valid[..., number] &= self.dataset.read_masks(index, window=window, **options) != 0
        height, width = values.shape[:2]
        return Block(place=(slice(0, height), slice(0, width)), values=values, valid=valid)

    def _places(self, bands: int) -> Iterator[tuple[slice, slice]]:
        """Rows and columns to read at a time: whole strips or tiles where they are small, parts of one in turn else."""
        layout, (height, width) = self.layout, self.dataset.block_shapes[0]
        height, width = min(height, layout.height), min(width, layout.width)
        width *= max(1, BLOCK_VALUES // (height * width * bands))
        height *= max(1, BLOCK_VALUES // (height * min(width, layout.width) * bands))
        for top in range(0, layout.height, height):
            for left in range(0, layout.width, width):
                columns = slice(left, min(left + width, layout.width))
                inside = range(top, min(top + height, layout.height))
                for rows in row_slices(inside, (columns.stop - columns.start) * bands):
                    yield rows, columns


class _Heard(logging.Handler):
    """What GDAL says while a file is open, kept off terminal and log; above all damage that it reads over.

    A JPEG strip that breaks off is a warning to libtiff, and grey to whoever looks.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.damage: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if record.thread == self._thread and _DAMAGE.search(said):
            self.damage.append(" ".join(said.split()))

    def __enter__(self) -> None:
        log = logging.getLogger("rasterio")
        log.setLevel(logging.WARNING)
        log.propagate = False
        log.addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("rasterio").removeHandler(self)


@contextmanager
def open_raster(path: Path, driver: str, max_pixels: int) -> Iterator[Raster]:
    """The raster in ``path``, opened by ``driver`` alone. What the body raises on it is the file's fault, too.

    Raises:
        ImageError: it is damaged, too large, or of a kind that has no image in 8-bit RGB.
    """
    with hold_raster(path, driver, max_pixels) as raster, raster.guarded():
        yield raster


@contextmanager
def hold_raster(path: Path, driver: str, max_pixels: int) -> Iterator[Raster]:
    """:func:`open_raster` for a body that does more than read: only what it does under :meth:`Raster.guarded` is.

    Raises:
        ImageError: as for :func:`open_raster`.
    """
    with _held(path, str(path.resolve()), max_pixels, driver, _SETTINGS) as raster:
        yield raster


@contextmanager
def hold_trusted(name: str, max_pixels: int) -> Iterator[Raster]:
    """:func:`hold_raster` of what GDAL makes of ``name``: any of its paths and formats, with all that they refer to.

    Raises:
        ImageError: as for :func:`open_raster`.
    """
    with _held(Path(name), name, max_pixels, None, {"GDAL_NUM_THREADS": 1}) as raster:
        yield raster


@contextmanager
def _held(path: Path, name: str, max_pixels: int, driver: str | None, settings: dict[str, Any]) -> Iterator[Raster]:
    """``name`` opened by GDAL under ``settings``; ``path`` is how messages call it."""
    import rasterio

    heard = _Heard()
    with warnings.catch_warnings(), heard, rasterio.Env(**settings), ExitStack() as stack:
        warnings.simplefilter("ignore")  # of rasterio about files without a place on the earth
        with _damage_named(path, name):
            dataset = stack.enter_context(rasterio.open(name, driver=driver))
            check_size(path, (dataset.width, dataset.height), max_pixels)
            layout = _layout(path, dataset, driver or "")
            size = _check_blocks(path, dataset, layout, driver or "")
            rasterio.env.setenv(GDAL_CACHEMAX=CACHE_BYTES + size)  # so that none is decoded twice
        yield Raster(dataset, layout, path, heard)


@contextmanager
def _damage_named(path: Path, name: str) -> Iterator[None]:
    """What the body raises, as damage of the file in ``path``."""
    from rasterio.errors import RasterioError

    try:
        yield
    except ImageError:
        raise
    except (RasterioError, *DAMAGED) as error:
        cause = error.__cause__ or error
        said = " ".join(str(cause).replace(name, "it").split())[:200]
        raise ImageError(f"{path}: damaged, truncated or not supported ({said}); get it again, or {REMEDY}") from error


def _layout(path: Path, dataset: DatasetReader, driver: str) -> Layout:
    """What ``dataset`` says about its pixels.

    Raises:
        ImageError: it holds what is no image.
    """
    structure = dataset.tags(ns="IMAGE_STRUCTURE")
    space = structure.get("SOURCE_COLOR_SPACE", "")
    if space.upper() in _LAB:
        raise ImageError(f"{path}: colours in {space}, not RGB; {REMEDY}")
    if "LERC" in structure.get("COMPRESSION", "") and _is_big_endian(path):  # GDAL 3.10 gives such values turned round
        raise ImageError(f"{path}: LERC in big-endian order, which is not read rightly; {REMEDY}")
    roles = [role.name for role in dataset.colorinterp]
    tagged = roles.index("alpha") if "alpha" in roles else None
    colour = _colour(roles)
    dtypes = {dataset.dtypes[band] for band in colour}
    dtype = np.dtype(dataset.dtypes[colour[0]].replace("complex_int16", "complex64"))
    if dtype.kind == "c" or len(dtypes) > 1:
        names = ", ".join(sorted(dtypes))
        raise ImageError(f"{path}: values of {names}, which are no brightness of one depth; {REMEDY}")
    band = dataset.tags(colour[0] + 1, ns="IMAGE_STRUCTURE")
    bits = int(band.get("NBITS", 8 * dtype.itemsize)) if dtype.kind == "u" else 8 * dtype.itemsize
    scales = {(dataset.scales[b], dataset.offsets[b]) for b in colour}
    orientation = _orientation(path, driver)
    if space and space != "YCbCr" and orientation != 1:
        raise ImageError(f"{path}: colours in {space} and rows to be turned (orientation {orientation}); {REMEDY}")
    return Layout(
        height=dataset.height,
        width=dataset.width,
        dtype=dtype,
        bits=bits,
        colour=colour,
        count=dataset.count,
        alpha=tagged,
        surely_transparent=driver == "PNG",
        palette=_palette(dataset) if roles[colour[0]] == "palette" and len(colour) == 1 else None,
        inverted=structure.get("MINISWHITE") == "YES",
        lossy="JPEG" in structure.get("COMPRESSION", "")
        or structure.get("COMPRESSION_REVERSIBILITY", "").startswith("LOSSY"),
        no_data=any(_declares_no_data(dataset, b) for b in range(dataset.count)),
        uneven_scales=len(scales) > 1 or any(scale < 0 for scale, _ in scales),
        orientation=orientation,
    )


def _colour(roles: Sequence[str]) -> tuple[int, ...]:
    """The bands that make the picture: those tagged red, green and blue, else the first three, else the first."""
    if {"red", "green", "blue"} <= set(roles):
        return roles.index("red"), roles.index("green"), roles.index("blue")
    plain = [band for band, role in enumerate(roles) if role != "alpha"] or [0]
    return tuple(plain[:3]) if len(plain) >= 3 and "palette" not in roles else (plain[0],)


def _declares_no_data(dataset: DatasetReader, band: int) -> bool:
    names = {flag.name for flag in dataset.mask_flag_enums[band]}
    return "alpha" not in names and "all_valid" not in names


def _palette(dataset: DatasetReader) -> NDArray[np.uint8]:
    entries = dataset.colormap(1)
    table = np.zeros((max(entries) + 1, 4), dtype=np.uint8)
    for value, colour in entries.items():
        table[value] = colour
    return table


def _orientation(path: Path, driver: str) -> int:
    """EXIF's code of how the rows are to be turned, which GDAL leaves aside."""
    if driver == "PNG":
        with Pillow.open(path, formats=["PNG"]) as image:
            code = image.getexif().get(ORIENTATION, 1)
    else:
        code = _tiff_tag(path, ORIENTATION, 1) if driver == "GTiff" else 1
    return code if isinstance(code, int) and 1 <= code <= 8 else 1


def _tiff_tag(path: Path, tag: int, default: int) -> int:
    """The whole number of ``tag`` in the first directory of a TIFF or BigTIFF; ``default`` where there is none."""
    with path.open("rb") as file:
        head = file.read(16)
        order, big = "<" if head[:2] == b"II" else ">", b"+" in head[2:4]
        (start,) = struct.unpack(f"{order}{'Q' if big else 'I'}", head[8:16] if big else head[4:8])
        file.seek(min(start, path.stat().st_size))
        (count,) = struct.unpack(f"{order}{'Q' if big else 'H'}", file.read(8 if big else 2))
        size, value = (20, 12) if big else (12, 8)
        entries = file.read(size * min(count, 1 << 16))
    for place in range(0, len(entries) - size + 1, size):
        code, kind = struct.unpack_from(f"{order}HH", entries, place)
        if code == tag and kind in (3, 4):
            return int(struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", entries, place + value)[0])
    return default


def _is_big_endian(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"MM"


def _check_blocks(path: Path, dataset: DatasetReader, layout: Layout, driver: str) -> int:
    """Demand strips or tiles that fit the memory and are all there: GDAL reads those that are not as 0.

    Returns:
        The bytes of one.

    Raises:
        ImageError: they do not, or are not.
    """
    height, width = dataset.block_shapes[0]
    together = layout.count if dataset.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") == "PIXEL" else 1
    size = height * width * together * layout.dtype.itemsize
    if size > MAX_BLOCK_BYTES:
        raise ImageError(
            f"{path}: stored in blocks of {width} x {height} pixels = {size >> 20} MiB, more than "
            f"{MAX_BLOCK_BYTES >> 20}; store it in small tiles (gdal_translate -co TILED=YES IN OUT)"
        )
    if driver == "GTiff" and not layout.no_data and any(_missing(path, dataset, band) for band in layout.colour):
        raise ImageError(
            f"{path}: has strips or tiles that were never written, and declares no value as no data; write it anew, or "
            "declare one (gdal_translate -a_nodata 0 IN OUT)"
        )
    return int(size)


def _missing(path: Path, dataset: DatasetReader, band: int) -> bool:
    """Whether a strip or tile of a TIFF's ``band`` is not in the file."""
    height, width = dataset.block_shapes[band]
    if height == 1:  # GDAL also says so of one large strip that it reads line by line
        height = max(1, min(dataset.height, _tiff_tag(path, _ROWS_PER_STRIP, dataset.height)))
    places = ((x, y) for y in range(-(-dataset.height // height)) for x in range(-(-dataset.width // width)))
    return any(dataset.get_tag_item(f"BLOCK_OFFSET_{x}_{y}", "TIFF", bidx=band + 1) is None for x, y in places)
