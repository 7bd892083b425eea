"""The jsonl dataset: every form of a row, exact masks, and one clear error for whatever cannot be used."""

from __future__ import annotations

import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from pycocotools import mask as coco

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.annotations import AnnotationError, problems_of
from grasp_rl.data.base import Split
from grasp_rl.data.image_io import write_image
from grasp_rl.data.rasterize import ShapeError, decode_rle, parts, ring_mask
from grasp_rl.data.readers.jsonl import JsonlSource
from grasp_rl.types import SpatialPrompt

ROOT = Path(__file__).parents[1]
AERIAL = ROOT / "tests/data/aerial"
SIZE = (30, 40)
SQUARE = [[3, 3], [6, 3], [6, 6], [3, 6]]


def compressed(mask: np.ndarray) -> dict[str, Any]:
    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    flat = np.concatenate([[0], mask.T.ravel(), [2]])  # runs begin with one of zeros, perhaps of length 0
    edges = np.flatnonzero(np.diff(flat))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def row(number: int = 1, **changes: Any) -> dict[str, Any]:
    """A good row; a target given in ``changes`` takes the place of its polygons."""
    base = {"id": f"a-{number}", "image": "a.png", "query": "where?", "split": "train", "polygons": [SQUARE]}
    if {"mask", "rle", "boxes"} & changes.keys():
        del base["polygons"]
    return base | changes


def write(folder: Path, *rows: Any) -> Path:
    """A dataset in ``folder`` with one image and these rows; text is written as it is."""
    image = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    write_image(folder / "a.png", image)
    lines = [item if isinstance(item, str) else json.dumps(item) for item in rows]
    (folder / "annotations.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder


def train(folder: Path, **options: Any) -> Split:
    return JsonlSource(str(folder), **options).split("train")


def test_every_form_gives_the_same_sample(tmp_path: Path) -> None:
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[3:6, 3:6] = True
    write_image(tmp_path / "m.png", mask)
    forms = [
        {"polygons": [SQUARE]},
        {"mask": "m.png"},
        {"rle": compressed(mask)},
        {"rle": uncompressed(mask)},
        {"polygons": [SQUARE[::-1]], "mask": None, "reasoning": None},
    ]
    dataset = train(write(tmp_path, *(row(number, **form) for number, form in enumerate(forms))))
    assert len(dataset) == len(forms)
    assert (dataset.name, dataset.split) == ("jsonl", "train")
    for index in range(len(forms)):
        sample = dataset[index]
        assert sample.sample_id == f"a-{index}"
        assert (sample.query, sample.dataset, sample.split, sample.reasoning) == ("where?", "jsonl", "train", None)
        assert sample.image.shape == (*SIZE, 3)
        assert sample.target_mask is not None
        np.testing.assert_array_equal(sample.target_mask, mask)
        assert sample.weak_labels == dataset[0].weak_labels
        assert sample.weak_labels is not None
        assert [weak_label.box for weak_label in sample.weak_labels] == [(3, 3, 6, 6)]
        assert sample.weak_labels[0].positive_points[0] == (4.5, 4.5)


def test_no_target(tmp_path: Path) -> None:
    empty = np.zeros(SIZE, dtype=np.bool_)
    write_image(tmp_path / "m.png", empty)
    forms: list[dict[str, Any]] = [{"polygons": []}, {"mask": "m.png"}, {"rle": uncompressed(empty)}]
    dataset = train(write(tmp_path, *(row(number, **form) for number, form in enumerate(forms))))
    for index in range(len(forms)):
        sample = dataset[index]
        assert sample.weak_labels == ()
        assert sample.target_mask is not None
        assert not sample.target_mask.any()


def test_boxes_are_cues_without_points_and_there_is_no_mask(tmp_path: Path) -> None:
    boxes = [[20, 5, 50, 10], [-3, 2, 8.5, 9]]
    folder = write(tmp_path, row(1, boxes=boxes), row(2, boxes=[]), row(3, boxes=[[50, 1, 60, 9]]))
    dataset = train(folder)
    assert dataset[0].target_mask is None
    assert dataset[0].weak_labels == (SpatialPrompt(box=(0, 2, 8.5, 9)), SpatialPrompt(box=(20, 5, 40, 10)))
    assert (dataset[1].target_mask, dataset[1].weak_labels) == (None, ())
    with pytest.raises(AnnotationError, match=r"annotations.jsonl:3: boxes: .*outside the image of 40 x 30"):
        dataset[2]


def test_a_ring_is_an_instance_even_where_rings_touch(tmp_path: Path) -> None:
    beside = [[x + 3, y] for x, y in SQUARE]
    dataset = train(write(tmp_path, row(polygons=[beside, SQUARE])))
    weak_labels = dataset[0].weak_labels
    assert weak_labels is not None
    assert [weak_label.box for weak_label in weak_labels] == [(3, 3, 6, 6), (6, 3, 9, 6)]
    mask = dataset[0].target_mask
    assert mask is not None
    assert mask.sum() == 18


def test_rings_by_hand() -> None:
    assert ring_mask(SQUARE, (10, 10)).nonzero()[0].tolist() == [3, 3, 3, 4, 4, 4, 5, 5, 5]
    assert ring_mask([[0, 0], [10, 0], [10, 8], [0, 8]], (8, 10)).all()
    clipped = ring_mask([[-50, -50], [2, -50], [2, 900], [-50, 900]], (8, 10))
    assert clipped[:, :2].all()
    assert not clipped[:, 2:].any()
    for outside in ([[20, 1], [30, 1], [30, 9]], [[1.6, 1.6], [1.9, 1.6], [1.9, 1.9]], [[1, 1], [5, 1], [9, 1]]):
        with pytest.raises(ShapeError, match="holds no pixel"):
            ring_mask(outside, (10, 10))


def test_rings_are_what_shapely_makes_valid() -> None:
    """Random rings, most of which cross themselves and leave the image: pixel for pixel the same."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:30, :40] + 0.5
    crossing = 0
    for _ in range(150):
        ring = rng.uniform(-10, 50, (int(rng.integers(3, 9)), 2))
        polygon = shapely.Polygon(ring)
        crossing += not polygon.is_valid
        expected = shapely.contains_xy(shapely.make_valid(polygon), columns, rows)
        if expected.any():
            np.testing.assert_array_equal(ring_mask(ring.tolist(), SIZE), expected)
    assert crossing > 50


def test_run_lengths_round_trip() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        height, width = (int(n) for n in rng.integers(1, 50, 2))
        mask = rng.random((height, width)) < rng.random()
        for encoded in (compressed(mask), uncompressed(mask)):
            np.testing.assert_array_equal(decode_rle(json.loads(json.dumps(encoded)), (height, width)), mask)


@pytest.mark.parametrize(
    ("rle", "said"),
    [
        ({"size": [4, 6], "counts": [24]}, r"size \[4, 6\] for an image of \[6, 4\]"),
        ({"size": [6, 4], "counts": [23]}, "counts of 23 pixels in all for 24"),
        ({"size": [6, 4], "counts": [10**18, 10**18]}, "encode anew"),
        ({"size": [6, 4], "counts": []}, "counts of 0 pixels"),
        ({"size": [6, 4], "counts": ""}, "counts of 0 pixels"),
        ({"size": [6, 4], "counts": "\u00ff\u00ff"}, "no run lengths"),
        ({"size": [6, 4], "counts": "hello world"}, "encode anew"),
        ({"size": [6, 4], "counts": "P"}, "break off"),
        ({"size": [6, 4], "counts": "n0J"}, "counts of 24 pixels in all for 24, or a negative one"),
        ({"size": [6, 4], "counts": "o" * 100_000}, "no run lengths"),
    ],
)
def test_run_lengths_that_are_none(rle: dict[str, Any], said: str) -> None:
    with pytest.raises(ShapeError, match=said):
        decode_rle(rle, (6, 4))


def test_random_counts_never_crash() -> None:
    rng = np.random.default_rng(2)
    for _ in range(500):
        text = "".join(chr(48 + int(n)) for n in rng.integers(0, 64, int(rng.integers(1, 20))))
        try:
            assert decode_rle({"size": [8, 9], "counts": text}, (8, 9)).shape == (8, 9)
        except ShapeError:
            continue


def test_parts() -> None:
    mask = np.zeros((20, 20), dtype=np.bool_)
    mask[1:4, 1:4] = mask[4, 4] = True  # 10 pixels, joined over a corner
    mask[10:15, 10:15] = True
    mask[18, 1:4] = True  # too small to count
    assert [int(part.sum()) for part in parts(mask)] == [25, 10]
    mask[:] = False
    assert list(parts(mask)) == []
    mask[2, 2] = mask[9, 8:10] = True  # nothing larger: the largest
    assert [int(part.sum()) for part in parts(mask)] == [2]
    many = np.zeros((100, 100), dtype=np.bool_)
    many.reshape(20, 5, 20, 5)[:, 1:3, :, 1:3] = True
    assert len(list(parts(many))) == 64


def test_many_instances_are_quick(tmp_path: Path) -> None:
    """Every car of a parking lot in a photograph of a megapixel: the cost is the things', not the image's."""
    write_image(tmp_path / "big.png", np.zeros((1000, 1000, 3), dtype=np.uint8))
    cars = [[[x, y], [x + 20, y], [x + 20, y + 9], [x, y + 9]] for x in range(0, 900, 60) for y in range(0, 900, 100)]
    dataset = train(write(tmp_path, row(image="big.png", polygons=cars)))
    began = time.process_time()
    weak_labels = dataset[0].weak_labels
    assert weak_labels is not None
    assert len(weak_labels) == 135
    assert time.process_time() - began < 3


def test_splits(tmp_path: Path) -> None:
    folder = write(tmp_path, row(1), row(2, split="test"), row(3))
    source = JsonlSource(str(folder), name="mine")
    assert [len(source.split(name)) for name in ("train", "test")] == [2, 1]
    assert source.split("train").name == "mine"
    with pytest.raises(ConfigError, match=r"'val'.*train \(2 rows\), test \(1 rows\).*data.val_from=SPLIT"):
        source.split("val")
    with pytest.raises(ConfigError, match=r"'test_ood'.*annotations.jsonl has train"):
        source.split("test_ood")
    borrowed = JsonlSource(str(folder), val_from="test").split("val")
    assert (len(borrowed), borrowed.split, borrowed[0].sample_id) == (1, "test", "a-2")
    with pytest.raises(ConfigError, match=r"data.val_from='tset': must be one of"):
        JsonlSource(str(folder), val_from="tset")
    with pytest.raises(IndexError, match="has 2 samples"):
        source.split("train")[2]
    with pytest.raises(IndexError):
        source.split("train")[-1]


def test_root_is_a_folder_or_a_file(tmp_path: Path) -> None:
    folder = write(tmp_path, row())
    (folder / "annotations.jsonl").rename(folder / "other.jsonl")
    assert len(train(folder, annotations="other.jsonl")) == 1
    assert train(folder / "other.jsonl")[0].sample_id == "a-1"
    with pytest.raises(ConfigError, match=r"annotations.jsonl: no such file; name a folder that holds"):
        train(folder)
    (folder / "annotations.jsonl").write_text("\n \n")
    with pytest.raises(ConfigError, match="no rows"):
        train(folder)


@pytest.mark.parametrize(("key", "value"), [("on_bad", "ignore"), ("max_pixels", 0)])
def test_options_out_of_range(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{key}={value!r}"):
        JsonlSource(str(write(tmp_path, row())), **{key: value})


def test_same_image_asks_other_questions_about_it(tmp_path: Path) -> None:
    folder = write(tmp_path, row(1), row(2), row(3, image="b.png"), row(4, image="./a.png"), row(5, split="val"))
    write_image(folder / "b.png", np.zeros((30, 40, 3), dtype=np.uint8))
    dataset = train(folder)

    def ids(index: int, count: int) -> list[str]:
        return [sample.sample_id for sample in dataset.same_image(index, count)]

    assert ids(0, 1) == ["a-1"]
    assert ids(0, 2) == ["a-1", "a-2"]
    assert ids(1, 9) == ["a-2", "a-4", "a-1"]
    assert ids(2, 9) == ["a-3"]
    first, second = dataset.same_image(0, 2)
    assert first.image is second.image


BAD_LINES: list[tuple[Any, str]] = [
    ("{", "not JSON"),
    ("[1]", "found a list"),
    ('{"id": "a", "id": "b"}', "the key 'id' occurs twice"),
    (row(qeury="x"), "qeury: no such key; did you mean query?"),
    ({"id": "x"}, "image, query, split: missing"),
    (row(query="  "), "query='  ': must be text"),
    (row(image="/etc/passwd"), "image='/etc/passwd': must be relative"),
    (row(split="my split"), "split='my split': must be a word"),
    (row(mask="m.png", boxes=[]), "found mask and boxes of mask, rle, polygons, boxes; give exactly one"),
    (row(polygons=None), "found none of mask"),
    (row(polygons=[[[1, 2], [3, 4]]]), "ring 0 must be a list of three or more points"),
    (row(polygons=[[1, 2, 3, 4, 5, 6]]), "ring 0"),
    ('{"id":"a","image":"a.png","query":"q","split":"train","polygons":[[[0,0],[9,NaN],[1,2]]]}', "finite"),
    (row(boxes=[[5, 5, 5, 9]]), "x0 < x1"),
    (row(boxes=[[40, 50, 12, 9]]), "of x, y, width and height write x, y, x + width, y + height"),
    (row(rle={"size": [30, 40]}), "must be {"),
    (row(rle={"size": [30, 40], "counts": [1.5]}), "whole numbers"),
    (row(reasoning=3), "reasoning=3"),
]


@pytest.mark.parametrize(("line", "said"), BAD_LINES, ids=[said[:24] for _, said in BAD_LINES])
def test_a_bad_line_is_named(tmp_path: Path, line: Any, said: str) -> None:
    with pytest.raises(AnnotationError, match=rf"annotations\.jsonl:2: .*{re.escape(said)}"):
        train(write(tmp_path, row(7), line))


def test_what_a_line_quotes_is_not_obeyed_by_a_terminal(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"\\x1b\[2J\\u202ekey: no such key") as refused:
        train(write(tmp_path, row() | {"\x1b[2J\u202ekey": 1}))
    assert str(refused.value).isascii()
    assert "\x1b" not in str(refused.value)
    with pytest.raises(AnnotationError, match=r"\\x9b.png: no such file"):
        train(write(tmp_path, row(image="\x9b.png")))[0]


def test_ids_are_unique(tmp_path: Path) -> None:
    with pytest.raises(
        AnnotationError, match=r":3: id='a-1': also the id of line 1.*and 1 more: grasp-rl data validate"
    ):
        train(write(tmp_path, row(1), row(2), row(1, split="val"), "x"))


def test_hostile_lines_are_refused_quickly(tmp_path: Path) -> None:
    for line in ("[" * 100_000, '{"id": ' + "9" * 5000 + "}", '{"id": 1e999}', '"\\ud800"'):
        began = time.process_time()
        with pytest.raises(AnnotationError, match=r"annotations.jsonl:1: "):
            train(write(tmp_path, line))
        assert time.process_time() - began < 2
    (tmp_path / "annotations.jsonl").write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(AnnotationError, match="not UTF-8 at byte 8"):
        train(tmp_path)


def test_what_only_the_image_shows_is_found_when_it_is_read(tmp_path: Path) -> None:
    write_image(tmp_path / "m.png", np.zeros((4, 5), dtype=np.bool_))
    cases = {
        1: (row(1, image="gone.png"), "image: .*gone.png: no such file"),
        2: (row(2, mask="m.png"), "mask: .*m.png: a mask of 5 x 4 pixels"),
        3: (row(3, mask="gone.png"), "mask: .*gone.png: no such file"),
        4: (row(4, rle={"size": [4, 5], "counts": [20]}), r"rle: size \[4, 5\] for an image of \[30, 40\]"),
        5: (row(5, polygons=[SQUARE, [[500, 500], [600, 500], [600, 600]]]), "polygons: a ring .* holds no pixel"),
    }
    dataset = train(write(tmp_path, *(case for case, _ in cases.values())))
    for line, (_, said) in cases.items():
        with pytest.raises(AnnotationError, match=rf"annotations.jsonl:{line}: {said}"):
            dataset[line - 1]
    with pytest.raises(AnnotationError, match="1,200, more than 1,000; cut it"):
        train(tmp_path, max_pixels=1000)[1]


def test_skip_lets_the_next_row_stand_in(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, row(1), row(2, image="gone.png"), row(3), "{")
    caplog.set_level(logging.WARNING)
    dataset = train(tmp_path, on_bad="skip")
    assert len(dataset) == 3
    assert "annotations.jsonl:4: not JSON" in caplog.text
    for _ in range(2):
        assert [dataset[i].sample_id for i in (0, 1, 2)] == ["a-1", "a-3", "a-3"]
    assert caplog.text.count("gone.png: no such file") == 1
    assert [s.sample_id for s in dataset.same_image(1, 5)] == ["a-3", "a-1"]


def test_skip_has_an_end(tmp_path: Path) -> None:
    write(tmp_path, *(row(n, image="gone.png" if n in (4, 5) else "a.png") for n in range(9)))
    dataset = train(tmp_path, on_bad="skip")
    with pytest.raises(AnnotationError, match=r":6: .*one more than the 1 of 9 rows"):
        dataset[4]
    with pytest.raises(AnnotationError, match=r":2: .*one more than the 1 of 2 rows"):
        train(write(tmp_path, "{", "}"), on_bad="skip")
    with pytest.raises(ConfigError, match="no record of the split train can be used"):
        train(write(tmp_path, row(image="gone.png")), on_bad="skip")[0]


def test_the_small_real_dataset() -> None:
    source = JsonlSource(str(AERIAL))
    assert {name: len(rows) for name, rows in source.rows.items()} == {"train": 4, "val": 2, "test": 3}
    for name in source.rows:
        split = source.split(name)
        samples = [split[index] for index in range(len(split))]
        assert any(not sample.weak_labels for sample in samples)
        for sample in samples:
            assert sample.target_mask is not None
            assert sample.target_mask.any() == bool(sample.weak_labels)
            assert split.plot(sample).shape[1] == 336
    assert max(len(source.split("train")[i].weak_labels or ()) for i in range(4)) == 5
    others = JsonlSource(str(AERIAL / "other_forms.jsonl")).split("train")
    by_id = {row.sample_id: source.split(row.split)[rows.index(row)] for rows in source.rows.values() for row in rows}
    for index, kind in enumerate(["mask", "rle", "rle"]):
        assert others.records[index].kind == kind
        again = others[index]
        before, after = by_id[again.sample_id].target_mask, again.target_mask
        assert before is not None
        assert after is not None
        np.testing.assert_array_equal(before, after)
    assert others[3].target_mask is None
    assert others[3].reasoning


def test_the_documented_rows_are_valid(tmp_path: Path) -> None:
    blocks = re.findall(r"```json\n(.*?)```", (ROOT / "docs/datasets.md").read_text(), flags=re.DOTALL)
    rows = [json.loads(line) for block in blocks for line in block.splitlines()]
    assert len(rows) == 5
    assert [problems_of(item) for item in rows] == [[]] * len(rows)
    assert decode_rle(rows[3]["rle"], (4, 6)).sum() == 4
