"""Images and masks from files, by one careful reader; Pillow only.

Reading gives 8-bit RGB, whatever the file holds, or an :class:`ImageError` that says what was found and what to do:

- the orientation that a camera wrote into EXIF is applied, and of several frames or pages the first one is read;
- grey, palette, CMYK and YCbCr are converted; transparent parts become black;
- one band of 16 or 32 bits is stretched from its 2nd..98th percentile to 0..255; colour of 16 bits keeps its high byte.

The size in the file's header is checked before a pixel is decoded, so that a small file cannot fill the memory.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError

from grasp_rl.config.errors import ConfigError
from grasp_rl.types import BoolMask, Image

MAX_PIXELS = 100_000_000
"""Largest image that is read, 100 megapixels: 300 MB as RGB."""
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_REMEDY = "convert it to an 8-bit RGB PNG or JPEG (gdal_translate -ot Byte -scale -b 1 -b 2 -b 3 IN OUT)"
_DAMAGED = (OSError, SyntaxError, ValueError, TypeError, IndexError, OverflowError, EOFError, struct.error, zlib.error)
"""What Pillow's decoders raise on files that are damaged; they have no common class of their own."""


class ImageError(ConfigError):
    """An image that cannot be used. The message names the file, what was found and the remedy."""


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image:
    """The image in ``path`` as [H, W, 3] uint8 RGB; see the module docstring for the conversions.

    Args:
        path: A file in one of :data:`FORMATS`, told by its content and not by its name.
        max_pixels: Largest width times height that is decoded.

    Raises:
        ImageError: there is no such file, it is damaged, too large, or of a kind that has no image in 8-bit RGB.
    """
    with _decoded(Path(path), max_pixels) as image:
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            grey = _stretch(np.asarray(image, dtype=np.float64))
            return np.repeat(grey[..., None], 3, axis=2)
        return _on_black(image)


def read_mask(path: str | Path, size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> BoolMask:
    """The mask in ``path`` as [H, W] bool: True where a value is not 0.

    Of a palette the index counts, of colour any channel, of a lossy JPEG a value of at least 128; transparent parts
    are False.

    Args:
        path: A file in one of :data:`FORMATS`.
        size: (height, width) of the image it belongs to.
        max_pixels: Largest width times height that is decoded.

    Raises:
        ImageError: the file cannot be read, or has another size.
    """
    path = Path(path)
    with _decoded(path, max_pixels) as image:
        if (image.height, image.width) != size:
            result, expected = f"{image.width} x {image.height}", f"{size[1]} x {size[0]}"
            raise ImageError(
                f"{path}: a mask of {result} pixels (width x height) for an image of {expected}; make one of its size"
            )
        indexed = image.mode in ("1", "L", "P", "I", "F") or image.mode.startswith("I;")
        values = np.asarray(image) if indexed else _on_black(image).max(axis=2)
        least = 128 if image.format in ("JPEG", "MPO") else 1
        return np.asarray(values >= least if least > 1 else values != 0, dtype=np.bool_)


def write_image(path: str | Path, image: Image | BoolMask) -> None:
    """Write [H, W, 3] uint8 RGB, or a mask [H, W] as 0 and 255, to ``path``; its ending names the format."""
    pixels = np.where(image, np.uint8(255), np.uint8(0)) if image.dtype == np.bool_ else image
    Pillow.fromarray(np.ascontiguousarray(pixels)).save(path)


@contextmanager
def _decoded(path: Path, max_pixels: int) -> Iterator[Pillow.Image]:
    """The decoded, upright first frame of ``path``. What the body raises on it is the file's fault, too."""
    if not path.is_file():
        raise ImageError(f"{path}: {'not a file' if path.exists() else 'no such file'}; name an image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow about size and EXIF: the size is checked here
            with Pillow.open(path, formats=FORMATS) as image:
                _check_size(path, image.size, max_pixels)
                image.load()
                kind = image.format
                upright = ImageOps.exif_transpose(image)
                upright.format = kind
                yield upright
    except ImageError:
        raise
    except Pillow.DecompressionBombError as error:
        raise ImageError(f"{path}: {error}; at most {max_pixels:,} pixels are read; cut it into tiles") from error
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise ImageError(f"{path}: {_content(path)}, not an image that can be read ({known}); {_REMEDY}") from error
    except PermissionError as error:
        raise ImageError(f"{path}: may not be read; change its permissions") from error
    except _DAMAGED as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise ImageError(f"{path}: damaged or truncated ({said}); get it again, or {_REMEDY}") from error


def _check_size(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{path}: {width} x {height} pixels, nothing to look at")
    if width * height > max_pixels:
        raise ImageError(
            f"{path}: {width} x {height} pixels = {width * height:,}, more than {max_pixels:,}; cut it into tiles or "
            "make it smaller"
        )


def _content(path: Path) -> str:
    head = path.read_bytes()[:12] if path.stat().st_size < 1 << 20 else b"?"
    return "an empty file" if not head else f"{path.stat().st_size:,} bytes that begin with {head!r}"


def _stretch(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """[H, W] of any range to 0..255, the 2nd percentile of the finite values to 0 and the 98th to 255."""
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, dtype=np.uint8)
    low, high = np.percentile(values[finite], (2, 98))
    if high <= low:
        low, high = values[finite].min(), values[finite].max()
    scaled = (np.where(finite, values, low) - low) / max(high - low, np.finfo(np.float64).tiny) * 255
    return np.asarray(np.clip(np.rint(scaled), 0, 255), dtype=np.uint8)


def _on_black(image: Pillow.Image) -> Image:
    """[H, W, 3] uint8 RGB with transparent parts over black."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        black = Pillow.new("RGBA", rgba.size, (0, 0, 0, 255))
        image = Pillow.alpha_composite(black, rgba)
    return np.array(image.convert("RGB"), dtype=np.uint8)
