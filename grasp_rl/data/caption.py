r"""A strip of text for above an image, in any script: two questions that differ never look alike.

DejaVu Sans, which matplotlib ships, has Latin, Greek, Cyrillic, Arabic, Hebrew and more; other characters are drawn
with a font of the system that has them. A character that no font has, or that cannot be seen, is written as its code
point (``\u6c34``).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from grasp_rl.types import Image

LINE, SIZE, MARGIN = 18, 12, 4
"""Height of a line, of the letters, and the space beside them, in pixels."""
MIN_WIDTH = 120
"""Narrowest strip, in pixels."""
_NO_LETTERS = ("emoji", "last resort", "lastresort", "blank", "notdef")
"""Fonts whose glyphs are pictures, or the same for every character."""
_BROAD = ("Noto", "CJK", "Unicode", "Unifont", "WenQuanYi", "Droid")
"""Words in the names of fonts made for many scripts."""
_ENDINGS = (".ttf", ".otf", ".ttc")
_INVISIBLE = ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs")

Letter = tuple[str, str]
"""(path of a font, text that it can draw)"""


def caption(text: str, width: int) -> Image:
    """``text``, wrapped, on a white strip [h, w, 3] uint8 RGB of ``width`` pixels, at least :data:`MIN_WIDTH`."""
    width = max(width, MIN_WIDTH)
    lines = _wrapped(text, width - 2 * MARGIN)
    strip = Pillow.new("RGB", (width, LINE * len(lines) + 8), "white")
    draw = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        x = float(MARGIN)
        for path, run in groupby(line, key=itemgetter(0)):
            word = "".join(letters for _, letters in run)
            draw.text((x, 16 + LINE * number), word, fill=(20, 20, 20), font=_font(path), anchor="ls")
            x += _font(path).getlength(word)
    return np.asarray(strip, dtype=np.uint8)


def _wrapped(text: str, width: int) -> list[list[Letter]]:
    """The letters of every line; a word that is wider than ``width`` pixels goes over several lines."""
    lines: list[list[Letter]] = [[]]
    used = 0.0
    for word in text.split():
        letters = list(_letters(word))
        whole = sum(map(_width, letters))
        space = (_shipped(), " ")
        if lines[-1] and used + _width(space) + whole > width:
            lines.append([])
            used = 0.0
        elif lines[-1]:
            lines[-1].append(space)
            used += _width(space)
        for letter in letters:
            if lines[-1] and used + _width(letter) > width:
                lines.append([])
                used = 0.0
            lines[-1].append(letter)
            used += _width(letter)
    return lines


def _letters(word: str) -> Iterator[Letter]:
    for character in word:
        font = None if unicodedata.category(character) in _INVISIBLE else _font_with(character)
        code = ascii(character)[1:-1]
        yield (font, character) if font is not None else (_shipped(), code)


@lru_cache(maxsize=65536)
def _width(letter: Letter) -> float:
    return float(_font(letter[0]).getlength(letter[1]))


@lru_cache(maxsize=64)
def _font(path: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, SIZE)


@lru_cache(maxsize=1)
def _shipped() -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")


@lru_cache(maxsize=65536)
def _font_with(character: str) -> str | None:
    """The path of the first font that has ``character``."""
    if ord(character) in _characters(_shipped()):
        return _shipped()
    return next((path for path in system_fonts() if ord(character) in _characters(path)), None)


@lru_cache(maxsize=1)
def system_fonts() -> tuple[str, ...]:
    """Fonts of the system, those made for many scripts first."""
    from matplotlib import font_manager

    fonts = {font.fname: font.name for font in font_manager.fontManager.ttflist if font.fname.endswith(_ENDINGS)}
    kept = [path for path, name in fonts.items() if not any(word in name.lower() for word in _NO_LETTERS)]
    return tuple(sorted(kept, key=lambda path: (not any(word in fonts[path] for word in _BROAD), path)))


@lru_cache(maxsize=4096)
def _characters(path: str) -> frozenset[int]:
    """The code points that a font has glyphs for; none where it cannot be read or drawn at this size."""
    from matplotlib.ft2font import FT2Font

    try:
        _font(path)
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
