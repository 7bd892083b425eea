"""Captions: any script can be told apart, nothing runs out of the strip, and no font of the system is needed."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from grasp_rl.data import caption as captions
from grasp_rl.data.caption import LINE, MIN_WIDTH, caption
from grasp_rl.data.visualization import with_caption

PAIRS = [
    ("水在哪里？", "船在哪里？"),
    ("Wo liegt die Brücke?", "Wo liegt die Bräcke?"),
    ("Где мост?", "Где порт?"),
    ("पानी कहाँ है?", "नाव कहाँ है?"),
    ("น้ำอยู่ที่ไหน", "เรืออยู่ที่ไหน"),
    ("أين الماء؟", "أين السفينة؟"),
    ("מים", "ספינה"),
    ("물은 어디에", "배는 어디에"),
    ("🚢 there?", "🛥 there?"),
    ("\U00020000", "\U00020001"),
    ("no\u200bbreak", "nobreak"),
    ("\ud800?", "\ud801?"),
    ("where", "there"),
]


@pytest.fixture(params=["with the system's fonts", "with none"])
def _fonts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    captions._font_with.cache_clear()
    if request.param == "with none":
        monkeypatch.setattr(captions, "system_fonts", tuple)
    else:
        assert isinstance(captions.system_fonts(), tuple)


@pytest.mark.usefixtures("_fonts")
def test_no_two_questions_look_alike() -> None:
    strips = [caption(text, 336) for pair in PAIRS for text in pair]
    for first, second in combinations(strips, 2):
        assert first.shape != second.shape or (first != second).any()
    captions._font_with.cache_clear()


def test_a_letter_without_a_glyph_is_written_as_its_code_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions, "system_fonts", tuple)
    captions._font_with.cache_clear()
    np.testing.assert_array_equal(caption("水 ü", 336), caption("\\u6c34 ü", 336))
    captions._font_with.cache_clear()


@pytest.mark.parametrize("text", ["W" * 500, "水" * 200, "where could a boat land " * 20, "\u0430" * 300])
def test_long_text_is_wrapped_inside_the_strip(text: str) -> None:
    strip = caption(text, 336)
    assert strip.shape[0] > 3 * LINE
    assert (strip[:, -2:] == 255).all()
    assert (strip[:, :2] == 255).all()
    longer = caption(text + text[0], 336)
    assert strip.shape != longer.shape or (strip != longer).any()


def test_a_narrow_image_is_widened() -> None:
    image = np.full((40, 3, 3), 7, dtype=np.uint8)
    result = with_caption(image, "where?")
    assert result.shape == (40 + LINE + 8, MIN_WIDTH, 3)
    np.testing.assert_array_equal(result[-40:, :3], image)
    assert (result[-40:, 3:] == 255).all()
    assert with_caption(np.zeros((40, 336, 3), dtype=np.uint8), "").shape == (40 + LINE + 8, 336, 3)
