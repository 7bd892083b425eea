"""Scenes asked window by window: what is read, what is asked, what is put together, and how a scan goes on."""

from __future__ import annotations

import os
import signal
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import geo_scenes
import numpy as np
import pytest
import rasterio
import rasterio.control
import rasterio.shutil
import shapely
from geo_scenes import Finder, things
from PIL import Image as Pillow

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.image_io import ImageError, ImageReading, read_image
from grasp_rl.geo.grid import Grid
from grasp_rl.geo.journal import Journal
from grasp_rl.geo.merge import Instance, merged
from grasp_rl.geo.polygons import components, mask_of, polygons_of
from grasp_rl.geo.scan import Counts, Plan, WindowAnswer, demand_answers, features_of, looked_at, scan, statuses_of
from grasp_rl.geo.scene import fingerprint, open_scene, overview
from grasp_rl.geo.windows import Window, whole, windows_of
from grasp_rl.types import Image

PLAIN = ImageReading()


def _plan(grid: Grid, side: int, overlap: float = 0.25, **more: Any) -> Plan:
    region = more.get("region")
    return Plan(
        key="0", grid=grid, windows=list(windows_of(whole(grid), side, overlap, region)), queries=["roofs"], **more
    )


def _scan(path: Path, plan: Plan, ask: Any, journal: Path, tell: Any = lambda counts: None) -> tuple[Any, Counts]:
    counts = Counts(total=len(plan.windows))
    with open_scene(str(path), PLAIN) as scene, Journal(journal, {"a": 1}, {}) as held:
        scan(scene, plan, ask, held, counts, tell)
        return features_of(plan, "roofs", held), counts


def _shapes(size: int, seed: int) -> Image:
    """Bright discs and rings of many sizes, some larger than a window, no two of them touching."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] + 0.5
    image, taken = geo_scenes.ground((size, size)), np.zeros((size, size), dtype=np.bool_)
    for _ in range(40):
        (cx, cy), radius = rng.uniform(0, size, 2), rng.uniform(2, size / 4)
        distance = np.hypot(x - cx, y - cy)
        disc = (distance < radius) & (distance >= (radius * 0.6 if rng.random() < 0.5 else 0))
        if not (taken & (distance < radius + 4)).any():
            taken |= distance < radius + 2
            image[disc] = 220
    return image


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("place", ["32617", "rotated", "upwards"])
def test_windows_find_what_the_whole_shows(tmp_path: Path, seed: int, place: str) -> None:
    image = _shapes(300, seed)
    path = geo_scenes.write(tmp_path / "scene.tif", image, place)
    image = image[::-1] if place == "upwards" else image
    grid = geo_scenes.grid((300, 300), place)
    at_once, _ = _scan(path, _plan(grid, 300), Finder(), tmp_path / "whole")
    assert len(at_once) > 5
    for side in (64, 100, 299):
        apart, counts = _scan(path, _plan(grid, side, batch=5), Finder(), tmp_path / f"{side}")
        assert counts.asked == counts.done == counts.total > 1
        assert len(apart) == len(at_once)
        drawn = mask_of([feature.geometry for feature in apart], grid.size)
        assert np.array_equal(drawn, geo_scenes.bright(image))
        for one in at_once:
            assert any(one.geometry.equals(other.geometry) for other in apart)
        assert all(feature.geometry.is_valid for feature in apart)


@pytest.mark.parametrize("seed", [23, 31, *range(6)])
def test_blots_that_wind_through_windows_come_out_whole(seed: int) -> None:
    # with 23 and 31, neighbours see the arms of one blot in two pieces each, and no two of them alike
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.random((200, 200)), (0, 0), rng.uniform(2, 8))
    mask = noise > np.quantile(noise, rng.uniform(0.5, 0.9))
    for side, overlap in ((64, 0.25), (90, 0.2)):
        instances = [
            Instance(window=window, geometry=polygons_of(part, window.left, window.top))
            for window in windows_of(whole(Grid(200, 200)), side, overlap)
            for part in components(mask[window.top : window.bottom, window.left : window.right])
        ]
        features = merged(instances)
        assert len(features) == len(components(mask))
        assert sum(feature.geometry.area for feature in features) == mask.sum()
        assert np.array_equal(mask_of([feature.geometry for feature in features], (200, 200)), mask)


def _instance(window: Window, box: tuple[int, int, int, int], **more: Any) -> Instance:
    return Instance(window=window, geometry=shapely.MultiPolygon([shapely.box(*box)]), **more)


LEFT, RIGHT = Window(0, 0, 100, 100), Window(60, 0, 100, 100)


@pytest.mark.parametrize(
    ("first", "second", "count"),
    [
        ((20, 20, 100, 40), (60, 20, 140, 40), 1),  # one long thing over the seam
        ((20, 20, 100, 40), (60, 22, 140, 42), 1),  # seen a little differently: IoU 0.82 where both look
        ((20, 20, 100, 40), (60, 35, 140, 55), 2),  # IoU 0.14
        ((70, 20, 90, 40), (70, 20, 90, 40), 1),  # whole in both
        ((70, 20, 90, 40), (80, 20, 100, 40), 2),  # IoU exactly 1/3
        ((10, 20, 50, 40), (110, 20, 140, 40), 2),  # nothing where both look
        ((20, 10, 100, 90), (60, 20, 62, 24), 1),  # a piece that its window's edge cuts off
        ((20, 10, 100, 90), (70, 20, 72, 24), 1),  # a small thing within a large one
        ((20, 10, 100, 90), (98, 20, 112, 24), 2),  # 1/7 of it within the other
    ],
)
def test_what_is_one_thing_across_a_seam(
    first: tuple[int, int, int, int], second: tuple[int, int, int, int], count: int
) -> None:
    instances = [_instance(LEFT, first), _instance(RIGHT, second)]
    features = merged(instances)
    assert len(features) == count
    union = shapely.union_all([instance.geometry for instance in instances])
    assert shapely.union_all([feature.geometry for feature in features]).equals(union)
    assert len(merged(instances[::-1])) == count


def test_a_feature_has_the_means_of_its_parts_by_area_and_the_thought_of_the_largest() -> None:
    parts = [
        _instance(LEFT, (40, 0, 100, 10), score=0.5, confidence=0.6, thinking="small"),
        _instance(RIGHT, (60, 0, 160, 10), score=1.0, confidence=None, thinking="large"),
    ]
    (feature,) = merged(parts)
    assert feature.score == pytest.approx((0.5 * 600 + 1000) / 1600)
    assert feature.confidence == pytest.approx(0.6)
    assert feature.thinking == "large"
    assert feature.windows == (RIGHT, LEFT)


def test_what_one_window_says_twice_counts_once() -> None:
    features = merged(
        [
            _instance(LEFT, (10, 10, 40, 40), confidence=0.4),
            _instance(LEFT, (11, 10, 40, 40), confidence=0.9),
            _instance(LEFT, (40, 10, 50, 40), confidence=0.1),
        ]
    )
    assert [feature.geometry.bounds for feature in features] == [(11, 10, 40, 40), (40, 10, 50, 40)]


@pytest.mark.parametrize(
    ("boxes", "count"),
    [
        ([(10, 10, 90, 90), (80, 20, 92, 40)], 1),  # 5/6 within
        ([(10, 10, 90, 90), (80, 20, 93, 40)], 2),  # 10/13 within
        ([(10, 10, 50, 90), (50, 10, 90, 90), (40, 20, 60, 30)], 3),  # half in each of two
        ([(10, 10, 50, 90), (12, 12, 60, 20), (45, 11, 60, 26)], 3),  # no chain of small overlaps
        ([(10, 10, 62, 60), (20, 20, 70, 30), (54, 22, 70, 33)], 1),  # within the union alone
    ],
)
def test_a_feature_mostly_within_another_is_the_same(boxes: list[tuple[int, int, int, int]], count: int) -> None:
    for order in (boxes, boxes[::-1]):
        features = merged([_instance(LEFT, box, confidence=0.5) for box in order])
        assert len(features) == count
        union = shapely.union_all([shapely.box(*box) for box in boxes])
        assert shapely.union_all([feature.geometry for feature in features]).equals(union)


def test_windows_without_data_are_not_asked(tmp_path: Path) -> None:
    image = things((256, 256), [(10, 10, 30, 30)])
    image[:, 128:] = 0
    path = geo_scenes.write(tmp_path / "scene.tif", image, nodata=0)
    plan, finder = _plan(geo_scenes.grid((256, 256)), 64, 0.0, batch=3), Finder()
    features, counts = _scan(path, plan, finder, tmp_path / "journal")
    assert (counts.asked, counts.empty, len(finder.asked), len(features)) == (8, 8, 8, 1)
    with Journal(tmp_path / "journal", {"a": 1}, {}) as journal:
        assert statuses_of(plan, "roofs", journal) == {"ok": 8, "empty": 8}
        assert len(looked_at(plan, "roofs", journal)) == 8


def _everything(images: Sequence[Image], query: str) -> list[WindowAnswer]:
    """All of every window, as one instance."""
    return [
        WindowAnswer(masks=[np.ones(image.shape[:2], dtype=np.bool_)], confidences=[None], text="said")
        for image in images
    ]


@pytest.mark.parametrize("kind", ["nodata", "mask", "alpha", "nan"])
def test_what_is_found_is_cut_to_where_there_are_data(tmp_path: Path, kind: str) -> None:
    image, valid = things((200, 200), []), np.ones((200, 200), dtype=np.bool_)
    valid[:70], valid[100:130, 150:180] = False, False
    path = tmp_path / "scene.tif"
    if kind == "nodata":
        geo_scenes.write(path, image * valid[..., None], nodata=0)
    elif kind == "nan":
        geo_scenes.write(path, np.where(valid[..., None], image, np.nan).astype(np.float32))
    elif kind == "alpha":
        more = (valid * 255)[..., None].astype(np.uint8)
        geo_scenes.write(path, np.concatenate([image, more], axis=2), photometric="RGB", alpha="YES")
    else:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            geo_scenes.write(path, image)
            with rasterio.open(path, "r+") as file:
                file.write_mask(valid)
    features, counts = _scan(path, _plan(geo_scenes.grid((200, 200)), 64), _everything, tmp_path / "journal")
    assert counts.asked > 4
    assert np.array_equal(mask_of([feature.geometry for feature in features], (200, 200)), valid)


def test_only_windows_that_touch_a_region_are_asked_and_results_are_cut_to_it(tmp_path: Path) -> None:
    path = geo_scenes.write(tmp_path / "scene.tif", things((256, 256), [(50, 50, 100, 100)]))
    region = shapely.box(40, 40, 75.5, 60)
    plan, finder = _plan(geo_scenes.grid((256, 256)), 64, region=region), Finder()
    (feature,), _ = _scan(path, plan, finder, tmp_path / "journal")
    assert len(finder.asked) == 4
    assert feature.geometry.bounds == (50, 50, 75.5, 60)


def test_a_killed_scan_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    path = geo_scenes.write(tmp_path / "scene.tif", _shapes(300, 1))
    plan, journal = _plan(geo_scenes.grid((300, 300)), 64, batch=4), tmp_path / "journal"
    expected, total = _scan(path, plan, Finder(), tmp_path / "other")

    def die(counts: Counts) -> None:
        if counts.asked >= 12:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        _scan(path, plan, Finder(), journal, die)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with journal.open("ab") as file:
        file.write(b'{"key": "0/0/0,0,64,64", "val')  # a line that broke off
    finder = Finder()
    features, counts = _scan(path, plan, finder, journal)
    assert (counts.before, counts.asked) == (12, total.asked - 12)
    assert len(finder.asked) == total.asked - 12
    assert [feature.geometry.wkt for feature in features] == [feature.geometry.wkt for feature in expected]
    again = Finder()
    assert len(_scan(path, plan, again, journal)[0]) == len(expected)
    assert again.asked == []


def test_a_journal_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path, {"query": "roofs", "gsd": 1}, {"began": "then"}) as journal:
        journal.write("a", {"x": 1})
    with Journal(path, {"query": "roofs", "gsd": 1}, {"began": "now"}) as journal:
        assert (journal.resumed, journal.noted, journal["a"]) == (True, {"began": "then"}, {"x": 1})
        journal.write("b/1/x", {})
        journal.write("b/11/x", {"y": 2})
        assert list(journal.items("b/11/")) == [("b/11/x", {"y": 2})]
    with pytest.raises(
        ConfigError, match=r"journal: belongs to another scan: gsd was 1, is 2 .and 1 more differ.*remove the file"
    ):
        Journal(path, {"query": "lakes", "gsd": 2}, {})
    path.write_bytes(b"no journal\n")
    with pytest.raises(ConfigError, match="no journal of a scan; remove or rename it"):
        Journal(path, {}, {})


def test_a_journal_without_answers_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path, {"query": "roofs"}, {"began": "then"}).close()
    assert not path.exists()
    path.write_text('{"asked": {"query": "roofs"}, "noted": {"began": "then"}}\n')
    with Journal(path, {"query": "lakes"}, {"began": "now"}) as journal:
        assert (journal.resumed, journal.noted) == (False, {"began": "now"})
        journal.write("a", {})
    path.write_bytes(path.read_bytes()[:9])  # even its first line broke off
    with Journal(path, {"query": "lakes"}, {"began": "later"}) as journal:
        assert (journal.resumed, len(journal)) == (False, 0)


def test_two_scans_cannot_share_a_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal", {}, {}), pytest.raises(ConfigError, match="another process is writing it"):
        Journal(tmp_path / "journal", {}, {})


def test_a_window_that_could_not_be_segmented_is_asked_again(tmp_path: Path) -> None:
    path = geo_scenes.write(tmp_path / "scene.tif", things((128, 128), [(10, 10, 30, 30)]))
    plan = _plan(geo_scenes.grid((128, 128)), 64, 0.0)

    def failing(images: Sequence[Image], query: str) -> list[WindowAnswer]:
        return [WindowAnswer(masks=[], confidences=[], error="out of memory") for _ in images]

    _, counts = _scan(path, plan, failing, tmp_path / "journal")
    assert (counts.asked, counts.failed) == (4, 4)
    with pytest.raises(ConfigError, match=r"could not segment the answers about 4 of 4 windows \(out of memory\)"):
        demand_answers(counts, 0.5)
    finder = Finder()
    _scan(path, plan, finder, tmp_path / "journal")
    assert len(finder.asked) == 4


def test_memory_is_that_of_a_few_windows(tmp_path: Path) -> None:
    path, size = tmp_path / "large.tif", 8192
    profile = {
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "deflate",
        "SPARSE_OK": "TRUE",
        "nodata": 0,
    }
    shape = {"driver": "GTiff", "height": size, "width": size, "count": 3, "dtype": "uint8"}
    with rasterio.open(
        path, "w", **shape, **profile, crs="EPSG:32617", transform=geo_scenes.PLACES["32617"][1]
    ) as file:
        for place in (0, 4096, 7680):
            block = np.moveaxis(things((512, 512), [(100, 100, 300, 300)]), -1, 0)
            file.write(block, window=((place, place + 512), (place, place + 512)))
    plan = _plan(geo_scenes.grid((size, size)), 512, batch=4)
    tracemalloc.start()
    features, counts = _scan(path, plan, Finder(), tmp_path / "journal")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(features) == 3
    assert counts.empty > 400
    assert peak < 64 << 20  # the scene has 192 MiB


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "float32"])
def test_every_window_is_shown_by_one_rule(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(0).normal(0, 1, (200, 200, 4)).cumsum(0)
    values = ((values - values.min()) / np.ptp(values) * (255 if kind == "uint8" else 3000)).astype(kind)
    path = geo_scenes.write(tmp_path / "scene.tif", values)
    reading = ImageReading(bands=[4, 2, 1])
    expected = read_image(path, reading=reading)
    with open_scene(str(path), reading) as scene:
        shown = np.zeros_like(expected)
        for window in windows_of(whole(scene.grid), 64, 0.2):
            image, valid = scene.read(scene.grid, window)
            assert valid.all()
            shown[window.top : window.bottom, window.left : window.right] = image
    assert np.array_equal(shown, expected)


def test_coarser_and_finer_resolutions(tmp_path: Path) -> None:
    image = things((240, 320), [(40, 40, 80, 120)])
    path = geo_scenes.write(tmp_path / "scene.tif", image)
    with open_scene(str(path), PLAIN) as scene:
        coarse = scene.grid.of_size(80, 60)
        shown, _ = scene.read(coarse, whole(coarse))
        assert np.abs(shown.astype(int) - image.reshape(60, 4, 80, 4, 3).mean((1, 3))).max() <= 1
        part, _ = scene.read(coarse, Window(10, 20, 30, 16))
        assert np.array_equal(part, shown[20:36, 10:40])
        fine = scene.grid.of_size(640, 480)
        assert np.array_equal(geo_scenes.bright(scene.read(fine, Window(100, 100, 40, 40))[0]), np.ones((40, 40)))
        small, drawn = overview(scene, 80)
        assert (small.size, drawn.shape) == ((60, 80), (60, 80, 3))


@pytest.mark.parametrize(
    ("place", "rows", "columns"), [("upwards", -1, 1), ("leftwards", 1, -1), ("half", -1, -1), ("rotated", 1, 1)]
)
def test_scenes_are_shown_north_up_and_not_mirrored(tmp_path: Path, place: str, rows: int, columns: int) -> None:
    image = things((240, 320), [(40, 30, 80, 120)])
    path = geo_scenes.write(tmp_path / "scene.tif", image, place)
    shown = image[::rows, ::columns]
    with open_scene(str(path), PLAIN) as scene:
        assert np.array_equal(scene.read(scene.grid, whole(scene.grid))[0], shown)
        part = Window(33, 21, 100, 64)
        assert np.array_equal(scene.read(scene.grid, part)[0], shown[21:85, 33:133])
        half = scene.grid.of_size(160, 120)
        assert (
            np.abs(
                scene.read(half, Window(3, 5, 50, 40))[0] - shown[10:90, 6:106].reshape(40, 2, 50, 2, 3).mean((1, 3))
            ).max()
            <= 1
        )
        assert scene.grid.reversals == (False, False)
        assert (" shown in the opposite order" in scene.description) == (place != "rotated")
        corner, stored = scene.grid.to_world(shapely.Point(0, 0)), geo_scenes.grid((240, 320), place)
        x, y = (320 if columns < 0 else 0), (240 if rows < 0 else 0)
        assert corner.equals_exact(stored.to_world(shapely.Point(x, y)), 1e-6)


def test_overviews_serve_coarse_resolutions(tmp_path: Path) -> None:
    path = geo_scenes.write(tmp_path / "scene.tif", things((512, 512), []), tiled=True, blockxsize=128, blockysize=128)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([4], rasterio.enums.Resampling.average)
    with rasterio.open(path, "r+", OVERVIEW_LEVEL=0) as file:
        file.write(np.full((3, 128, 128), 77, np.uint8))
    with open_scene(str(path), PLAIN) as scene:
        coarse = scene.grid.of_size(64, 64)
        assert (scene.read(coarse, whole(coarse))[0] == 77).all()
        assert scene.read(scene.grid, Window(0, 0, 64, 64))[0].max() < 90


def test_nodata_of_every_kind(tmp_path: Path) -> None:
    values = np.full((64, 64, 3), 1000.0, np.float32)
    values[:32] = np.nan
    values[40:, :, :] = -9999
    with open_scene(str(geo_scenes.write(tmp_path / "float.tif", values, nodata=-9999)), PLAIN) as scene:
        _, valid = scene.read(scene.grid, whole(scene.grid))
    assert np.array_equal(np.flatnonzero(valid.any(axis=1)), np.arange(32, 40))
    image = np.concatenate([things((64, 64), []), np.full((64, 64, 1), 255, np.uint8)], axis=2)
    image[:10, :, 3] = 0
    path = geo_scenes.write(tmp_path / "alpha.tif", image, photometric="RGB", alpha="YES")
    with open_scene(str(path), PLAIN) as scene:
        shown, valid = scene.read(scene.grid, whole(scene.grid))
        assert np.array_equal(np.flatnonzero(valid.any(axis=1)), np.arange(10, 64))
        assert not shown[:10].any()


def test_a_scene_without_a_place_and_a_picture(tmp_path: Path) -> None:
    image = things((60, 80), [(5, 5, 20, 20)])
    path = geo_scenes.write(tmp_path / "scene.tif", image, None)
    rasterio.shutil.copy(path, tmp_path / "scene.png", driver="PNG")
    for name in ("scene.tif", "scene.png"):
        with open_scene(str(tmp_path / name), PLAIN) as scene:
            assert (scene.grid.crs, scene.grid.size) == (None, (60, 80))
            assert np.array_equal(scene.read(scene.grid, Window(5, 5, 30, 30))[0], image[5:35, 5:35])
            half = scene.grid.of_size(40, 30)
            assert scene.read(half, whole(half))[0].shape == (30, 40, 3)


def test_what_lies_beside_a_scene_is_not_read_and_is_said(tmp_path: Path) -> None:
    path = geo_scenes.write(tmp_path / "scene.tif", things((60, 80), []), None)
    path.with_suffix(".tfw").write_text("0.5\n0\n0\n-0.5\n500000\n4000000\n")
    with open_scene(str(path), PLAIN) as scene:
        assert scene.grid.crs is None
        assert "scene.tfw beside it is not read" in scene.description


def test_half_a_place_is_said(tmp_path: Path) -> None:
    image, (crs, transform) = things((60, 80), []), geo_scenes.PLACES["32617"]
    points = [rasterio.control.GroundControlPoint(r, c, 500000 + c, 4000000 - r) for r, c in ((0, 0), (0, 80), (60, 0))]
    for more, said in (
        ({"transform": transform}, "no CRS; a transform without a CRS: assign it"),
        ({"crs": crs}, "no CRS; a CRS without a transform: its corners are not known"),
        ({"gcps": points, "crs": crs}, "no CRS; ground control points alone: warp it first"),
    ):
        path = geo_scenes.write(tmp_path / "scene.tif", image, None, **more)
        with open_scene(str(path), PLAIN) as scene:
            assert scene.grid.crs is None
            assert scene.description.startswith(said)


def test_a_turned_picture(tmp_path: Path) -> None:
    image = Pillow.fromarray(things((60, 80), [(0, 0, 20, 10)]))
    exif = Pillow.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "scene.tif", exif=exif)
    with open_scene(str(tmp_path / "scene.tif"), PLAIN) as scene:
        assert scene.grid.size == (80, 60)
        assert np.array_equal(scene.read(scene.grid, whole(scene.grid))[0], read_image(tmp_path / "scene.tif"))


def test_damage_is_named(tmp_path: Path) -> None:
    path = geo_scenes.write(
        tmp_path / "scene.tif",
        geo_scenes.ground((256, 256)),
        tiled=True,
        blockxsize=64,
        blockysize=64,
        compress="deflate",
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"scene\.tif: damaged"):
        _scan(path, _plan(geo_scenes.grid((256, 256)), 64), Finder(), tmp_path / "journal")


def test_fingerprints(tmp_path: Path) -> None:
    path = geo_scenes.write(tmp_path / "scene.tif", things((60, 80), []))
    before = fingerprint(str(path))
    assert fingerprint(str(path)) == before
    geo_scenes.write(path, things((60, 80), [(1, 1, 2, 2)]))
    assert fingerprint(str(path)) != before
    assert polygons_of(np.ones((1, 1), dtype=np.bool_)).area == 1
