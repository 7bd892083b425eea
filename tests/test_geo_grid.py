"""Where pixels lie on the earth: polygons and back, areas, resolutions, in every kind of CRS and transform."""

from __future__ import annotations

import itertools
import math

import geo_scenes
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine

from grasp_rl.config.errors import ConfigError
from grasp_rl.geo.grid import Grid, areas_and_perimeters, placed
from grasp_rl.geo.polygons import components, mask_of, polygons_of
from grasp_rl.geo.windows import Window, starts, whole, windows_of
from grasp_rl.types import BoolMask

PLACES = sorted(geo_scenes.PLACES)


def _random_mask(seed: int) -> BoolMask:
    """Blots with holes, from noise at some scale; corners that touch, and single pixels, among them."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(12, 70, 2)
    scale = int(rng.integers(1, 9))
    noise = rng.random((-(-height // scale), -(-width // scale)))
    mask = np.kron(noise, np.ones((scale, scale)))[:height, :width] < rng.uniform(0.2, 0.9)
    mask[rng.integers(0, height, 6), rng.integers(0, width, 6)] ^= True
    return np.asarray(mask, dtype=np.bool_)


def test_three_hundred_masks_there_and_back() -> None:
    worst, holes = 1.0, 0
    for seed in range(300):
        mask = _random_mask(seed)
        grid = geo_scenes.grid((mask.shape[0], mask.shape[1]), PLACES[seed % len(PLACES)])
        polygons = polygons_of(mask)
        holes += sum(len(part.interiors) for part in polygons.geoms)
        assert polygons.is_valid
        assert polygons.area == mask.sum()
        world = grid.to_world(polygons)
        assert world.is_valid, shapely.is_valid_reason(world)
        back = mask_of([grid.to_pixels(world)], grid.size)
        worst = min(worst, (back & mask).sum() / max(1, (back | mask).sum()))
    assert worst >= 0.999
    assert holes > 1000


def test_a_window_s_polygons_are_in_the_frame_of_the_scene() -> None:
    mask = np.zeros((4, 5), dtype=np.bool_)
    mask[1:3, 2:5] = True
    assert polygons_of(mask, 100, 200).bounds == (102, 201, 105, 203)
    assert polygons_of(np.zeros((4, 5), dtype=np.bool_)).is_empty
    assert not mask_of([shapely.MultiPolygon()], (4, 5)).any()


def test_components_touch_at_corners() -> None:
    mask = np.eye(4, dtype=np.bool_)
    mask[0, 3] = True
    assert [part.sum() for part in components(mask)] == [4, 1]


@pytest.mark.parametrize("place", PLACES)
def test_area_and_perimeter_are_geodesic(place: str) -> None:
    grid = geo_scenes.grid((400, 600), place)
    polygon = shapely.box(50, 40, 450, 340).difference(shapely.box(100, 100, 200, 200))
    (area,), (perimeter,) = areas_and_perimeters([grid.to_world(polygon)], grid.projection)
    # pyproj's own, of rings with a vertex every quarter of a pixel
    transformer = pyproj.Transformer.from_crs(grid.projection, "EPSG:4326", always_xy=True)
    expected_area = expected_perimeter = 0.0
    for sign, ring in ((1, polygon.exterior), (-1, polygon.interiors[0])):
        fine = np.array(shapely.segmentize(ring, 0.25).coords)
        x, y = placed(fine, grid.transform).T
        ring_area, length = pyproj.Geod(ellps="WGS84").polygon_area_perimeter(*transformer.transform(x, y))
        expected_area += sign * abs(ring_area)
        expected_perimeter += length
    assert area == pytest.approx(expected_area, rel=1e-3)
    assert perimeter == pytest.approx(expected_perimeter, rel=1e-3)


@pytest.mark.parametrize(("place", "edge"), [("3395", 300_000.0), ("32617", 200_000.0)])
def test_the_area_of_what_is_large_is_that_of_its_bent_edges(place: str, edge: float) -> None:
    grid = geo_scenes.grid((10, 10), place)
    x, y = grid.transform.c, grid.transform.f
    big = shapely.box(x, y, x + edge, y + edge)
    (area,), _ = areas_and_perimeters([big], grid.projection)
    fine = np.array(shapely.segmentize(big.exterior, 50).coords)
    transformer = pyproj.Transformer.from_crs(grid.projection, "EPSG:4326", always_xy=True)
    expected = pyproj.Geod(ellps="WGS84").polygon_area_perimeter(*transformer.transform(fine[:, 0], fine[:, 1]))[0]
    assert area == pytest.approx(abs(expected), rel=1e-3)


def test_mercator_is_not_taken_at_its_word() -> None:
    grid = geo_scenes.grid((100, 100), "3395")
    (area,), _ = areas_and_perimeters([grid.to_world(shapely.box(0, 0, 100, 100))], grid.projection)
    assert area < 0.75 * 150 * 150  # at 37 degrees north


def test_the_ground_size_of_a_pixel() -> None:
    assert geo_scenes.grid((100, 100), "32617").ground_size == pytest.approx((0.5, 0.5), rel=2e-3)
    assert geo_scenes.grid((100, 100), "rotated").ground_size == pytest.approx((0.5, 0.5), rel=2e-3)
    east, north = geo_scenes.grid((100, 100), "4326").ground_size or (0.0, 0.0)
    assert east == pytest.approx(1e-5 * 111_320 * math.cos(math.radians(60.2)), rel=5e-3)
    assert north == pytest.approx(1.114, rel=5e-3)
    assert geo_scenes.grid((100, 100), "31467").ground_size == pytest.approx((1.0, 1.0), rel=2e-3)
    assert geo_scenes.grid((100, 100), "2263").ground_size == pytest.approx((0.3048, 0.3048), rel=2e-3)
    assert Grid(10, 10).ground_size is None


def test_another_resolution_covers_the_same_ground() -> None:
    grid = geo_scenes.grid((400, 600), "rotated")
    coarse = grid.resampled(2.0)
    assert coarse.size == (100, 150)
    corners = [shapely.Point(0, 0), shapely.Point(600, 400)]
    assert shapely.equals_exact(
        grid.to_world(corners), coarse.to_world([corners[0], shapely.Point(150, 100)]), 1e-6
    ).all()
    with pytest.raises(ConfigError, match=r"--gsd 1e\+06: makes .* pixels of a raster whose pixels are 0\.5 x 0\.5 m"):
        grid.resampled(1e6)
    with pytest.raises(ConfigError, match="no CRS, so its metres are not known"):
        Grid(10, 10).resampled(1)


def test_what_is_reversed_to_have_north_up() -> None:
    def of(code: int, a: float, e: float, c: float, f: float) -> tuple[bool, bool]:
        return Grid(100, 100, Affine(a, 0, c, 0, e, f), rasterio.CRS.from_epsg(code)).reversals

    turned = {"upwards": (False, True), "leftwards": (True, False), "half": (True, True)}
    for place in PLACES:
        assert geo_scenes.grid((100, 100), place).reversals == turned.get(place, (False, False))
    assert of(2053, -1, 1, 50000, 3000000) == (False, False)  # axes to the west and the south: north is up
    assert of(2053, 1, 1, 50000, 3000000) == (True, False)
    for x, y in ((1e6, 1e6), (-1e6, 1e6), (1e6, -1e6), (-1e6, -1e6)):  # around the north pole
        assert of(3995, 10, -10, x, y) == (False, False)
        assert sum(of(3995, 10, 10, x, y)) == 1
    assert Grid(9, 9, Affine(1, 0, 0, 0, 1, 0)).reversals == (False, False)


def test_pixels_that_are_square_on_the_ground() -> None:
    grid = geo_scenes.grid((400, 600), "4326")
    square = grid.squared()
    width, height = square.ground_size or (0.0, 0.0)
    assert (square.width, square.height) == (600, 803)  # at 60 degrees north a degree of longitude is half as long
    assert width == pytest.approx(height, rel=1e-2)
    assert square.gsd == pytest.approx(min(grid.ground_size or ()), rel=1e-2)
    corner = [shapely.Point(600, 400), shapely.Point(600, 803)]
    assert grid.to_world(corner[0]).equals_exact(square.to_world(corner[1]), 1e-9)
    assert geo_scenes.grid((400, 600)).squared() == geo_scenes.grid((400, 600))
    assert Grid(4, 6).squared() == Grid(4, 6)
    assert grid.to_look_at(2.0) == grid.resampled(2.0)
    assert grid.to_look_at(None) == square


def test_a_place_beyond_its_crs() -> None:
    far = Grid(10, 10, Affine(1, 0, 1e12, 0, -1, 1e12), rasterio.CRS.from_epsg(32617))
    with pytest.raises(ConfigError, match="no longitude and latitude in EPSG:32617: is that its CRS"):
        _ = far.ground_size
    local = rasterio.CRS.from_wkt('LOCAL_CS["site grid",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]')
    with pytest.raises(ConfigError, match=r"site grid: has no known place on the earth.*gdal_edit"):
        _ = Grid(10, 10, Affine(1, 0, 5, 0, -1, 5), local).ground_size


@pytest.mark.parametrize(
    ("extent", "side", "overlap"), [(100, 100, 0.2), (101, 100, 0.2), (1000, 112, 0.2), (57, 112, 0.5), (640, 64, 0.0)]
)
def test_windows_cover_all_and_overlap_as_much_as_was_asked(extent: int, side: int, overlap: float) -> None:
    firsts = starts(extent, side, overlap)
    assert firsts[0] == 0
    assert firsts[-1] + min(side, extent) == extent
    assert all(0 < b - a <= math.floor(side * (1 - overlap)) for a, b in itertools.pairwise(firsts))


def test_windows_of_a_region() -> None:
    grid = Grid(1000, 1000)
    every = list(windows_of(whole(grid), 100, 0.0))
    assert len(every) == 100
    assert list(windows_of(whole(grid), 100, 0.0, shapely.box(110, 110, 190, 120))) == [Window(100, 100, 100, 100)]
    edges = shapely.box(99.7, 200.3, 200.4, 299.8)  # windows' own edges, to rounding
    assert list(windows_of(whole(grid), 100, 0.0, edges)) == [Window(100, 200, 100, 100)]
    far = Window(0, 0, 4_000_000, 4_000_000)
    assert len(list(windows_of(far, 16, 0.0, shapely.box(32, 32, 64, 64)))) == 4
    with pytest.raises(ConfigError, match=r"250000 x 250000 windows of 16 pixels: more than 4,000,000; .*--gsd"):
        list(windows_of(Window(0, 0, 4_000_000, 4_000_000), 16, 0.0))
