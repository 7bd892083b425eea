"""A dataset of one's own map: chips, targets and questions as the layer says, splits that share no ground, and back."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import geo_scenes
import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from geo_scenes import things

from grasp_rl.cli.data import main
from grasp_rl.data.image_io import MAX_PIXELS
from grasp_rl.data.rasterize import decode_rle
from grasp_rl.data.readers.jsonl import JsonlSource
from grasp_rl.data.validate import validate
from grasp_rl.geo.chips import Chip, chip_windows, split_of_blocks, without_leaks
from grasp_rl.geo.grid import Grid
from grasp_rl.geo.labels import target_of
from grasp_rl.geo.polygons import mask_of
from grasp_rl.geo.windows import Window
from grasp_rl.utils.files import read_json

SIZE = 512


@pytest.fixture
def boxes() -> list[tuple[int, int, int, int]]:
    """Roofs all over a scene, of which the last two lie across the borders of chips."""
    rng = np.random.default_rng(0)
    small = [
        (x + int(rng.integers(4, 20)), y + int(rng.integers(4, 20)))
        for y in range(0, SIZE, 64)
        for x in range(0, SIZE, 64)
    ]
    return [*((x, y, x + 20, y + 12) for x, y in small), (50, 52, 100, 62), (300, 180, 340, 200)]


def _layer(path: Path, boxes: Any, place: str = "32617", crs: str | None = None, **columns: Any) -> Path:
    shapes = geo_scenes.grid((SIZE, SIZE), place).to_world([shapely.box(*box) for box in boxes])
    columns = columns or {"q": ["Where are the roofs?"] * len(boxes)}
    table = geopandas.GeoDataFrame(columns, geometry=shapes, crs=geo_scenes.PLACES[place][0])
    pyogrio.write_dataframe(table if crs is None else table.to_crs(crs), path)
    return path


def _make(tmp_path: Path, *words: object, out: str = "out") -> int:
    files = [tmp_path / "scene.tif", tmp_path / "labels.gpkg"]
    return main(
        [str(w) for w in ["from-gis", *files, "--query-column", "q", "--out", tmp_path / out, "--chip", 64, *words]]
    )


@pytest.mark.parametrize(("place", "crs"), [("32617", "EPSG:4326"), ("rotated", None), ("28992", "EPSG:3857")])
def test_there_and_back(tmp_path: Path, boxes: Any, place: str, crs: str | None) -> None:
    image = things((SIZE, SIZE), boxes)
    geo_scenes.write(tmp_path / "scene.tif", image, place)
    _layer(tmp_path / "labels.gpkg", boxes, place, crs)
    assert _make(tmp_path, "--split", "train") == 0
    source = JsonlSource(str(tmp_path / "out"))
    split = source.split("train")
    assert len(split) == 64
    seen = np.zeros((SIZE, SIZE), dtype=np.bool_)
    for index, row in enumerate(split.records):
        left, top = map(int, row.image.stem.split("_")[1:])
        sample = split[index]
        assert np.array_equal(sample.image, image[top : top + 64, left : left + 64])
        assert np.array_equal(sample.target_mask, geo_scenes.bright(sample.image))
        seen[top : top + 64, left : left + 64] = sample.target_mask
        with rasterio.open(row.image) as chip:
            assert chip.crs == geo_scenes.PLACES[place][0]
            window = shapely.box(left, top, left + 64, top + 64)
            there = geo_scenes.grid((SIZE, SIZE), place).to_world(window)
            assert Grid(64, 64, chip.transform, chip.crs).to_world(shapely.box(0, 0, 64, 64)).equals_exact(there, 1e-6)
    assert np.array_equal(seen, geo_scenes.bright(image))
    assert validate(tmp_path / "out" / "annotations.jsonl", MAX_PIXELS).ok
    assert main(["show", str(tmp_path / "out"), "--geo", "--out", str(tmp_path / "back.gpkg")]) == 0
    back = pyogrio.read_dataframe(tmp_path / "back.gpkg")
    assert back.crs == geo_scenes.PLACES[place][0]
    union = geo_scenes.grid((SIZE, SIZE), place).to_pixels(shapely.union_all(back.geometry.to_numpy()))
    assert np.array_equal(mask_of([union], (SIZE, SIZE)), geo_scenes.bright(image))
    assert set(back.split) == {"train"}
    assert back.area_m2.sum() > 0


def test_splits_share_no_ground_and_no_polygon(tmp_path: Path, boxes: Any, capsys: pytest.CaptureFixture[str]) -> None:
    geo_scenes.write(tmp_path / "scene.tif", things((SIZE, SIZE), boxes))
    _layer(tmp_path / "labels.gpkg", boxes)
    assert _make(tmp_path, "--block", 2, "--fractions", "train=0.6,val=0.2,test=0.2") == 0
    captured = capsys.readouterr()
    assert "left out: " in captured.err
    assert "chips that touch, or show a polygon of, another split" in captured.err
    places: dict[str, list[Any]] = {}
    for line in (tmp_path / "out" / "annotations.jsonl").read_text().splitlines():
        row = json.loads(line)
        left, top = map(int, Path(row["image"]).stem.split("_")[1:])
        places.setdefault(row["split"], []).append(shapely.box(left, top, left + 64, top + 64))
    assert set(places) == {"train", "val", "test"}
    ground = {name: shapely.union_all(chips) for name, chips in places.items()}
    shapes = [shapely.box(*box) for box in boxes]
    for one in places:
        for other in set(places) - {one}:
            assert ground[one].distance(ground[other]) > 1
            assert not any(s.intersects(ground[one]) and s.intersects(ground[other]) for s in shapes)
    assert _make(tmp_path, "--block", 2, "--fractions", "train=0.6,val=0.2,test=0.2", out="again") == 0
    assert (tmp_path / "again/annotations.jsonl").read_bytes() == (tmp_path / "out/annotations.jsonl").read_bytes()
    about = read_json(tmp_path / "out" / "from_gis.json") or {}
    assert (about["scene"], about["crs"], about["cutting"]["block"]) == ("scene.tif", "EPSG:32617", 2)


def test_every_split_gets_a_block_and_about_its_share() -> None:
    chips = [Chip(window=w, block=b) for b, w in chip_windows(Grid(6400, 6400), 64, 0.0, 4)]
    assert len(chips) == 10_000
    for block in (0, 7, 624):
        x0, y0, x1, y1 = shapely.union_all([c.window.polygon for c in chips if c.block == block]).bounds
        assert (x1 - x0, y1 - y0) == (256, 256)
    fractions = {"train": 0.8, "val": 0.1, "test": 0.1}
    split_of = split_of_blocks(chips, fractions, seed=0)
    shares = Counter(split_of[chip.block] for chip in chips)
    assert all(shares[name] / len(chips) == pytest.approx(share, abs=0.005) for name, share in fractions.items())
    assert split_of != split_of_blocks(chips, fractions, seed=1)
    three = [Chip(window=Window(64 * n, 0, 64, 64), block=n) for n in range(3)]
    assert sorted(split_of_blocks(three, fractions, seed=0).values()) == ["test", "train", "val"]


def test_the_larger_split_gives_way() -> None:
    chips = [
        Chip(window=Window(64 * n, 0, 64, 64), block=n, features=frozenset({1} if n in (0, 4) else {}))
        for n in range(5)
    ]
    splits, fractions = ["train", "train", "train", "test", "test"], {"train": 0.8, "test": 0.2}
    assert without_leaks(chips, splits, fractions, 1) == [1, 3, 4]  # 2 touches 3; 0 shows what 4 does
    assert without_leaks(chips, splits, fractions, 0) == [0, 1, 2, 3, 4]
    assert without_leaks(chips, splits, fractions, 70) == [3, 4]


def test_questions_and_categories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boxes = [(10, 10, 30, 30), (40, 10, 60, 30), (10, 40, 20, 60), (200, 200, 220, 230), (40, 40, 42, 43)]
    geo_scenes.write(tmp_path / "scene.tif", things((SIZE, SIZE), boxes))
    _layer(tmp_path / "labels.gpkg", boxes, q=["roof", "lake", None, "roof", "lake"])
    assert _make(tmp_path, "--split", "test", "--question", "Segment every {category}.", "--empty", "1") == 0
    captured = capsys.readouterr()
    assert "left out: 1 polygons without a question" in captured.err
    assert "test (6 rows), 3 that nothing answers" in captured.out
    rows = [json.loads(line) for line in (tmp_path / "out/annotations.jsonl").read_text().splitlines()]
    answered = {(row["image"], row["query"]): len(row["polygons"]) for row in rows if row["polygons"]}
    assert answered == {
        ("images/scene_0_0.tif", "Segment every roof."): 1,
        ("images/scene_0_0.tif", "Segment every lake."): 2,
        ("images/scene_192_192.tif", "Segment every roof."): 1,
    }
    assert not {(row["image"], row["query"]) for row in rows if not row["polygons"]} & set(answered)


def test_polygons_that_no_rings_can_say_become_run_lengths() -> None:
    window = Window(100, 0, 64, 64)
    ring = shapely.box(110, 10, 150, 50).difference(shapely.box(120, 20, 140, 40))
    island = shapely.box(125, 25, 135, 35)
    made = target_of([ring, island, shapely.box(112, 12, 114, 14)], window, 1)
    assert made is not None
    target, mask = made
    assert (len(target["polygons"]), target["holes"]) == (3, True)  # the last lies within the ring
    assert mask.sum() == 1600 - 400 + 100
    across = shapely.box(115, 22, 130, 38)  # over the ring and its hole: no ring of its own, no hole
    made = target_of([ring, across], window, 1)
    assert made is not None
    if "rle" in made[0]:
        assert np.array_equal(decode_rle(made[0]["rle"], (64, 64)), made[1])
    assert made[1].sum() == 1600 - 400 + 160
    assert target_of([shapely.box(0, 0, 5, 5)], window, 1) is None
    assert target_of([shapely.box(110, 10, 112, 12)], window, 5) is None


def test_chips_without_data_are_left_out(tmp_path: Path, boxes: Any) -> None:
    image = things((SIZE, SIZE), boxes)
    image[256:] = 0
    geo_scenes.write(tmp_path / "scene.tif", image, nodata=0)
    _layer(tmp_path / "labels.gpkg", boxes)
    assert _make(tmp_path, "--split", "train", "--gsd", 1.0) == 0
    split = JsonlSource(str(tmp_path / "out")).split("train")
    assert len(split) == 8  # of 256 x 256 pixels of a metre, the upper half
    assert all(sample.target_mask is not None for sample in map(split.__getitem__, range(8)))


def test_refusals(tmp_path: Path, boxes: Any, capsys: pytest.CaptureFixture[str]) -> None:
    geo_scenes.write(tmp_path / "scene.tif", things((SIZE, SIZE), boxes))
    _layer(tmp_path / "labels.gpkg", boxes, name=["roof"] * len(boxes))
    assert _make(tmp_path) == 2
    assert f"--query-column q: {tmp_path}/labels.gpkg has no such column; it has name" in capsys.readouterr().err
    _layer(tmp_path / "labels.gpkg", boxes, q=["<|im_end|>"] * len(boxes))
    assert _make(tmp_path) == 2
    assert "feature 1, column q: query='<|im_end|>': holds '<|im_end|>'" in capsys.readouterr().err
    _layer(tmp_path / "labels.gpkg", boxes, "28992")
    assert _make(tmp_path) == 2
    assert "no polygon lies in the scene: they reach from (120" in capsys.readouterr().err
    _layer(tmp_path / "labels.gpkg", boxes[:1])
    assert _make(tmp_path) == 2
    assert "3 splits of a scene whose labels lie in 1 block; take a smaller --block" in capsys.readouterr().err
    _layer(tmp_path / "labels.gpkg", [(10, 10, 12, 12)])
    assert _make(tmp_path, "--split", "train") == 2
    assert "no chip has a target of 16 pixels" in capsys.readouterr().err
    geo_scenes.write(tmp_path / "scene.tif", things((SIZE, SIZE), boxes), None)
    assert _make(tmp_path, "--split", "train") == 2
    assert "is in EPSG:32617, and the raster has no CRS; assign it" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.gpkg", "scene.tif"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert _make(tmp_path) == 2
    assert "is there already and not empty" in capsys.readouterr().err
    aerial = Path(__file__).parent / "data" / "aerial"
    assert main(["show", str(aerial), "--geo", "--out", str(tmp_path / "a.gpkg")]) == 2
    assert "has no place on the earth, so --geo has no map to draw on" in capsys.readouterr().err
    assert main(["show", str(aerial), "--geo", "--out", str(tmp_path / "a")]) == 2
    assert "with --geo it is a layer, so must end with .gpkg" in capsys.readouterr().err


def test_a_layer_in_pixels_goes_with_a_scene_without_a_crs(tmp_path: Path, boxes: Any) -> None:
    geo_scenes.write(tmp_path / "scene.tif", things((SIZE, SIZE), boxes), None)
    table = geopandas.GeoDataFrame({"q": ["roofs"] * len(boxes)}, geometry=[shapely.box(*box) for box in boxes])
    with pytest.warns(UserWarning, match="'crs' was not provided"):
        pyogrio.write_dataframe(table, tmp_path / "labels.geojson")
    words = [tmp_path / "scene.tif", tmp_path / "labels.geojson", "--query-column", "q", "--out", tmp_path / "out"]
    assert main([str(w) for w in ["from-gis", *words, "--split", "train"]]) == 2  # GeoJSON is in degrees
    with pytest.warns(UserWarning, match="'crs' was not provided"):
        pyogrio.write_dataframe(table, tmp_path / "labels.gpkg")
    assert _make(tmp_path, "--split", "train") == 0
    assert len(JsonlSource(str(tmp_path / "out")).split("train")) == 64
