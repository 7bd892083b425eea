"""What a scan writes: layers that pyogrio reads back, rasters on the scene's grid, a style, and no loss in silence."""

from __future__ import annotations

import json
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import geo_scenes
import geopandas
import numpy as np
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from geo_scenes import PLACES
from rio_cogeo.cogeo import cog_validate

from grasp_rl.config.errors import ConfigError
from grasp_rl.geo.footprints import neighbours
from grasp_rl.geo.grid import Grid
from grasp_rl.geo.layers import COLUMNS, VECTORS, has_style, table_of, together, write_layer
from grasp_rl.geo.merge import Feature
from grasp_rl.geo.paths import check_raster, check_vector
from grasp_rl.geo.rasters_out import NOT_SEEN, write_agreement, write_cog, write_mask
from grasp_rl.geo.region import in_pixels, of_bounds, part_of, read_polygons
from grasp_rl.geo.scan import FULL
from grasp_rl.geo.style import is_untouched, style
from grasp_rl.geo.windows import Window

COMMON = {
    "query": "Wo liegen Höfe?",
    "source": "s.tif",
    "gsd_m": 0.5,
    "prompt": "box",
    "model": "tiny",
    "date": "2026-01-02T03:04:05+00:00",
}


def _features(count: int = 2) -> list[Feature]:
    boxes = [shapely.box(10, 10, 30, 20), shapely.box(40, 5, 90, 45).difference(shapely.box(50, 15, 60, 25))]
    return [
        Feature(
            geometry=shapely.MultiPolygon([box]),
            score=0.75,
            confidence=None,
            thinking="a <thought>\nof two lines",
            windows=(Window(0, 0, 64, 64),),
        )
        for box in boxes[:count]
    ]


def _table(place: str = "32617", count: int = 2) -> tuple[Any, Grid]:
    grid = geo_scenes.grid((60, 100), place)
    return table_of(_features(count), grid, COMMON), grid


@pytest.mark.parametrize("kind", sorted(VECTORS))
@pytest.mark.parametrize("place", ["4326", "28992", "rotated"])
def test_layers_are_read_back(tmp_path: Path, kind: str, place: str) -> None:
    table, grid = _table(place)
    path = tmp_path / f"found{VECTORS[kind]}"
    said = write_layer(table, path, kind, ["Wo liegen Höfe?"])
    back = geopandas.read_parquet(path) if kind == "parquet" else pyogrio.read_dataframe(path)
    back = back.sort_values("area_m2", ignore_index=True)  # FlatGeobuf has an order of its own
    assert len(back) == 2
    assert back.crs == ("EPSG:4326" if kind == "geojson" else grid.projection)
    assert list(back["query"]) == ["Wo liegen Höfe?"] * 2
    names = [{"perimeter_m": "perim_m"}.get(name, name) if kind == "shp" else name for name in COLUMNS]
    assert [name for name in back.columns if name != "geometry"] == names
    assert back["area_m2"].to_numpy() == pytest.approx(table["area_m2"].to_numpy())
    assert back["score"].tolist() == [0.75, 0.75]
    assert back["confidence"].isna().all()
    assert back.geometry.is_valid.all()
    pixels = in_pixels(back, grid, "back")
    slack = 1e-2 if kind == "geojson" and place == "4326" else 1e-3
    for geometry, feature in zip(pixels, _features(), strict=True):
        assert geometry.symmetric_difference(feature.geometry).area < slack * feature.geometry.area
    assert (tmp_path / "found.qml").is_file()
    assert bool(said) == (kind == "shp")
    beside = {"shp": {".shp", ".shx", ".dbf", ".prj", ".cpg"}}.get(kind, {VECTORS[kind]})
    assert {file.suffix for file in tmp_path.iterdir()} == beside | {".qml"}


@pytest.mark.skipif(shutil.which("ogrinfo") is None, reason="GDAL's ogrinfo is not installed: apt-get install gdal-bin")
@pytest.mark.parametrize("kind", sorted(set(VECTORS) - {"parquet"}))  # Debian's GDAL is built without GeoParquet
@pytest.mark.parametrize("count", [0, 2])
def test_layers_open_in_the_reader_of_qgis(tmp_path: Path, kind: str, count: int) -> None:
    """OGR as Debian ships it, which is what its QGIS reads with."""
    table, _ = _table("28992", count=count)
    path = tmp_path / f"found{VECTORS[kind]}"
    write_layer(table, path, kind, ["q"])
    read = subprocess.run(["ogrinfo", "-ro", "-al", str(path)], capture_output=True, text=True, check=True)
    assert "ERROR" not in read.stderr
    assert f"Feature Count: {count}" in read.stdout
    assert read.stdout.count("OGRFeature(") == count
    if count or kind != "geojson":  # an empty GeoJSON has no place for its columns
        assert "score: Real" in read.stdout
    assert ("WGS 84" if kind == "geojson" else "Amersfoort / RD New") in read.stdout.replace("_", " ")


@pytest.mark.parametrize("kind", sorted(VECTORS))
def test_nothing_found_is_an_empty_layer_with_the_same_schema(tmp_path: Path, kind: str) -> None:
    full, grid = _table()
    empty, _ = _table(count=0)
    kinds = {}
    for name, table in (("full", full), ("empty", empty)):
        path = tmp_path / f"{name}{VECTORS[kind]}"
        write_layer(table, path, kind, ["q"])
        if kind == "parquet":
            back = geopandas.read_parquet(path)
            kinds[name] = [back[column].dtype.kind for column in back.columns], back.crs
            count = len(back)
        else:
            about = pyogrio.read_info(path)
            kinds[name] = [list(about["fields"]), about["crs"]] + (
                [] if kind == "geojson" else [list(about["dtypes"]), about["geometry_type"]]
            )
            count = max(0, about["features"])  # FlatGeobuf does not count what is not there
        assert count == len(table)
    if kind == "geojson":  # which has a schema only in its features
        assert json.loads((tmp_path / "empty.geojson").read_text())["features"] == []
    else:
        assert kinds["full"] == kinds["empty"]
    assert grid.crs is not None


def test_geojson_is_rfc_7946(tmp_path: Path) -> None:
    table, _ = _table("28992")
    write_layer(table, tmp_path / "found.geojson", "geojson", ["q"])
    document = json.loads((tmp_path / "found.geojson").read_text())
    assert "crs" not in document
    for feature in document["features"]:
        for polygon in shapely.get_parts([shapely.geometry.shape(feature["geometry"])]).tolist():
            assert polygon.exterior.is_ccw
            assert not any(ring.is_ccw for ring in polygon.interiors)
            west, south, east, north = polygon.bounds
            assert 4.87 < west < east < 4.89
            assert 52.36 < south < north < 52.38


def test_a_shapefile_says_what_it_cuts(tmp_path: Path) -> None:
    table, _ = _table()
    table["thinking"] = "ä" * 200
    said = write_layer(table, tmp_path / "found.shp", "shp", ["q"])
    assert said == ["a Shapefile calls perimeter_m perim_m", "2 texts cut to 254 bytes, as a Shapefile has it"]
    assert pyogrio.read_dataframe(tmp_path / "found.shp")["thinking"].tolist() == ["ä" * 127] * 2


def test_a_style_of_somebody_s_own_stays(tmp_path: Path) -> None:
    table, _ = _table()
    assert write_layer(table, tmp_path / "a.gpkg", "gpkg", ["q"]) == []
    assert write_layer(table, tmp_path / "a.geojson", "geojson", ["q"]) == []
    (tmp_path / "a.qml").write_text("mine")
    (said,) = write_layer(table, tmp_path / "a.gpkg", "gpkg", ["q"])
    assert "a.qml: is another style, and stays; remove it" in said
    assert (tmp_path / "a.qml").read_text() == "mine"


def test_a_style_that_nobody_changed_is_renewed_where_that_is_asked(tmp_path: Path) -> None:
    table, _ = _table()
    path, old = tmp_path / "a.gpkg", ['roofs "red" & <flat>', "it's\ntwo lines", "plain"]
    write_layer(table, path, "gpkg", old)
    before = (tmp_path / "a.qml").read_text()
    assert is_untouched(before)
    assert (has_style(path, old), has_style(path, ["q"])) == (True, False)
    (said,) = write_layer(table, path, "gpkg", ["q"])
    assert "is another style, and stays" in said
    assert write_layer(table, path, "gpkg", ["q"], renew=True) == []
    assert (tmp_path / "a.qml").read_text() == style(["q"])
    for changed in (before.replace("255", "254"), before.replace("3.22", "3.40"), "<qgis/>", "", "\udcff"):
        (tmp_path / "a.qml").write_bytes(changed.encode(errors="surrogateescape"))
        assert len(write_layer(table, path, "gpkg", ["q"], renew=True)) == 1
        assert (tmp_path / "a.qml").read_bytes() == changed.encode(errors="surrogateescape")


def test_without_a_crs_a_layer_is_in_pixels(tmp_path: Path) -> None:
    table = table_of(_features(), Grid(100, 60), COMMON | {"gsd_m": None})
    assert table["area_m2"].isna().all()
    write_layer(table, tmp_path / "found.gpkg", "gpkg", ["q"])
    back = pyogrio.read_dataframe(tmp_path / "found.gpkg")
    assert back.geometry[0].bounds == (10, 10, 30, 20)
    assert back.crs is None or back.crs.name.startswith("Undefined")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    table, _ = _table()
    path = tmp_path / "found.gpkg"
    write_layer(table, path, "gpkg", ["q"])
    before = path.read_bytes()
    with pytest.raises((KeyError, NotImplementedError)):
        write_layer(table.assign(bad=np.array([1j, 2j])), path, "gpkg", ["q"])
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["found.gpkg", "found.qml"]


def test_layers_of_scenes_in_several_crs() -> None:
    tables = [_table("32617")[0], _table("4326")[0]]
    joined, remark = together(tables)
    assert (len(joined), joined.crs) == (4, tables[0].crs)
    assert remark.startswith("1 of 2 layers brought into the CRS of the first, EPSG:32617")
    none = table_of([], Grid(5, 5), COMMON | {"gsd_m": None})
    with pytest.raises(ConfigError, match="some scenes have a CRS and some have none"):
        together([tables[0], none])


def test_a_style_is_what_qgis_reads() -> None:
    root = ElementTree.fromstring(style(['roofs "red" & <flat>', "lakes"]).partition("\n")[2])
    renderer = root.find("renderer-v2")
    assert renderer is not None
    assert (renderer.get("type"), renderer.get("attr")) == ("categorizedSymbol", "query")
    categories = renderer.findall("categories/category")
    assert [each.get("value") for each in categories] == ['roofs "red" & <flat>', "lakes"]
    symbols = {each.get("name"): each for each in renderer.findall("symbols/symbol")}
    assert {each.get("symbol") for each in categories} == set(symbols)
    colours = {prop.get("v") for each in symbols.values() for prop in each.iter("prop") if prop.get("k") == "color"}
    assert len(colours) == 2


@pytest.mark.parametrize("place", sorted(PLACES))
def test_a_mask_is_a_cog_on_the_scene_s_own_grid(tmp_path: Path, place: str) -> None:
    grid = geo_scenes.grid((700, 900), place)
    polygon = shapely.box(100, 200, 600, 650).difference(shapely.box(300, 300, 400, 400))
    write_mask(tmp_path / "mask.tif", grid, [polygon], [shapely.box(0, 0, 900, 690)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rio-cogeo about transforms
        assert cog_validate(tmp_path / "mask.tif")[0]
    with rasterio.open(tmp_path / "mask.tif") as file:
        assert file.crs == grid.crs
        assert file.transform.almost_equals(grid.transform, 1e-9)
        assert (file.nodata, file.overviews(1)) == (NOT_SEEN, [2])
        values = file.read(1)
    expected = np.zeros((700, 900), np.uint8)
    expected[200:650, 100:600] = 1
    expected[300:400, 300:400] = 0
    expected[690:] = NOT_SEEN
    assert np.array_equal(values, expected)
    assert [file.name for file in tmp_path.iterdir()] == ["mask.tif"]


def test_a_mask_without_a_crs_and_one_of_nothing(tmp_path: Path) -> None:
    write_mask(tmp_path / "mask.tif", Grid(30, 20), [], [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(tmp_path / "mask.tif") as file:
            assert (file.crs, file.shape) == (None, (20, 30))
            assert (file.read(1) == NOT_SEEN).all()


def test_agreement_is_the_mean_of_the_windows_that_show_a_pixel(tmp_path: Path) -> None:
    windows = [Window(0, 0, 60, 50), Window(40, 0, 60, 50)]
    shares = {windows[0]: FULL, windows[1]: FULL // 2}
    write_agreement(
        tmp_path / "a.tif", geo_scenes.grid((60, 100)), windows, lambda w: np.full((50, 60), shares[w], np.uint8)
    )
    with rasterio.open(tmp_path / "a.tif") as file:
        values = file.read(1)
    assert [values[10, x] for x in (10, 50, 80)] == [100, 75, 50]
    assert (values[50:] == NOT_SEEN).all()


def test_a_large_sparse_raster_takes_little_room(tmp_path: Path) -> None:
    def values(block: Window) -> Any:
        return np.ones((block.height, block.width), np.uint8) if block.left == block.top == 1024 else None

    write_cog(tmp_path / "large.tif", geo_scenes.grid((8000, 8000)), values, description="ones")
    assert (tmp_path / "large.tif").stat().st_size < 20_000
    with rasterio.open(tmp_path / "large.tif") as file:
        assert file.descriptions == ("ones",)
        assert (file.read(1, window=((1024, 1536), (1024, 1536))) == 1).all()


def test_parts_of_a_scene(tmp_path: Path) -> None:
    grid = geo_scenes.grid((400, 600), "32617")
    region = of_bounds((500010, 3999900, 500060.2, 3999990), None, grid)
    assert region.bounds == pytest.approx((20, 20, 120.4, 200))
    part = part_of(grid, region, "--bbox")
    assert part.bounds == pytest.approx((20, 20, 120.4, 200))
    assert part.area == pytest.approx(100.4 * 180)
    frame = geopandas.GeoSeries([grid.to_world(shapely.box(100, 100, 200, 200))], crs=grid.crs)
    lonlat = of_bounds(tuple(frame.to_crs("EPSG:4326").total_bounds), "EPSG:4326", grid)
    assert lonlat.intersection(shapely.box(100, 100, 200, 200)).area > 9999
    with pytest.raises(
        ConfigError, match=r"--bbox: does not overlap the scene, which reaches from \(500000, 3999800\) to"
    ):
        part_of(grid, of_bounds((0, 0, 1, 1), None, grid), "--bbox")
    with pytest.raises(ConfigError, match="--bbox-crs EPSG:1: no such CRS; must be like EPSG:4326"):
        of_bounds((0, 0, 1, 1), "EPSG:1", grid)
    with pytest.raises(ConfigError, match="the raster has no CRS; give --bbox in pixels"):
        of_bounds((0, 0, 1, 1), "EPSG:4326", Grid(9, 9))
    assert of_bounds((1, 2, 3, 4), None, Grid(9, 9)).bounds == (1, 2, 3, 4)


def test_scenes_that_overlap_in_different_crs() -> None:
    here = geo_scenes.grid((100, 100))
    x, y = here.to_world(shapely.Point(50, 50)).coords[0]
    lon, lat = pyproj.Transformer.from_crs("EPSG:32617", "EPSG:4326", always_xy=True).transform(x, y)
    degrees = Affine(1e-6, 0, lon, 0, -1e-6, lat)
    there = Grid(50, 50, degrees, rasterio.CRS.from_epsg(4326))
    east = Grid(50, 50, Affine(1e-6, 0, lon + 0.01, 0, -1e-6, lat), rasterio.CRS.from_epsg(4326))
    nowhere = Grid(9, 9, Affine(1, 0, 1e12, 0, -1, 1e12), rasterio.CRS.from_epsg(32617))
    grids = {"here": here, "there": there, "east": east, "nowhere": nowhere, "plain": Grid(100, 100)}
    assert neighbours(grids) == ([("here", "there")], [])
    assert neighbours({"plain": Grid(9, 9)}) == ([], [])
    small = {str(n): geo_scenes.grid((2, 2)) for n in range(2)}
    assert neighbours(small) == ([("0", "1")], [])


def test_layers_of_polygons(tmp_path: Path) -> None:
    table, _ = _table()
    path = tmp_path / "areas.gpkg"
    bow = geopandas.GeoDataFrame(
        {"n": [1, 2]}, geometry=[shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)]), None], crs=table.crs
    )
    pyogrio.write_dataframe(bow, path, layer="bow")
    assert read_polygons(str(path)).geometry.is_valid.all()
    assert len(read_polygons(str(path))) == 1
    pyogrio.write_dataframe(table, path, layer="more", append=True)
    with pytest.raises(
        ConfigError,
        match=r"--where .*areas\.gpkg: its layers with geometries are bow, more; name one: .*areas\.gpkg:LAYER",
    ):
        read_polygons(str(path), option="--where")
    assert len(read_polygons(f"{path}:more")) == 2
    with pytest.raises(ConfigError, match="has no layer less; it has bow, more"):
        read_polygons(f"{path}:less")
    points = geopandas.GeoDataFrame(geometry=[shapely.Point(0, 0)], crs=table.crs)
    pyogrio.write_dataframe(points, tmp_path / "points.gpkg")
    with pytest.raises(ConfigError, match=r"points\.gpkg: holds Point; must be polygons"):
        read_polygons(str(tmp_path / "points.gpkg"))
    (tmp_path / "broken.gpkg").write_bytes(path.read_bytes()[:600])
    with pytest.raises(ConfigError, match=r"broken\.gpkg: cannot be read"):
        read_polygons(str(tmp_path / "broken.gpkg"))


@pytest.mark.parametrize(
    "name",
    [
        "/vsicurl/https://example.org/a.tif",
        "/vsizip/a.zip/b.tif",
        "https://example.org/a.tif",
        "s3://b/a.tif",
        "//host/share/a.tif",
        "\\\\host\\a.tif",
        "/VSIMEM/x",
        "GTIFF_DIR:1:/a.tif",
        "NETCDF:a.nc:t",
    ],
)
def test_addresses_are_refused(name: str) -> None:
    for check in (check_raster, check_vector):
        with pytest.raises(ConfigError, match=r"not a plain path; give the file itself, or, .*--trust-paths"):
            check(name, trust=False)
        check(name, trust=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.vrt", b"<VRTDataset/>"),
        ("a.tif", b"  <VRTDataset/>"),
        ("a.kmz", b"PK\3\4"),
        ("a.png", b"PK\3\4"),
        ("a.kml", b"x"),
    ],
)
def test_files_that_name_others_are_refused_whatever_they_are_called(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"may name other files or addresses .*gdal_translate.*--trust-paths"):
        check_raster(str(tmp_path / name), trust=False)
    with pytest.raises(ConfigError, match="is no GeoPackage, GeoJSON"):
        check_vector(str(tmp_path / name), trust=False)
