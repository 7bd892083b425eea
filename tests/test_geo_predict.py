"""`grasp-rl predict SCENE --out LAYER`: a real policy's pipeline with answers that are known, from file to file."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import geo_scenes
import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.shutil
import shapely
from affine import Affine
from geo_scenes import things
from pointing import NOTHING, PointingPolicy

from grasp_rl.cli import predict, predict_scenes
from grasp_rl.cli.predict import main
from grasp_rl.cli.scene_progress import ScanLines, clock_time, progress_text
from grasp_rl.config.schema import RunConfig
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.geo.scan import Counts
from grasp_rl.prediction.config import read_config
from grasp_rl.prediction.predictor import Predictor
from grasp_rl.prediction.resolution import learned_resolution
from grasp_rl.runs.origin import mark_of, sign
from grasp_rl.segmenters.grabcut import GrabCutSegmenter

POINTING = ["policy._target_=pointing.PointingPolicy", "trusted_modules=[pointing]", "policy.weights=random"]
WORDS = [*POINTING, "--prompt", "box", "--segmenter", "box_fill"]
BOXES = [(20, 30, 60, 50), (100, 90, 220, 130), (240, 10, 290, 30), (150, 200, 170, 280)]
"""In :func:`scene`; the second and the last are longer than what two windows share."""


@pytest.fixture(autouse=True)
def _fresh() -> None:
    PointingPolicy.asked.clear()
    predict_scenes._say.cache_clear()


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return geo_scenes.write(tmp_path / "scene.tif", things((300, 300), BOXES))


def _run(*words: object) -> int:
    return main([str(word) for word in (*words, *WORDS)])


def _expected(place: str = "32617") -> Any:
    return geo_scenes.grid((300, 300), place).to_world([shapely.box(*box) for box in BOXES])


def test_a_scene_becomes_a_layer(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out" / "roofs.gpkg"
    assert _run(scene, "--query", "the roofs", "--out", out) == 0
    assert len(PointingPolicy.asked) == 16  # windows of 112 pixels, what the tiny policy sees
    back = pyogrio.read_dataframe(out)
    assert len(back) == len(BOXES)
    for wanted in _expected():
        assert sum(geometry.equals(wanted) for geometry in back.geometry) == 1
    row = back.iloc[int(np.argmax(back.area_m2))]
    assert row.area_m2 == pytest.approx(120 * 40 * 0.25, rel=2e-3)
    assert row.perimeter_m == pytest.approx(320 * 0.5, rel=2e-3)
    assert (row["query"], row.source, row.prompt, row.thinking) == ("the roofs", "scene.tif", "box", "1 here")
    assert row.gsd_m == pytest.approx(0.5, rel=2e-3)
    assert all(len(window.split(",")) == 4 for window in row.window.split(";"))
    assert len(row.window.split(";")) > 1
    assert row.model == "grasp_rl-tiny + BoxFillSegmenter"
    assert row.date.startswith("20")
    assert np.isnan(row.score)
    captured = capsys.readouterr()
    assert f"{scene}: the roofs: 4 features, 2,05" in captured.out
    assert "EPSG:32617, 0.5 x 0.5 m a pixel" in captured.err
    assert sorted(path.name for path in out.parent.iterdir()) == ["roofs.gpkg", "roofs.qml"]


def test_the_total_is_the_area_of_the_union(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of features that overlap, which a policy's boxes may, each keeps its own area."""
    ask = predict_scenes.asking

    def overlapping(predictor: Any) -> Any:
        def asked(images: Any, query: str) -> Any:
            answers = ask(predictor)(images, query)
            masks = np.zeros((2, *images[0].shape[:2]), dtype=np.bool_)
            masks[0, 10:30, 10:50], masks[1, 10:30, 30:90] = True, True
            return [replace(answer, masks=list(masks), confidences=[None, None]) for answer in answers]

        return asked

    monkeypatch.setattr(predict_scenes, "asking", overlapping)
    words = ["--query", "roofs", "--window", 300, "--json"]
    assert _run(scene, *words, "--out", tmp_path / "a.gpkg") == 0
    (found,) = json.loads(capsys.readouterr().out)["scenes"]
    back = pyogrio.read_dataframe(tmp_path / "a.gpkg")
    assert sorted(back.area_m2) == pytest.approx([200, 300], rel=2e-3)
    assert found["area_m2"] == pytest.approx(400, rel=2e-3)


@pytest.mark.parametrize("window", [64, 300])
def test_windows_of_any_size_find_the_same(scene: Path, tmp_path: Path, window: int) -> None:
    assert _run(scene, "--query", "roofs", "--out", tmp_path / "a.gpkg", "--window", window, "--overlap", "0.3") == 0
    back = pyogrio.read_dataframe(tmp_path / "a.gpkg")
    slack = 0.0 if window == 64 else 0.25  # a frame of 112 units cannot name each of 300 pixels
    for wanted in _expected():
        assert any(g.symmetric_difference(wanted).area <= slack * wanted.area for g in back.geometry)


def test_a_style_is_named_where_it_is_the_one_of_the_questions(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [scene, "--out", tmp_path / "a.gpkg", "--window", 300, "--overwrite"]
    for query in ("roofs", "lakes"):
        assert _run(*words, "--query", query) == 0
        assert f"{tmp_path}/a.gpkg: 4 features, style a.qml" in capsys.readouterr().out
        assert query in (tmp_path / "a.qml").read_text()
    (tmp_path / "a.qml").write_text("mine")
    assert _run(*words, "--query", "lakes") == 0
    captured = capsys.readouterr()
    assert f"{tmp_path}/a.gpkg: 4 features\n" in captured.out
    assert "a.qml: is another style, and stays" in captured.err


def test_nothing_found_is_an_answer(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(scene, "--query", NOTHING, "--out", tmp_path / "a.gpkg") == 0
    assert "nothing found (16 windows answered)" in capsys.readouterr().out
    assert pyogrio.read_info(tmp_path / "a.gpkg")["features"] == 0
    assert len(pyogrio.read_info(tmp_path / "a.gpkg")["fields"]) == 12


def test_every_format(scene: Path, tmp_path: Path) -> None:
    for name in ("a.geojson", "a.parquet", "a.shp", "a.fgb", "a.tif", "a.png", "a.json"):
        folder = tmp_path / name.partition(".")[2]
        assert _run(scene, "--query", "roofs", "--out", folder / name, "--window", 150) == 0
    assert len(geopandas.read_parquet(tmp_path / "parquet/a.parquet")) == 4
    assert len(pyogrio.read_dataframe(tmp_path / "geojson/a.geojson")) == 4
    assert len(pyogrio.read_dataframe(tmp_path / "shp/a.shp")) == 4
    assert len(pyogrio.read_dataframe(tmp_path / "fgb/a.fgb")) == 4
    with rasterio.open(tmp_path / "tif/a.tif") as mask, rasterio.open(scene) as source:
        assert (mask.crs, mask.transform, mask.shape) == (source.crs, source.transform, source.shape)
        assert set(np.unique(mask.read(1))) == {0, 1}
    with rasterio.open(scene) as source, warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(tmp_path / "png/a.png") as overlay:
            assert (overlay.count, overlay.width) == (3, source.width)
    (found,) = json.loads((tmp_path / "json/a.json").read_text())["scenes"]
    assert (found["crs"], found["features"], found["size"]) == ("EPSG:32617", 4, [300, 300])
    first = found["found"][0]
    assert first["score"] is None
    assert shapely.geometry.shape(first["pixels"]).geom_type == "MultiPolygon"
    assert shapely.geometry.shape(first["geometry"]).bounds[0] > 499_999


def test_rasters_hold_255_where_the_scene_has_no_data(tmp_path: Path) -> None:
    image = things((300, 300), BOXES)
    image[:40] = 0
    image[230:, 140:160] = 0
    path = geo_scenes.write(tmp_path / "scene.tif", image, nodata=0)
    valid = image.any(axis=2)
    for more in ([], ["--gsd", 1.3], ["--samples", 2]):
        assert _run(path, "--query", "roofs", "--out", tmp_path / "a.tif", "--overwrite", *more) == 0
        with rasterio.open(tmp_path / "a.tif") as file:
            values = file.read(1)
        assert np.array_equal(values == 255, ~valid)
        assert (values == 1).sum() > 3000
    with rasterio.open(tmp_path / "a_agreement.tif") as file:
        assert np.array_equal(file.read(1) == 255, ~valid)


def test_a_coarser_resolution_is_recorded(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(scene, "--query", "roofs", "--out", tmp_path / "a.gpkg", "--gsd", "1.0", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert len(PointingPolicy.asked) == 4
    assert record["state"] == "done"
    assert record["scenes"][0]["size"] == [150, 150]
    back = pyogrio.read_dataframe(tmp_path / "a.gpkg")
    assert back.gsd_m.tolist() == pytest.approx([1.0] * 4, rel=0.01)
    assert shapely.union_all(back.geometry.to_numpy()).symmetric_difference(shapely.union_all(_expected())).area < 1e-6


def test_parts_of_a_scene(scene: Path, tmp_path: Path) -> None:
    assert _run(scene, "--query", "roofs", "--out", tmp_path / "a.gpkg", "--bbox=500000,3999970,500035,4000000") == 0
    assert [geometry.bounds for geometry in pyogrio.read_dataframe(tmp_path / "a.gpkg").geometry] == [
        (500010.0, 3999975.0, 500030.0, 3999985.0)
    ]
    assert len(PointingPolicy.asked) == 2
    area = geopandas.GeoSeries(_expected()[:1], crs="EPSG:32617").to_crs("EPSG:4326")
    area.to_file(tmp_path / "area.gpkg")
    assert _run(scene, "--query", "roofs", "--out", tmp_path / "b.gpkg", "--where", tmp_path / "area.gpkg") == 0
    (found,) = pyogrio.read_dataframe(tmp_path / "b.gpkg").geometry
    assert found.symmetric_difference(_expected()[0]).area < 1e-3 * found.area


@pytest.mark.parametrize("overlap", [0, 0.2])
def test_a_part_is_what_the_whole_says_of_it(scene: Path, tmp_path: Path, overlap: float) -> None:
    aoi = shapely.union_all(
        [shapely.box(500007.3, 3999948, 500056, 3999987.7), shapely.box(500070, 3999850, 500090, 3999870)]
    )
    words = [scene, "--query", "roofs", "--overlap", overlap, "--window", 56]
    assert _run(*words, "--out", tmp_path / "all.gpkg") == 0
    everything = pyogrio.read_dataframe(tmp_path / "all.gpkg")
    frame = geopandas.GeoDataFrame(geometry=[aoi], crs="EPSG:32617")
    frame.to_file(tmp_path / "aoi.gpkg")
    frame.to_crs("EPSG:4326").to_file(tmp_path / "aoi.geojson")
    frame.to_crs("EPSG:3857").to_file(tmp_path / "aoi.shp")
    asked = set()
    for ending in ("gpkg", "geojson", "shp"):
        PointingPolicy.asked.clear()
        assert _run(*words, "--out", tmp_path / f"{ending}.gpkg", "--where", tmp_path / f"aoi.{ending}") == 0
        asked.add(len(PointingPolicy.asked))
        found = pyogrio.read_dataframe(tmp_path / f"{ending}.gpkg")
        part = shapely.union_all(found.geometry.to_numpy())
        assert set(";".join(found.window).split(";")) <= set(";".join(everything.window).split(";"))
        clipped = shapely.union_all(everything.geometry.to_numpy()).intersection(aoi)
        assert part.symmetric_difference(clipped).area < 0.05
        assert part.area > 300
    assert len(asked) == 1


@pytest.mark.parametrize("place", ["upwards", "leftwards", "half"])
def test_mirrored_scenes_are_shown_north_up_and_results_lie_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    path = geo_scenes.write(tmp_path / "scene.tif", things((300, 300), BOXES), place)
    assert _run(path, "--query", "roofs", "--out", tmp_path / "a.gpkg") == 0
    assert "in the opposite order so that the image is not mirrored and north is up" in capsys.readouterr().err
    back = pyogrio.read_dataframe(tmp_path / "a.gpkg")
    assert (
        shapely.union_all(back.geometry.to_numpy()).symmetric_difference(shapely.union_all(_expected(place))).area
        < 1e-6
    )
    assert _run(path, "--query", "roofs", "--out", tmp_path / "a.tif") == 0
    with rasterio.open(tmp_path / "a.tif") as mask, rasterio.open(path) as source:
        assert mask.transform == source.transform
        assert np.array_equal(mask.read(1) == 1, source.read(1) == 200)


@pytest.mark.parametrize("place", ["4326", "flat"])
def test_pixels_are_shown_square_on_the_ground(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    """One pixel is half as wide as high at 60 degrees north, another twice: a square roof has to look square."""
    monkeypatch.setitem(geo_scenes.PLACES, "flat", ("EPSG:32617", Affine(0.5, 0, 500000, 0, -0.25, 4000000)))
    wide, high = (80, 40) if place == "4326" else (30, 60)
    path = geo_scenes.write(tmp_path / "scene.tif", things((200, 200), [(60, 70, 60 + wide, 70 + high)]), place)
    shown = []
    predict_all = Predictor.predict_all

    def seeing(self: Predictor, images: Any, query: str) -> Any:
        shown.extend(images)
        return predict_all(self, images, query)

    monkeypatch.setattr(Predictor, "predict_all", seeing)
    assert _run(path, "--query", "roofs", "--out", tmp_path / "a.gpkg", "--window", 500) == 0
    (image,) = shown
    y, x = np.nonzero(geo_scenes.bright(image))
    assert (np.ptp(x) + 1) / (np.ptp(y) + 1) == pytest.approx(1, abs=0.03)
    first = capsys.readouterr().err.splitlines()[0]
    assert "; looked at in square pixels of " in first
    (row,) = [row for _, row in pyogrio.read_dataframe(tmp_path / "a.gpkg").iterrows()]
    left, top, width, height = map(int, row.window.split(","))
    assert (left, top, height, width) == (0, 0, *image.shape[:2])
    assert row.gsd_m == pytest.approx(0.25 if place == "flat" else 0.555, rel=1e-2)
    assert row.area_m2 == pytest.approx(225 if place == "flat" else 44.4 * 44.6, rel=0.05)
    assert _run(path, "--query", "roofs", "--out", tmp_path / "a.tif", "--window", 500) == 0
    with rasterio.open(tmp_path / "a.tif") as mask, rasterio.open(path) as source:
        found, expected = mask.read(1) == 1, source.read(1) == 200
        assert (mask.transform, (found ^ expected).sum() < 0.05 * expected.sum()) == (source.transform, True)


def test_a_mask_keeps_what_the_file_says_of_its_place_and_says_what_was_asked(tmp_path: Path) -> None:
    crs, transform = geo_scenes.PLACES["upwards"]
    for name, place in (
        ("a", {"transform": transform}),
        ("b", {"crs": crs}),
        ("c", {"crs": crs, "transform": transform}),
    ):
        path = geo_scenes.write(tmp_path / f"{name}.tif", things((100, 100), [(20, 20, 50, 40)]), None, **place)
        assert _run(path, "--query", "the röofs", "--out", tmp_path / f"{name}_mask.tif", "--samples", 2) == 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(path) as source, rasterio.open(tmp_path / f"{name}_mask.tif") as mask:
                assert (mask.crs, mask.transform) == (source.crs, source.transform)
                assert np.array_equal(mask.read(1) == 1, source.read(1) == 200)
                tags = mask.tags()
            with rasterio.open(tmp_path / f"{name}_mask_agreement.tif") as agreement:
                assert agreement.tags().items() >= {k: v for k, v in tags.items() if k != "AREA_OR_POINT"}.items()
        assert (tags["GRASP_RL_QUERY"], tags["GRASP_RL_SOURCE"]) == ("the röofs", f"{name}.tif")
        assert tags["GRASP_RL_MODEL"] == "grasp_rl-tiny + BoxFillSegmenter"
        assert tags["GRASP_RL_DATE"].startswith("20")
        assert tags["TIFFTAG_SOFTWARE"].startswith("grasp_rl ")


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (["--gsd", 50], "uint8", "the whole scene is 3 x 3 pixels of 50 m, too few to see much in; take a finer --gsd"),
        (["--stretch", "0,3000"], "uint8", "stretched from 0..3000, nearly all values are 2 to 17 of 255, so there is"),
        (["--stretch", "0,30"], "uint16", "nearly all values are 255 to 255 of 255"),
        ([], "uint16", "no bands are tagged as colours, so 1, 2, 3 are taken as red, green and blue; --bands R,G,B"),
    ],
)
def test_what_may_show_nothing_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[Any], kind: str, said: str
) -> None:
    image = things((300, 300), [(100, 100, 260, 250)]).astype(kind) * (1 if kind == "uint8" else 40)
    image = image if kind == "uint8" else np.concatenate([image, image[..., :1]], axis=2)
    path = geo_scenes.write(tmp_path / "scene.tif", image)
    assert _run(path, "--query", "roofs", "--out", tmp_path / "a.gpkg", *words) == 0
    assert said in capsys.readouterr().err
    tagged = {"photometric": "RGB"} if kind == "uint16" else {}
    geo_scenes.write(path, image, **tagged)
    more = ["--gsd", "1.5", "--stretch", "0,255" if kind == "uint8" else "0,8000"]
    assert _run(path, "--query", "roofs", "--out", tmp_path / "b.gpkg", *more) == 0
    captured = capsys.readouterr().err
    assert not any(word in captured for word in ("too few", "nearly all", "no bands are tagged"))


def test_features_below_an_area_are_left_out(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [scene, "--query", "roofs", "--window", 150, "--min-area", 300]
    assert _run(*words, "--out", tmp_path / "a.gpkg") == 0  # of 200, 1200, 250 and 400 m2
    assert "2 features, 1,60" in (said := capsys.readouterr().out)
    assert ", 2 smaller than 300 m2 left out" in said
    assert sorted(pyogrio.read_dataframe(tmp_path / "a.gpkg").area_m2) == pytest.approx([400, 1200], rel=2e-3)
    assert _run(*words, "--out", tmp_path / "a.tif", "--json") == 0
    (record,) = json.loads(capsys.readouterr().out)["scenes"]
    assert (record["min_area_m2"], record["left_out"]) == (300, 2)
    with rasterio.open(tmp_path / "a.tif") as file:
        assert (file.read(1) == 1).sum() == 6400
        assert file.tags()["GRASP_RL_MIN_AREA_M2"] == "300.0"
    ask = predict_scenes.asking

    def interrupted(predictor: Any) -> Any:
        def asked(images: Any, query: str) -> Any:
            if len(PointingPolicy.asked) > 10:
                raise KeyboardInterrupt
            return ask(predictor)(images, query)

        return asked

    PointingPolicy.asked.clear()
    monkeypatch.setattr(predict_scenes, "asking", interrupted)
    words[3:5] = ["--window", 64]
    assert _run(*words, "--out", tmp_path / "b.gpkg", "evaluation.batch_size=4") == 130
    assert _run(*words[:-1], 200, "--out", tmp_path / "b.gpkg", "evaluation.batch_size=4") == 2
    assert "min_area was 300.0, is 200.0" in capsys.readouterr().err
    plain = geo_scenes.write(tmp_path / "plain.tif", things((100, 100), BOXES[:1]), None)
    assert _run(plain, *words[1:], "--out", tmp_path / "c.gpkg") == 2
    assert "--min-area: the scene has no CRS, so its areas are not known" in capsys.readouterr().err


def test_files_folders_and_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "scenes"
    (folder / "b").mkdir(parents=True)
    for name, place in (("a.tif", "32617"), ("b/a.tif", "4326")):
        geo_scenes.write(folder / name, things((100, 100), [(20, 20, 50, 40)]), place)
    listed = tmp_path / "queries.csv"
    listed.write_text(f"query\nroofs\n{NOTHING}\n")
    assert _run(folder, "--queries", listed, "--out", tmp_path / "all.gpkg") == 0
    back = pyogrio.read_dataframe(tmp_path / "all.gpkg")
    assert (back["query"].tolist(), back.source.tolist()) == (["roofs", "roofs"], ["a.tif", "b/a.tif"])
    assert back.crs == "EPSG:32617"
    assert "2 of 4 layers brought into the CRS of the first, EPSG:32617" in capsys.readouterr().err
    assert _run(folder, "--queries", listed, "--out", tmp_path / "apart", "--format", "cog") == 0
    names = ["a-2_1.tif", "a-2_2.tif", "a_1.tif", "a_2.tif"]
    assert sorted(path.name for path in (tmp_path / "apart").iterdir()) == names
    listed.write_text(f"image,query\n{folder / 'a.tif'},roofs\n")
    assert _run("--queries", listed, "--out", tmp_path / "pairs.geojson") == 0
    assert len(pyogrio.read_dataframe(tmp_path / "pairs.geojson")) == 1


def test_without_a_crs_the_result_is_in_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = geo_scenes.write(tmp_path / "scene.tif", things((100, 100), [(20, 20, 50, 40)]), None)
    assert _run(path, "--query", "roofs", "--out", tmp_path / "a.gpkg") == 0
    assert (
        "has no CRS, so the result is in pixels, x to the right and y down; areas are missing"
        in capsys.readouterr().err
    )
    assert pyogrio.read_dataframe(tmp_path / "a.gpkg").geometry[0].bounds == (20, 20, 50, 40)
    for words, said in (
        (["--out", tmp_path / "a.geojson"], "GeoJSON is in longitude and latitude"),
        (["--out", tmp_path / "b.gpkg", "--gsd", "1"], "no CRS, so its metres are not known"),
        (["--out", tmp_path / "b.gpkg", "--bbox", "0,0,9,9", "--bbox-crs", "EPSG:4326"], "give --bbox in pixels"),
    ):
        assert _run(path, "--query", "roofs", *words) == 2
        assert said in capsys.readouterr().err


def test_several_answers_give_a_score_and_a_raster_of_agreement(scene: Path, tmp_path: Path) -> None:
    assert _run(scene, "--query", "roofs", "--out", tmp_path / "a.gpkg", "--samples", 4, "--window", 150) == 0
    back = pyogrio.read_dataframe(tmp_path / "a.gpkg")
    assert len(back) == 4
    assert back.score.tolist() == pytest.approx([0.6] * 4)  # the greedy one and two of four see it
    with rasterio.open(tmp_path / "a_agreement.tif") as file:
        values = file.read(1)
        assert file.crs == "EPSG:32617"
    assert set(np.unique(values)) == {0, 60}
    assert (values[95, 110], values[5, 5]) == (60, 0)


def test_grabcut_works_on_a_window(scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = set()
    encode = GrabCutSegmenter.encode

    def noting(self: GrabCutSegmenter, image: Any) -> Any:
        sizes.add(image.shape)
        return encode(self, image)

    monkeypatch.setattr(GrabCutSegmenter, "encode", noting)
    words = [str(scene), "--query", "roofs", "--out", str(tmp_path / "a.gpkg"), "--bbox=500000,3999940,500075,4000000"]
    assert main([*words, *POINTING, "--prompt", "box"]) == 0
    assert sizes == {(112, 112, 3)}
    assert len(pyogrio.read_dataframe(tmp_path / "a.gpkg")) >= 1


def test_a_killed_command_goes_on_where_it_was(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [scene, "--query", "roofs", "--out", tmp_path / "a.gpkg", "evaluation.batch_size=2"]
    child = os.fork()
    if child == 0:
        encode = PointingPolicy.encode

        def dying(self: PointingPolicy, *arguments: Any, **more: Any) -> Any:
            if len(self.asked) == 7:
                os.kill(os.getpid(), signal.SIGKILL)
            return encode(self, *arguments, **more)

        monkeypatch.setattr(PointingPolicy, "encode", dying)
        _run(*words)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (tmp_path / "a.gpkg.journal").is_file()
    assert not (tmp_path / "a.gpkg").exists()
    assert _run(scene, "--query", "lakes", *words[3:]) == 2
    assert "a.gpkg.journal: belongs to another scan: question was 'roofs', is 'lakes'" in capsys.readouterr().err
    other = geo_scenes.write(tmp_path / "other.tif", things((300, 300), BOXES))
    assert _run(other, *words[1:]) == 2
    assert f"belongs to another scan: scene was '{scene}', is '{other}'" in capsys.readouterr().err
    PointingPolicy.asked.clear()
    assert _run(*words) == 0
    assert "6 windows are answered" in capsys.readouterr().err
    assert len(PointingPolicy.asked) == 10
    assert len(pyogrio.read_dataframe(tmp_path / "a.gpkg")) == 4
    assert not (tmp_path / "a.gpkg.journal").exists()


def _run_that_learned(folder: Path, about: dict[str, Any]) -> Path:
    """A run folder of one's own whose data were made of a map."""
    (folder / "map").mkdir(parents=True)
    (folder / "map/from_gis.json").write_text(json.dumps(about))
    (folder / "config.yaml").write_text("seed: 0\n")
    sign(folder / "config.yaml")
    return folder


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"gsd_m": 0.4, "cutting": {"gsd": 2.0}}, 0.4),
        ({"cutting": {"gsd": 2.0}}, 2.0),
        ({"cutting": {"gsd": None}, "crs": "EPSG:32617", "transform": [0.25, 0, 500000, 0, -0.25, 4000000]}, 0.25),
        ({"cutting": {"gsd": None}, "crs": "my own", "transform": [0.25, 0, 500000, 0, -0.25, 4000000]}, None),
        ({"cutting": {"gsd": None}, "crs": "no CRS", "transform": [1, 0, 0, 0, 1, 0]}, None),
        ({"cutting": {"gsd": "much"}}, None),
        ({"cutting": {"gsd": -1}}, None),
        ({}, None),
    ],
)
def test_the_resolution_that_a_run_learned_at(tmp_path: Path, about: dict[str, Any], expected: float | None) -> None:
    run = _run_that_learned(tmp_path / "run", about)
    config = RunConfig(data={"root": str(run / "map")})
    learned = learned_resolution(run, config)
    assert (learned and learned.gsd) == (expected and pytest.approx(expected, rel=2e-3))
    assert learned_resolution(run, RunConfig()) is None
    mark_of(run / "config.yaml").unlink()  # somebody else's
    assert learned_resolution(run, config) is None


def test_a_run_s_resolution_is_the_default(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _run_that_learned(tmp_path / "run", {"gsd_m": 1.0})

    def read(folder: Path | None, scheme: str | None, segmenter: str | None, overrides: Any) -> RunConfig:
        config = read_config(None, scheme, segmenter, overrides)
        return config if folder is None else replace(config, data={"root": str(folder / "map")})

    monkeypatch.setattr(predict, "read_config", read)
    monkeypatch.setattr(predict_scenes, "Predictor", lambda config, _, trusted: Predictor(config, None, trusted))
    words = ["--query", "roofs", "--out", tmp_path / "a.gpkg", "--overwrite"]
    for more, said, gsd in (
        (["--run", run], f"looked at in 1 m a pixel, as {run} learned ({run}/map/from_gis.json); --gsd METRES", 1.0),
        (["--run", run, "--gsd", 1.2], None, 1.2),
        (["--run", run, "--gsd", 0.5], "learned from chips of 1 m a pixel", 0.5),
        ([], None, 0.5),
    ):
        predict_scenes._say.cache_clear()
        assert _run(scene, *words, *more) == 0
        captured = capsys.readouterr().err
        assert said in captured if said else "learned" not in captured
        assert pyogrio.read_dataframe(tmp_path / "a.gpkg").gsd_m.tolist() == pytest.approx([gsd] * 4, rel=2e-2)
    (run / "map/from_gis.json").write_text('{"gsd_m": 0.25}')
    assert _run(scene, *words, "--run", run) == 0
    assert "and this scene has 0.5 m: what is finer than that cannot be found in it" in capsys.readouterr().err
    (run / "map/from_gis.json").write_text('{"gsd_m": 0.501}')  # to rounding the scene's own, which is not resampled
    assert _run(scene, *words, "--run", run, "--json") == 0
    assert json.loads(capsys.readouterr().out)["scenes"][0]["size"] == [300, 300]
    plain = geo_scenes.write(tmp_path / "plain.tif", things((100, 100), BOXES[:1]), None)
    assert _run(plain, *words, "--run", run) == 0
    assert "without a CRS this scene's metres are not known" in capsys.readouterr().err


@pytest.mark.parametrize("mended", ["away", "whole"])
def test_a_damaged_file_of_a_folder_does_not_strand_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mended: str
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b", "c"):
        geo_scenes.write(folder / f"{name}.tif", things((100, 100), [(20, 20, 50, 40)]))
    whole = (folder / "a.tif").read_bytes()
    (folder / "a.tif").write_bytes(whole[:3000])
    words = [folder, "--query", "roofs", "--out", tmp_path / "a.gpkg"]
    assert _run(*words) == 2
    assert "start the same command with --overwrite, which asks nothing twice" in capsys.readouterr().err
    assert len(PointingPolicy.asked) == 2
    (folder / "a.tif").unlink() if mended == "away" else (folder / "a.tif").write_bytes(whole)
    assert _run(*words, "--overwrite") == 0
    assert len(PointingPolicy.asked) == 2 + (mended == "whole")
    assert len(pyogrio.read_dataframe(tmp_path / "a.gpkg")) == 2 + (mended == "whole")
    assert not (tmp_path / "a.gpkg.journal").exists()


def test_scenes_that_show_the_same_ground_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crs, (a, b, c, d, e, f) = geo_scenes.PLACES["32617"][0], geo_scenes.PLACES["32617"][1][:6]
    for name, (x, y) in {"a": (0, 0), "b": (100, 0), "c": (180, 0), "d": (600, 600), "e": (280, 100)}.items():
        place = {"crs": crs, "transform": Affine(a, b, c + a * x, d, e, f + e * y)}
        geo_scenes.write(tmp_path / "in" / f"{name}.tif", things((100, 100), []), None, **place)
    words = ["--query", "roofs", "--out", tmp_path / "a.gpkg", "--overwrite"]
    assert _run(tmp_path / "in", *words) == 0
    said = capsys.readouterr().err
    assert f"{tmp_path}/in/b.tif and {tmp_path}/in/c.tif overlap: what lies in both is found in each" in said
    assert f"{tmp_path}/in/a.tif and {tmp_path}/in/b.tif lie edge to edge: what crosses the edge is found in" in said
    assert "gdalbuildvrt all.vrt FILES, then predict all.vrt --trust-paths" in said
    predict_scenes._say.cache_clear()
    assert _run(tmp_path / "in/a.tif", tmp_path / "in/c.tif", tmp_path / "in/e.tif", *words) == 0
    said = capsys.readouterr().err
    assert "overlap" not in said
    assert "edge to edge" not in said  # c and e have a corner alone together


def test_a_scene_that_was_repaired_is_asked_anew_and_the_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = geo_scenes.write(tmp_path / "good.tif", things((100, 100), [(20, 20, 50, 40)]))
    bad = tmp_path / "bad.tif"
    bad.write_bytes(good.read_bytes()[:3000])
    words = [good, bad, "--query", "roofs", "--out", tmp_path / "a.gpkg"]
    assert _run(*words) == 2
    assert len(PointingPolicy.asked) == 1
    geo_scenes.write(bad, things((100, 100), [(10, 10, 30, 30)]))
    assert _run(*words, "--overwrite") == 0
    assert len(PointingPolicy.asked) == 2
    assert sorted(pyogrio.read_dataframe(tmp_path / "a.gpkg").source) == ["bad.tif", "good.tif"]


@pytest.mark.parametrize("gsd", ["0.37", "0.7", "1.9", "33"])
def test_resolutions_that_are_no_whole_multiple(scene: Path, tmp_path: Path, gsd: str) -> None:
    assert _run(scene, "--query", "roofs", "--out", tmp_path / "a.tif", "--gsd", gsd, "--window", 200) == 0
    with rasterio.open(tmp_path / "a.tif") as file:
        found = file.read(1) == 1
    expected = np.zeros((300, 300), dtype=np.bool_)
    for x0, y0, x1, y1 in BOXES:
        expected[y0:y1, x0:x1] = True
    least = 0.0 if gsd == "33" else 0.75 if gsd == "1.9" else 0.9
    assert (found & expected).sum() >= least * (found | expected).sum()


def test_a_folder_of_many_kinds_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    geo_scenes.write(folder / "a.tif", things((100, 100), [(20, 20, 50, 40)]))
    for name in ("a.tif.aux.xml", "a.vrt", "a.kmz", "notes.txt", "a.tfw"):
        (folder / name).write_text("<x/>")
    assert _run(folder, "--query", "roofs", "--out", folder / "result.tif") == 0
    assert _run(folder, "--query", "roofs", "--out", folder / "result.tif") == 2  # is no scene, and is there
    assert "result.tif: is there already" in capsys.readouterr().err


def test_an_interrupted_command_says_how_to_go_on(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encode = PointingPolicy.encode

    def interrupted(self: PointingPolicy, *arguments: Any, **more: Any) -> Any:
        if len(self.asked) == 8:
            raise KeyboardInterrupt
        return encode(self, *arguments, **more)

    monkeypatch.setattr(PointingPolicy, "encode", interrupted)
    assert _run(scene, "--query", "roofs", "--out", tmp_path / "a.gpkg", "evaluation.batch_size=4") == 130
    said = f"interrupted; {tmp_path}/a.gpkg.journal keeps what is answered, and the same command goes on there"
    assert said in capsys.readouterr().err


def test_a_damaged_scene_is_named_and_the_others_are_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = geo_scenes.write(tmp_path / "good.tif", things((100, 100), [(20, 20, 50, 40)]))
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    bad = geo_scenes.write(tmp_path / "bad.tif", geo_scenes.ground((256, 256)), **tiles)
    data = bytearray(bad.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
    bad.write_bytes(data)
    assert _run(bad, good, "--query", "roofs", "--out", tmp_path / "a.gpkg") == 2
    captured = capsys.readouterr()
    assert f"grasp-rl predict: {bad}: damaged" in captured.err
    assert "1 of 2 scenes could not be answered" in captured.err
    assert pyogrio.read_dataframe(tmp_path / "a.gpkg").source.tolist() == ["good.tif"]
    assert _run(bad, "--query", "roofs", "--out", tmp_path / "b.gpkg") == 2
    assert "bad.tif: damaged" in capsys.readouterr().err
    assert not (tmp_path / "b.gpkg").exists()


def test_only_trusted_paths_lead_elsewhere(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vrt = tmp_path / "scene.vrt"
    rasterio.shutil.copy(scene, vrt, driver="VRT")
    for name in (vrt, f"/vsizip/{tmp_path}/a.zip/a.tif", "https://example.org/a.tif"):
        for more in ([], ["--out", tmp_path / "a.gpkg"]):
            assert _run(name, "--query", "roofs", *more) == 2
            assert "--trust-paths" in capsys.readouterr().err
    for name in (vrt, f"/vsisubfile/0_{scene.stat().st_size},{scene}"):
        out = ["--out", tmp_path / "a.gpkg", "--overwrite", "--window", 150]
        assert _run(name, "--query", "roofs", "--trust-paths", *out) == 0
        assert len(pyogrio.read_dataframe(tmp_path / "a.gpkg")) == 4
    assert PointingPolicy.asked != []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "a.gpkg", "--query", " "], "--query: is empty"),
        (["--out", "a.gpkg"], "--query: no question"),
        (["--out", "there.gpkg", "--query", "a"], "there.gpkg: is there already; name another --out, or --overwrite"),
        (["--out", "a.tif", "--query", "a", "--query", "b"], "holds one question about one scene, and 2 are asked"),
        (["--out", "a.gpkg", "--query", "a", "--bbox", "0,0,1,1"], "--bbox: does not overlap the scene, which reaches"),
        (["--out", "a.gpkg", "--query", "a", "--where", "none.gpkg"], "none.gpkg: no such file"),
        (["--out", "a.gpkg", "--query", "a", "--where", "scene.tif"], "is no GeoPackage, GeoJSON"),
        (["--out", "a.gpkg", "--query", "a", "--bbox-crs", "EPSG:4326"], "--bbox-crs EPSG:4326: goes with --bbox"),
        (["--out", "a.gpkg", "--query", "a", "--bands", "1,2,9"], "data.bands=[1, 2, 9] asks for band 9"),
        (["--out", "pictures", "--query", "a", "--gsd", "1"], "--gsd: goes with a map layer; name one"),
        (["--out", "pictures", "--query", "a", "--min-area", "1"], "--min-area: goes with a map layer; name one"),
        (["--out", "a.gpkg", "--query", "a", "--samples", "2", "inference=majority"], "majority votes on boxes"),
    ],
)
def test_refusals_come_before_any_question(
    scene: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.chdir(scene.parent)
    Path("there.gpkg").touch()
    assert _run("scene.tif", *words) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert PointingPolicy.asked == []
    assert sorted(path.name for path in scene.parent.iterdir()) == ["scene.tif", "there.gpkg"]


def test_without_the_extra_a_layer_names_it_and_a_picture_needs_it_not(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("pyproj", "geopandas", "pyogrio", "rio_cogeo"):
        monkeypatch.setitem(sys.modules, name, None)
    assert _run(scene, "--query", "roofs", "--out", tmp_path / "a.gpkg") == 2
    said = "map layers need pyproj, geopandas, pyogrio, rio_cogeo: not installed; pip install 'grasp-rl[geo]'"
    assert said in capsys.readouterr().err
    assert _run(scene, "--query", "roofs", "--out", tmp_path / "out") == 0


def test_a_picture_without_a_layer_says_what_is_lost(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(scene, "--query", "roofs", "--out", tmp_path / "out") == 0
    assert "has a place on the earth, in EPSG:32617, which PNG and JSON lose" in capsys.readouterr().err


def test_the_shipped_policy_answers_a_scene(tmp_path: Path) -> None:
    path = geo_scenes.write(tmp_path / "scene.tif", things((150, 150), BOXES[:1]))
    assert (
        main([str(path), "--query", "the roof", "--out", str(tmp_path / "a.gpkg"), "evaluation.max_new_tokens=40"]) == 0
    )
    assert pyogrio.read_info(tmp_path / "a.gpkg")["geometry_type"] == "MultiPolygon"


def test_the_way_from_python_finds_what_the_command_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    drawn = SyntheticSource().split("val")
    rows = [np.concatenate([drawn[index].image for index in pair], axis=1) for pair in ((0, 1), (2, 3))]
    geo_scenes.write(tmp_path / "scene.tif", np.concatenate(rows))
    section = (Path(__file__).parents[1] / "docs/gis.md").read_text().partition("## From Python")[2]
    block = section.partition("```python\n")[2].partition("```")[0]
    exec(compile(block, "docs/gis.md", "exec"), {})
    assert main(["scene.tif", "--query", "the roof", "--out", "command.gpkg"]) == 0
    ours, theirs = (pyogrio.read_dataframe(tmp_path / name) for name in ("roofs.gpkg", "command.gpkg"))
    assert len(ours) > 0
    assert ours.drop(columns="date").equals(theirs.drop(columns="date"))


def test_progress_with_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    counts = Counts(total=100, before=20, asked=10, empty=10, instances=3)
    assert progress_text(counts, 40.0) == "40 of 100 windows, 3 found, 10 empty, about 2:00 left"
    assert progress_text(Counts(total=5, before=5), 1.0) == "5 of 5 windows, 0 found"
    assert [clock_time(seconds) for seconds in (7, 750, 11100)] == ["0:07", "12:30", "3:05:00"]
    now = iter([0.0, 1.0, 11.0])
    lines = ScanLines(sys.stderr, "scene.tif", lambda: next(now))
    lines(counts)
    lines(counts)
    lines.end()
    assert capsys.readouterr().err == "scene.tif: 40 of 100 windows, 3 found, 10 empty, about 0:33 left\n"
