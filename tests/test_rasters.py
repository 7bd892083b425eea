"""Rasters of every make: read as they are meant, or refused in one sentence."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from grasp_rl.data import rasters, stretch
from grasp_rl.data.image_io import ImageError, ImageReading, read_described, read_image
from grasp_rl.data.pixels import upright

rasterio = pytest.importorskip("rasterio")
HEIGHT, WIDTH = 24, 37
RGB = np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH), dtype=np.uint8)
GREY = RGB[0]


@pytest.fixture(autouse=True)
def _plain_files() -> Iterator[None]:
    """rasterio warns of every file without a place on the earth; those here have none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield


def write(path: Path, bands: np.ndarray, *, mask: np.ndarray | None = None, **options: Any) -> Path:
    """Write [C, H, W] or [H, W] by rasterio; ``mask`` [H, W] goes into the file."""
    bands = bands if bands.ndim == 3 else bands[None]
    extra = {key: options.pop(key) for key in ("colorinterp", "colormap", "scales", "offsets") if key in options}
    profile = {"driver": "GTiff", "dtype": bands.dtype, "count": len(bands)} | options
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True, GDAL_PAM_ENABLED=False),
        rasterio.open(path, "w", height=bands.shape[1], width=bands.shape[2], **profile) as file,
    ):
        file.write(bands)
        for key, value in extra.items():
            if key == "colormap":
                file.write_colormap(1, value)
            else:
                setattr(file, key, value)
        if mask is not None:
            file.write_mask(mask)
    return path


def roles(*names: str) -> list[Any]:
    return [rasterio.enums.ColorInterp[name] for name in names]


def image_of(bands: np.ndarray) -> np.ndarray:
    return np.repeat(bands[..., None], 3, axis=2) if bands.ndim == 2 else bands.transpose(1, 2, 0)


def stretched(values: np.ndarray, valid: np.ndarray, bounds: tuple[float, float] | None = None) -> np.ndarray:
    """What the documentation says of a stretch, written down a second time: ``values`` and ``valid`` [C, H, W]."""
    ordered = np.sort(values[valid].astype(np.longdouble))
    if bounds is None:
        places = [share * (len(ordered) - 1) for share in (0.02, 0.98)]
        low, high = (
            ordered[int(p)] + (ordered[min(int(p) + 1, len(ordered) - 1)] - ordered[int(p)]) * (p - int(p))
            for p in places
        )
    else:
        low, high = (np.longdouble(bound) for bound in bounds)
    shown = np.clip((np.where(valid, values, 0).astype(np.longdouble) - low) / (high - low) * 255, 0, 255)
    return np.where(valid, np.rint(shown), 0)


DEPTHS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64", "uint64", "int64")
LOSSLESS = ("none", "lzw", "deflate", "zstd", "packbits", "lzma", "lerc")


def odd(number: int, path: Path) -> tuple[str, np.ndarray]:
    """Write the raster ``number``; what it is in words, and the image [H, W, 3] that it means."""
    rng = np.random.default_rng(number)
    dtype = np.dtype(DEPTHS[number % len(DEPTHS)])
    count = int(rng.choice([1, 2, 3, 4, 5, 8]))
    height, width = (int(n) for n in rng.integers(5, 60, 2))
    info = np.iinfo(dtype) if dtype.kind in "iu" else None
    low, high = (0.0, 1.0) if info is None else (max(info.min / 4, -9e8), min(info.max / 4, 9e8))
    values = rng.uniform(low, high, (count, height, width)) * rng.uniform(0.3, 1, (count, 1, 1))
    bands = values.astype(dtype)
    options: dict[str, Any] = {"compress": str(rng.choice(LOSSLESS)), "interleave": str(rng.choice(["band", "pixel"]))}
    if options["compress"] == "lerc" and dtype in ("uint64", "int64"):
        options["compress"] = "none"  # LERC has none of these
    options |= (
        {"tiled": True, "blockxsize": 16, "blockysize": 32}
        if rng.random() < 0.5
        else {"blockysize": int(rng.integers(1, 70))}
    )
    options |= {"endianness": str(rng.choice(["little", "big"])), "bigtiff": str(rng.choice(["yes", "no"]))}
    options |= {"photometric": "minisblack", "alpha": "no"}
    bits, as_is = 8 * dtype.itemsize, dtype == "uint8"
    if dtype in ("uint8", "uint16") and rng.random() < 0.4 and options["compress"] != "lerc":
        bits = int(rng.choice([1, 2, 4] if dtype == "uint8" else [10, 12]))
        bands, options["nbits"] = (
            rng.integers(0, 2**bits // (2 if dtype == "uint16" else 1), bands.shape).astype(dtype),
            bits,
        )
    valid = np.ones(bands.shape, bool)
    if rng.random() < 0.3:
        hole = rng.random((height, width)) < 0.2
        sentinel = {"f": -9999.0, "u": 2**bits - 1, "i": info.min if info else 0}[dtype.kind]
        if dtype.itemsize < 8 or dtype.kind == "f":
            bands[:, hole], options["nodata"] = sentinel, sentinel
            valid &= bands != dtype.type(sentinel)
    elif dtype.kind == "f" and rng.random() < 0.5:
        hole = rng.random(bands.shape) < 0.2
        bands[hole], valid[hole] = rng.choice([np.nan, np.inf, -np.inf], hole.sum()), False
    mask = rng.random((height, width)) < 0.8 if rng.random() < 0.2 and "nodata" not in options else None
    if mask is not None:
        valid &= mask
    white = count == 1 and dtype.kind == "u" and rng.random() < 0.3 and "nodata" not in options
    if white:
        options["photometric"] = "miniswhite"
    order = [0, 1, 2] if count >= 3 else [0]
    if count >= 3 and rng.random() < 0.5:
        names = ["red", "green", "blue"] + ["undefined"] * (count - 3)
        names = [names[i] for i in rng.permutation(count)]
        options["colorinterp"] = roles(*names)
        order = [names.index(name) for name in ("red", "green", "blue")]
    write(path, bands, mask=mask, **options)
    if rng.random() < 0.3 and min(height, width) > 8:
        with rasterio.open(path, "r+") as file:
            file.build_overviews([2], rasterio.enums.Resampling.average)
    used, seen = bands[order], valid[order]
    if as_is:
        shown = used.astype(int) * 255 // (2**bits - 1)
        expected = np.where(seen.any(axis=0), 255 - shown if white else shown, 0)
    else:
        shown = stretched(used, seen)
        expected = np.where(seen, 255 - shown if white else shown, 0)
    described = f"{number}: {count} x {dtype} {height} x {width} {options} mask={mask is not None}"
    return described, np.broadcast_to(expected.transpose(1, 2, 0), (height, width, 3))


def test_three_hundred_odd_rasters(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wrong = []
    for number in range(300):
        described, expected = odd(number, tmp_path / "a.tif")
        if "'lerc'" in described and "'big'" in described:
            with pytest.raises(ImageError, match="LERC in big-endian order"):
                read_image(tmp_path / "a.tif")
            continue
        read = read_image(tmp_path / "a.tif")
        off = np.abs(read.astype(int) - expected).max() if read.shape == expected.shape else read.shape
        wrong += [] if np.all(np.array(off) <= 1) else [f"{described}: off by {off}"]
    assert wrong == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "near"),
    [
        ({"compress": "jpeg", "photometric": "YCBCR"}, 40),
        ({"compress": "jpeg"}, 40),
        ({"compress": "webp"}, 60),
        ({"compress": "lerc_zstd"}, 0),
        ({"driver": "JP2OpenJPEG", "quality": "100", "reversible": "yes"}, 0),
    ],
)
def test_other_compressions(tmp_path: Path, options: dict[str, Any], near: int) -> None:
    smooth = np.stack([np.add.outer(np.arange(32) * a, np.arange(48) * b) for a, b in ((2, 3), (3, 1), (1, 2))])
    smooth = smooth.astype(np.uint8)
    read = read_image(write(tmp_path / "a.tif", smooth, **options))
    assert np.median(np.abs(read.astype(int) - image_of(smooth))) <= near / 10
    assert np.abs(read.astype(int) - image_of(smooth)).max() <= near


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LA", "RGBA"])
def test_what_pillow_writes_as_tiff(tmp_path: Path, mode: str) -> None:
    image = Pillow.fromarray(image_of(RGB)).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(255)
    image.save(tmp_path / "a.tif")
    expected = np.asarray(image.convert("RGB"), dtype=int)
    assert np.abs(read_image(tmp_path / "a.tif").astype(int) - expected).max() <= (
        2 if mode in ("CMYK", "YCbCr") else 0
    )


@pytest.mark.parametrize("code", range(1, 9))
@pytest.mark.parametrize("ending", ["tif", "png", "jpg"])
def test_the_orientation_of_a_camera(tmp_path: Path, code: int, ending: str) -> None:
    stored = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 50, np.ones((16, 16), np.uint8))
    exif = Pillow.Exif()
    exif[rasters.ORIENTATION] = code
    deep = stored.astype(np.uint16) * 257 if ending == "png" else stored
    Pillow.fromarray(deep).save(tmp_path / f"a.{ending}", exif=exif)
    turn = {2: 0, 3: 1, 4: 2, 5: 5, 6: 4, 7: 6, 8: 3}  # EXIF's codes as Pillow's Transpose methods, by their meaning
    methods = [Pillow.Transpose.FLIP_LEFT_RIGHT, Pillow.Transpose.ROTATE_180, Pillow.Transpose.FLIP_TOP_BOTTOM]
    methods += [Pillow.Transpose.ROTATE_90, Pillow.Transpose.ROTATE_270, Pillow.Transpose.TRANSPOSE]
    methods += [Pillow.Transpose.TRANSVERSE]
    plain = Pillow.fromarray(stored)
    expected = np.asarray(plain if code == 1 else plain.transpose(methods[turn[code]]), dtype=int)
    read = read_image(tmp_path / f"a.{ending}").astype(int)
    assert read.shape == (*expected.shape, 3)
    assert np.abs(read[..., 0] - expected).max() <= 4
    np.testing.assert_array_equal(upright(stored, code), expected)


def test_a_fourth_band_is_no_transparency(tmp_path: Path) -> None:
    near_infrared = np.where(GREY > 128, 200, 5).astype(np.uint8)
    four = np.concatenate([RGB, near_infrared[None]])
    for alpha in ("unspecified", "no", "yes", "premultiplied"):
        read, told = read_described(write(tmp_path / "a.tif", four, photometric="RGB", alpha=alpha))
        np.testing.assert_array_equal(read, image_of(RGB), err_msg=alpha)
        assert told.startswith("bands 1, 2, 3 of 4")
        assert ("band 4 is tagged as transparency but graded" in told) == (alpha in ("yes", "premultiplied"))
    four[3] = 0  # a fourth band left empty is not a picture left empty
    read, told = read_described(write(tmp_path / "a.tif", four, photometric="RGB", alpha="yes"))
    np.testing.assert_array_equal(read, image_of(RGB))
    assert "0 throughout" in told
    jpeg2000 = write(
        tmp_path / "a.jp2",
        np.concatenate([RGB, near_infrared[None]]),
        driver="JP2OpenJPEG",
        reversible="yes",
        quality="100",
    )
    np.testing.assert_array_equal(read_image(jpeg2000), image_of(RGB))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_band_of_none_and_full_is_transparency(tmp_path: Path, dtype: str, count: int) -> None:
    clear = np.arange(HEIGHT)[:, None] < 4
    full = np.iinfo(dtype).max
    colours = RGB[:count].astype(dtype) * (full // 255)
    bands = np.concatenate([colours, np.broadcast_to(np.where(clear, 0, full), (1, HEIGHT, WIDTH)).astype(dtype)])
    options = {"photometric": "RGB" if count == 3 else "minisblack", "alpha": "yes"}
    read, told = read_described(write(tmp_path / "a.tif", bands, **options))
    expected = np.where(clear[..., None], 0, image_of(RGB[:count] if count == 3 else GREY))
    np.testing.assert_array_equal(read, expected)
    assert "bands" not in told


def test_a_soft_edge_is_transparency_too(tmp_path: Path) -> None:
    """As a warped image has it."""
    opacity = np.clip((np.arange(HEIGHT) - 4) * 170, 0, 255).astype(np.uint8)
    assert opacity[:6].tolist() == [0, 0, 0, 0, 0, 170]
    four = np.concatenate([RGB, np.repeat(opacity[:, None], WIDTH, 1)[None]])
    read, told = read_described(write(tmp_path / "a.tif", four, photometric="RGB", alpha="yes"))
    assert told == ""
    assert np.abs(read - image_of(RGB) * (opacity / 255)[:, None, None]).max() <= 1
    four[3] = 255
    four[3, 0] = 5  # nothing is clear
    assert "but graded" in read_described(write(tmp_path / "a.tif", four, photometric="RGB", alpha="yes"))[1]


def test_a_large_strip_is_there_though_gdal_reads_it_in_lines(tmp_path: Path) -> None:
    tall = np.tile(GREY[:, :20], (100, 1))
    assert len(tall) > 2000  # from there on GDAL splits one strip into lines
    path = write(tmp_path / "a.tif", tall, compress="deflate", blockysize=len(tall))
    with rasterio.open(path) as file:
        assert file.block_shapes == [(1, 20)]
    np.testing.assert_array_equal(read_image(path), image_of(tall))


def test_an_image_of_sixteen_bits_with_true_transparency(tmp_path: Path) -> None:
    deep = RGB.astype(np.uint16) * 257
    opacity = np.broadcast_to(np.linspace(0, 65535, WIDTH).astype(np.uint16), (1, HEIGHT, WIDTH))
    read = read_image(write(tmp_path / "a.png", np.concatenate([deep, opacity]), driver="PNG"))
    expected = image_of(RGB) * (opacity[0] / 65535)[..., None]
    assert np.abs(read - expected).max() <= 1


@pytest.mark.parametrize(
    ("ending", "driver"), [("tif", "GTiff"), ("png", "PNG"), ("ppm", "PNM"), ("jp2", "JP2OpenJPEG")]
)
def test_colour_of_sixteen_bits(tmp_path: Path, ending: str, driver: str) -> None:
    options = {"driver": driver} | ({"reversible": "yes", "quality": "100"} if ending == "jp2" else {})
    options |= {"photometric": "RGB"} if ending == "tif" else {}
    eleven = RGB.astype(np.uint16) * 8
    read, told = read_described(write(tmp_path / f"a.{ending}", eleven, **options))
    assert np.abs(read - image_of(stretched(eleven, np.ones(eleven.shape, bool)))).max() <= 1
    assert told == "uint16 stretched from its 2nd..98th percentile to 0..255"
    read, told = read_described(write(tmp_path / f"b.{ending}", RGB.astype(np.uint16) * 257, **options))
    np.testing.assert_array_equal(read, image_of(RGB))
    assert told == "uint16 that uses its range cut to its highest 8 bits"


def test_bands_are_stretched_together(tmp_path: Path) -> None:
    """Land and water keep their colours: a stretch of every band for itself would make both grey."""
    scene = np.empty((3, 32, 32), np.uint16)
    scene[:] = np.array([40, 80, 150])[:, None, None] * 8
    scene[:, :16, :16] = np.array([120, 140, 90])[:, None, None] * 8
    land, water = read_image(write(tmp_path / "a.tif", scene, photometric="RGB"))[[2, 20], [2, 20]].astype(int)
    assert (land - water).tolist() == pytest.approx([185, 139, -139], abs=2)


def test_no_data_takes_no_part(tmp_path: Path) -> None:
    for dtype, value in (
        ("float32", -9999.0),
        ("float32", -3.4028234663852886e38),
        ("float64", np.nan),
        ("uint16", 65535),
        ("int16", -32768),
    ):
        bands = RGB.astype(dtype)
        whole, told = read_described(write(tmp_path / "a.tif", bands[:, 5:], photometric="RGB"))
        assert "no data" not in told
        bands[:, :5] = value
        read, told = read_described(write(tmp_path / "b.tif", bands, nodata=value, photometric="RGB"))
        np.testing.assert_array_equal(read[5:], whole, err_msg=f"{dtype} {value}")
        assert (read[:5] == 0).all()
        assert told.endswith("no data black")


def test_no_data_of_eight_bits_is_what_all_bands_declare(tmp_path: Path) -> None:
    bands = np.full((3, 4, 4), 255, np.uint8)
    bands[0, 0] = 10
    read = read_image(write(tmp_path / "a.tif", bands, nodata=255, photometric="RGB"))
    assert (read[0] == (10, 255, 255)).all()
    assert (read[1:] == 0).all()


@pytest.mark.parametrize("said", ["-9999", "300", "255.5", "1e400"])
def test_no_data_that_no_value_can_have(tmp_path: Path, said: str) -> None:
    Pillow.fromarray(image_of(RGB)).save(tmp_path / "a.tif", tiffinfo={42113: said})
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), image_of(RGB))


def test_bands_and_stretch_of_ones_own(tmp_path: Path) -> None:
    bands = np.stack([np.full((4, 5), 100 * n, np.uint16) for n in range(6)])
    bands[:, 0] += 50
    path = write(tmp_path / "a.tif", bands, photometric="minisblack", alpha="no")
    read, told = read_described(path, reading=ImageReading(bands=[5, 1, 3], stretch=[0, 510]))
    assert read[1, 0].tolist() == [200, 0, 100]
    assert told == "bands 5, 1, 3 of 6; uint16 stretched from 0..510 to 0..255"
    assert read_described(path)[1].startswith("bands 1, 2, 3 of 6; uint16 stretched")
    assert read_image(path, reading=ImageReading(stretch="none")).max() == 0
    np.testing.assert_array_equal(
        read_image(write(tmp_path / "b.tif", RGB, photometric="RGB"), reading=ImageReading(bands=[3, 2, 1])),
        image_of(RGB[::-1]),
    )
    Pillow.fromarray(image_of(RGB)).save(tmp_path / "c.png")
    np.testing.assert_array_equal(
        read_image(tmp_path / "c.png", reading=ImageReading(bands=[2, 2, 1])), image_of(RGB[[1, 1, 0]])
    )
    with pytest.raises(ImageError, match=r"b\.tif: has 3 bands, and data\.bands=\[4, 1, 2\] asks for band 4"):
        read_image(tmp_path / "b.tif", reading=ImageReading(bands=[4, 1, 2]))
    for dtype in ("float32", "int16"):
        with pytest.raises(ImageError, match=r"no range of their own .*; give data\.stretch=\[low, high\]"):
            read_image(write(tmp_path / "d.tif", GREY.astype(dtype)), reading=ImageReading(stretch="none"))
    for wrong in (
        {"bands": [1, 2]},
        {"bands": [0, 1, 2]},
        {"bands": 3},
        {"stretch": "full"},
        {"stretch": [5, 5]},
        {"stretch": [0, float("nan")]},
    ):
        with pytest.raises(ImageError.__base__, match=rf"data\.{next(iter(wrong))}=.*: must be"):
            ImageReading(**wrong)


@pytest.mark.parametrize(
    ("bands", "options", "said"),
    [
        (GREY.astype(np.complex64), {}, "values of complex64"),
        (GREY.astype(np.complex64), {"dtype": "complex_int16"}, "values of complex_int16"),
        (RGB, {"photometric": "CIELAB"}, "colours in CIELAB"),
        (RGB.astype(np.uint16), {"scales": (1.0, 2.0, 1.0)}, "scale tags that differ"),
        (
            RGB.astype(np.uint16),
            {"scales": (-1.0, -1.0, -1.0)},
            "scale tags that differ between its bands or are negative",
        ),
    ],
)
def test_what_has_no_brightness_is_named(tmp_path: Path, bands: np.ndarray, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ImageError, match=rf"a\.tif: {said}.*; "):
        read_image(write(tmp_path / "a.tif", bands, **options))


def test_what_is_missing_is_not_black(tmp_path: Path) -> None:
    """Tiles never written read as 0; where the file declares no data they are that."""
    for nodata in (None, 0):
        profile = {"driver": "GTiff", "height": 64, "width": 64, "count": 1, "dtype": "uint8", "nodata": nodata}
        with rasterio.open(
            tmp_path / "a.tif", "w", sparse_ok=True, tiled=True, blockxsize=16, blockysize=16, **profile
        ) as file:
            file.write(np.full((1, 16, 16), 9, np.uint8), window=((0, 16), (0, 16)))
        if nodata is None:
            with pytest.raises(ImageError, match="never written"):
                read_image(tmp_path / "a.tif")
        else:
            assert read_image(tmp_path / "a.tif").sum() == 3 * 9 * 256
    (tmp_path / "a.ppm").write_bytes(b"P6\n2 2\n2047\n" + bytes(20))
    with pytest.raises(ImageError, match=r"a\.ppm: truncated"):
        read_image(tmp_path / "a.ppm")
    (tmp_path / "a.ppm").write_bytes(b"P3\n1 1\n65535\n0 1 2\n")
    with pytest.raises(ImageError, match="16 bits written as text"):
        read_image(tmp_path / "a.ppm")


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"<VRTDataset rasterXSize='4' rasterYSize='4'>", "a GDAL VRT, which only refers to other files"),
        (b"\x89HDF\r\n\x1a\n", "HDF5 or netCDF"),
        (b"\0\0\0\x1cftypavif", "AVIF or HEIF"),
        (b"\xff\xd8\xff\xc1\0\x11\x0c", "a JPEG of 12 bits"),
        (b"PK\x03\x04", "a zip archive"),
    ],
)
def test_an_unsupported_kind_is_named(tmp_path: Path, head: bytes, said: str) -> None:
    (tmp_path / "a.tif").write_bytes(head + bytes(100))
    with pytest.raises(ImageError, match=rf"a\.tif: {said}, not an image that can be read"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("ending", "driver"), [("tif", "GTiff"), ("png", "PNG"), ("jp2", "JP2OpenJPEG"), ("ppm", "PNM")]
)
def test_files_beside_an_image_change_nothing(tmp_path: Path, ending: str, driver: str) -> None:
    options = {"driver": driver} | ({"reversible": "yes", "quality": "100"} if ending == "jp2" else {})
    path = write(tmp_path / f"a.{ending}", RGB.astype(np.uint16) * 257, **options)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False, TIFF_USE_OVR=True), rasterio.open(path, "r+") as file:
        file.write_mask(np.zeros((HEIGHT, WIDTH), np.bool_))
        if ending != "jp2":
            file.build_overviews([2], rasterio.enums.Resampling.average)
    (tmp_path / "a.wld").write_text("1\n0\n0\n-1\n0\n0\n")
    (tmp_path / f"a.{ending}.aux.xml").write_text(
        f"<PAMDataset><PAMRasterBand band='1'><NoDataValue>{int(RGB[0, 0, 0]) * 257}</NoDataValue><ColorInterp>Blue</ColorInterp>"
        "</PAMRasterBand><PAMRasterBand band='3'><ColorInterp>Red</ColorInterp></PAMRasterBand></PAMDataset>"
    )
    before = sorted(tmp_path.iterdir())
    assert tmp_path / f"a.{ending}.msk" in before
    (tmp_path / "alone").mkdir()
    alone = shutil.copy(path, tmp_path / "alone")
    np.testing.assert_array_equal(read_image(path), read_image(alone))
    assert np.abs(read_image(path).astype(int) - image_of(RGB)).max() <= (50 if ending == "jp2" else 0)
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "alone"])


def test_an_image_may_not_name_other_files(tmp_path: Path) -> None:
    other = write(tmp_path / "other.tif", np.zeros_like(RGB), photometric="RGB")
    metadata = f'<GDALMetadata><Item name="OVERVIEW_FILE" domain="OVERVIEWS">{other}</Item></GDALMetadata>'
    Pillow.fromarray(image_of(RGB)).save(tmp_path / "a.tif", tiffinfo={42112: metadata})
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), image_of(RGB))


def test_damage_that_the_decoder_reads_over_is_found(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
    path = write(
        tmp_path / "a.tif", noise, compress="jpeg", photometric="YCBCR", tiled=True, blockxsize=64, blockysize=64
    )
    assert read_image(path).shape == (64, 64, 3)
    data, middle = path.read_bytes(), path.stat().st_size // 2
    for wound in (b"\xff\xd9", bytes(400), b"\xff\xd3"):
        path.write_bytes(data[:middle] + wound + data[middle + len(wound) :])
        with pytest.raises(ImageError, match=r"a\.tif: damaged .*Corrupt JPEG data"):
            read_image(path)
    code = (
        "import logging; logging.basicConfig(level=logging.INFO)\nfrom grasp_rl.data import image_io\n"
        f"try: image_io.read_image({str(path)!r})\nexcept image_io.ImageError: print('refused')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("refused\n", "")  # a run's log is not for GDAL to write


@pytest.mark.parametrize("kind", ["plain", "deflate", "jpeg", "png", "jp2"])
def test_mutated_rasters_are_read_or_refused_in_a_sentence(
    tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    options = {
        "plain": {"tiled": True, "blockxsize": 16, "blockysize": 16},
        "deflate": {"compress": "deflate", "predictor": 2},
        "jpeg": {"compress": "jpeg", "photometric": "YCBCR"},
        "png": {"driver": "PNG"},
        "jp2": {"driver": "JP2OpenJPEG"},
    }[kind]
    bands = RGB if kind == "jpeg" else RGB.astype(np.uint16) * 8
    whole = write(tmp_path / "whole.tif", bands, **options).read_bytes()
    rng, path, refused = np.random.default_rng(2), tmp_path / "a.tif", []
    for number in range(70):
        data = bytearray(whole)
        if number < 10:
            data = data[: len(data) * (number + 1) // 11]
        else:
            for place in rng.integers(0, len(data) if number % 2 else 400, 3):
                data[min(place, len(data) - 1)] = int(rng.integers(256))
        path.write_bytes(data)
        try:
            assert read_image(path, max_pixels=1_000_000).shape[2] == 3
        except ImageError as error:
            refused.append(str(error))
    assert len(refused) >= 10
    assert all(said.startswith(str(path)) and "\n" not in said for said in refused)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["png of 16 bits", "tiff of float64"])
def test_memory_is_bounded_by_the_image_not_by_its_depth(tmp_path: Path, kind: str) -> None:
    side = 6000 if kind.startswith("png") else 4500
    if kind.startswith("png"):
        Pillow.fromarray(np.zeros((side, side), np.uint16)).save(tmp_path / "a.png", compress_level=1)
    else:
        profile = {"driver": "GTiff", "count": 3, "dtype": "float64", "compress": "zstd", "tiled": True}
        with rasterio.open(tmp_path / "a.png", "w", height=side, width=side, **profile) as file:
            file.write(np.ones((3, side, 16)), window=((0, side), (0, 16)))
    code = (
        f"from grasp_rl.data.image_io import read_image; print(read_image({str(tmp_path / 'a.png')!r}).nbytes)\n"
        "print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0].split()[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    size, peak_kib = (int(line) for line in done.stdout.split())
    assert size == 3 * side**2
    assert peak_kib < size / 1024 + 300_000  # 70 MB of libraries, blocks, and Pillow's look at the orientation


def test_a_strip_that_fills_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.tif", RGB, compress="deflate", blockysize=HEIGHT)
    monkeypatch.setattr(rasters, "MAX_BLOCK_BYTES", RGB.nbytes - 1)
    with pytest.raises(ImageError, match=r"stored in blocks of 37 x 24 pixels.*TILED=YES"):
        read_image(path)


def test_many_blocks_give_what_one_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).normal(size=(3, 200, 120)).astype(np.float32)
    paths = [write(tmp_path / f"{n}.tif", values, tiled=True, blockxsize=16, blockysize=16) for n in range(1)]
    whole = read_image(paths[0])
    monkeypatch.setattr(rasters, "CACHE_BYTES", 1 << 12)
    monkeypatch.setattr(rasters, "BLOCK_VALUES", 1000)
    monkeypatch.setattr("grasp_rl.data.pixels.BLOCK_VALUES", 1000)
    np.testing.assert_array_equal(read_image(paths[0]), whole)
    monkeypatch.setattr(stretch, "SAMPLED", 2000)
    sampled = read_image(paths[0])
    assert 0 < np.abs(sampled.astype(int) - whole).max() < 12


def test_transparency_that_a_lossy_file_has_blurred(tmp_path: Path) -> None:
    clear = np.arange(64)[:, None] < 24
    smooth = np.full((3, 64, 64), 120, np.uint8)
    alpha = np.broadcast_to(np.where(clear, 0, 255), (1, 64, 64)).astype(np.uint8)
    options = {"compress": "jpeg", "jpeg_quality": 40, "photometric": "RGB", "alpha": "yes"}
    path = write(tmp_path / "a.tif", np.concatenate([smooth, alpha]), **options)
    with rasterio.open(path) as file:
        assert len(np.unique(file.read(4))) >= 2
    read = read_image(path)
    assert (read[:23] == 0).all()
    assert (read[25:] > 100).all()


@pytest.mark.parametrize(("dark", "block"), [(4, 10**6), (7, 40)])
def test_percentiles_are_taken_from_all_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dark: int, block: int
) -> None:
    """A step that divides the width, or begins anew with each block, would see the same columns in every row."""
    values = np.full((40, 40), 1, np.float32)
    values[1::2], values[:, ::dark] = 0.5, 0
    monkeypatch.setattr(stretch, "SAMPLED", 400)
    monkeypatch.setattr(rasters, "BLOCK_VALUES", block)
    read = read_image(write(tmp_path / "a.tif", values, blockysize=1))
    assert [read[0, 0, 0], read[1, 1, 0], read[0, 1, 0]] == [0, 128, 255]


@pytest.mark.parametrize(("ending", "driver"), [("tif", "GTiff"), ("png", "PNG")])
def test_what_is_transparent_takes_no_part_in_the_stretch(tmp_path: Path, ending: str, driver: str) -> None:
    bands = np.concatenate([RGB.astype(np.uint16) * 8, np.full((1, HEIGHT, WIDTH), 65535, np.uint16)])
    options = {"driver": driver} | ({"photometric": "RGB", "alpha": "yes"} if driver == "GTiff" else {})
    whole = read_image(write(tmp_path / f"a.{ending}", bands[:, 6:], **options))
    bands[:3, :6], bands[3, :6] = 60000, 0
    read = read_image(write(tmp_path / f"b.{ending}", bands, **options))
    np.testing.assert_array_equal(read[6:], whole)
    assert (read[:6] == 0).all()


@pytest.mark.parametrize(("dtype", "fill"), [("float32", -9999), ("uint16", 65535)])
def test_what_looks_like_undeclared_no_data_is_said(tmp_path: Path, dtype: str, fill: int) -> None:
    values = np.linspace(100, 3000, 40 * 50).reshape(40, 50).astype(dtype)
    values[:6] = fill
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", width=50, height=40, count=1, dtype=dtype) as file:
        file.write(values, 1)
    assert f"at least 2% of its values are {fill:g}: if that means no data" in read_described(tmp_path / "a.tif")[1]
    values[:6] = values[6]
    with rasterio.open(tmp_path / "b.tif", "w", driver="GTiff", width=50, height=40, count=1, dtype=dtype) as file:
        file.write(values, 1)
    assert "no data" not in read_described(tmp_path / "b.tif")[1]
