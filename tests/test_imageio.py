"""Reading images: every kind of file gives the defined pixels or one clear error."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.image_io import ImageError, read_image, write_image
from grasp_rl.data.masks import read_mask


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def save(path: Path, array: np.ndarray, mode: str | None = None, **options: Any) -> Path:
    image = Pillow.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "ppm"])
def test_lossless_formats_give_the_same_pixels(tmp_path: Path, rgb: np.ndarray, ending: str) -> None:
    read = read_image(save(tmp_path / f"a.{ending}", rgb))
    assert read.dtype == np.uint8
    assert read.flags.writeable
    np.testing.assert_array_equal(read, rgb)


@pytest.mark.parametrize("ending", ["jpg", "webp", "jp2"])
def test_lossy_formats_are_close(tmp_path: Path, ending: str) -> None:
    flat = np.full((16, 24, 3), (200, 100, 50), np.uint8)
    read = read_image(save(tmp_path / f"a.{ending}", flat))
    assert read.shape == (16, 24, 3)
    assert np.abs(read.astype(int) - flat).max() <= 6


def test_content_decides_not_the_name(tmp_path: Path, rgb: np.ndarray) -> None:
    save(tmp_path / "a.png", rgb)
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), rgb)


def test_grey_and_one_bit(tmp_path: Path, rgb: np.ndarray) -> None:
    grey = rgb[..., 0]
    np.testing.assert_array_equal(read_image(save(tmp_path / "l.png", grey)), np.repeat(grey[..., None], 3, 2))
    bits = read_image(save(tmp_path / "1.png", grey > 99))
    np.testing.assert_array_equal(bits[..., 1], np.where(grey > 99, 255, 0))


def test_palette(tmp_path: Path) -> None:
    image = Pillow.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "p.png")
    assert (read_image(tmp_path / "p.png") == (10, 20, 30)).all()
    image.save(tmp_path / "t.png", transparency=1)
    assert (read_image(tmp_path / "t.png") == 0).all()


def test_transparent_parts_become_black(tmp_path: Path) -> None:
    rgba = np.full((2, 3, 4), (200, 100, 50, 255), np.uint8)
    rgba[0, :, 3] = 0
    read = read_image(save(tmp_path / "a.png", rgba))
    assert (read[0] == 0).all()
    assert (read[1] == (200, 100, 50)).all()
    grey_alpha = read_image(save(tmp_path / "la.png", rgba, "LA"))
    assert (grey_alpha[0] == 0).all()
    assert grey_alpha[1].min() > 0


def test_cmyk(tmp_path: Path) -> None:
    Pillow.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    assert (read_image(tmp_path / "a.tif") == (255, 0, 0)).all()
    Pillow.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - (255, 0, 0)).max() <= 6


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bit_grey_is_stretched(tmp_path: Path, ending: str) -> None:
    ramp = np.linspace(300, 1300, 101).astype(np.uint16)[None].repeat(3, 0)  # an 11-bit sensor
    read = read_image(save(tmp_path / f"a.{ending}", ramp))
    assert read[0, 2, 0] == 0
    assert read[0, 98, 0] == 255
    assert read[0, 50, 0] in (127, 128)
    assert (read[..., 0] == read[..., 2]).all()


def test_sixteen_bit_colour_keeps_the_high_byte(tmp_path: Path) -> None:
    row = b"\0" + struct.pack(">3H", 0x1234, 0xFF00, 0x00FF)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", 1, 1, 16, 2, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(png + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b""))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[0x12, 0xFF, 0x00]]])


def test_float_with_holes(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 101, dtype=np.float32)[None].repeat(2, 0)
    values[0, 0] = np.nan
    read = read_image(save(tmp_path / "a.tif", values))
    assert read[0, 0, 0] == 0
    assert read[1, 100, 0] == 255
    assert (read_image(save(tmp_path / "c.tif", np.full((2, 2), 7.0, np.float32))) == 0).all()
    assert (read_image(save(tmp_path / "n.tif", np.full((2, 2), np.nan, np.float32))) == 0).all()


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_exif_rotation_is_applied(tmp_path: Path, ending: str) -> None:
    array = np.zeros((16, 48, 3), np.uint8)
    array[:, :16] = 255  # the left third is white
    exif = Pillow.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees clockwise: the left edge comes up
    read = read_image(save(tmp_path / f"a.{ending}", array, exif=exif))
    assert read.shape == (48, 16, 3)
    assert read[:12].mean() > 240
    assert read[20:].mean() < 15


def test_first_frame_of_several(tmp_path: Path) -> None:
    frames = [Pillow.new("RGB", (5, 5), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "a.tif") == (255, 0, 0)).all()


def test_a_very_wide_image_is_read(tmp_path: Path) -> None:
    wide = np.zeros((2, 30_000, 3), np.uint8)
    assert read_image(save(tmp_path / "a.png", wide)).shape == (2, 30_000, 3)


def test_too_many_pixels(tmp_path: Path, rgb: np.ndarray) -> None:
    path = save(tmp_path / "a.png", rgb)
    assert read_image(path, max_pixels=600).shape == (20, 30, 3)
    with pytest.raises(ImageError, match=r"a\.png: 30 x 20 pixels = 600, more than 599; cut it into tiles"):
        read_image(path, max_pixels=599)


@pytest.mark.parametrize("side", [20_000, 60_000])
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0))
    (tmp_path / "bomb.png").write_bytes(png + chunk(b"IDAT", zlib.compress(b"\0" * 10_000)) + chunk(b"IEND", b""))
    with pytest.raises(ImageError, match=r"bomb\.png.*tiles"):
        read_image(tmp_path / "bomb.png")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.png", b"", "an empty file"),
        ("text.png", b"hello, world, this is text", "not an image"),
        ("svg.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        ("eps.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_what_is_no_image(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=f"{name}: .*{said}"):
        read_image(tmp_path / name)


def test_missing_file_folder_and_unreadable_mode(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.png: no such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="not a file"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="not a file"):
        read_image("/dev/zero")
    assert issubclass(ImageError, ConfigError)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp", "gif", "bmp", "jp2", "ppm"])
def test_damage_gives_an_image_or_a_clear_error(tmp_path: Path, rgb: np.ndarray, ending: str) -> None:
    whole = save(tmp_path / f"whole.{ending}", rgb).read_bytes()
    rng, path = np.random.default_rng(1), tmp_path / f"a.{ending}"
    damaged: list[bytes] = [whole[: int(len(whole) * part)] for part in (0.1, 0.5, 0.9)]
    for _ in range(60):
        changed = bytearray(whole)
        for position in rng.integers(0, len(changed), 4):
            changed[position] = int(rng.integers(256))
        damaged.append(bytes(changed))
    errors = []
    for body in damaged:
        path.write_bytes(body)
        try:
            assert read_image(path, max_pixels=1_000_000).shape[2] == 3
        except ImageError as error:
            errors.append(str(error))
    assert len(errors) >= 2
    assert all(str(path) in error and "\n" not in error for error in errors)


def test_masks(tmp_path: Path) -> None:
    mask = np.zeros((6, 8), bool)
    mask[1:3, 2:5] = True
    write_image(tmp_path / "bool.png", mask)
    grey = save(tmp_path / "one.png", mask.astype(np.uint8))
    deep = save(tmp_path / "deep.png", mask.astype(np.uint16) * 256)
    colour = save(tmp_path / "rgb.png", mask[..., None] * np.array([0, 0, 1], np.uint8))
    alpha = np.full((6, 8, 4), 255, np.uint8)
    alpha[..., 3] = mask * 255
    indices = Pillow.fromarray(mask.astype(np.uint8)).convert("P")
    indices.putpalette([255, 255, 255, 0, 0, 0])
    indices.save(tmp_path / "p.png")
    for path in (tmp_path / "bool.png", grey, deep, colour, save(tmp_path / "alpha.png", alpha), tmp_path / "p.png"):
        np.testing.assert_array_equal(read_mask(path, (6, 8)), mask, err_msg=path.name)
    assert read_image(tmp_path / "bool.png").max() == 255


def test_a_jpeg_mask_is_cut_at_half(tmp_path: Path) -> None:
    mask = np.zeros((32, 32), bool)
    mask[8:24, 8:24] = True
    path = save(tmp_path / "m.jpg", np.where(mask, 255, 0).astype(np.uint8), quality=60)
    assert (read_mask(path, (32, 32)) != mask).mean() < 0.02


def test_a_mask_of_another_size(tmp_path: Path) -> None:
    write_image(tmp_path / "m.png", np.ones((6, 8), bool))
    with pytest.raises(ImageError, match=r"a mask of 8 x 6 pixels \(width x height\) for an image of 6 x 8"):
        read_mask(tmp_path / "m.png", (8, 6))


def test_written_images_read_back(tmp_path: Path, rgb: np.ndarray) -> None:
    write_image(tmp_path / "a.png", rgb)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), rgb)
    assert Pillow.open(io.BytesIO((tmp_path / "a.png").read_bytes())).format == "PNG"
