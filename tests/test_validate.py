"""`grasp-rl data`: all seeded damage is found, on its own line and quickly; nothing good is accused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from grasp_rl.cli import data as data_cli
from grasp_rl.data.image_io import MAX_PIXELS, write_image
from grasp_rl.data.readers.jsonl import JsonlSource
from grasp_rl.data.validate import validate

AERIAL = Path(__file__).parent / "data/aerial"
VICTIM = 4
"""The line that is damaged: a question of its own image and mask."""

Row = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight good rows; the fourth has an image and a mask that no other row has."""
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    mask = np.zeros((60, 80), dtype=np.bool_)
    mask[10:30, 20:50] = True
    for name in ("a.jpg", "own.jpg", "own.png"):
        write_image(tmp_path / name, image if name == "a.jpg" else image[::-1])
    for step, name in enumerate(("val", "test", "test_ood"), 1):
        write_image(tmp_path / f"{name}.jpg", image + np.uint8(step))
    write_image(tmp_path / "m.png", mask)
    ring = [[20, 10], [50, 10], [50, 30], [20, 30]]
    splits = ["train", "train", "train", "train", "val", "val", "test", "test_ood"]
    rows: list[Row] = [
        {
            "id": f"q{n}",
            "image": "a.jpg" if split == "train" else f"{split}.jpg",
            "query": "where?",
            "split": split,
            "polygons": [ring],
        }
        for n, split in enumerate(splits, 1)
    ]
    rows[1] |= {"polygons": []}
    rows[2] = {k: v for k, v in rows[2].items() if k != "polygons"} | {"boxes": [[1, 2, 3, 4]]}
    rows[3] = {k: v for k, v in rows[3].items() if k != "polygons"} | {"image": "own.jpg", "mask": "m.png"}
    write(tmp_path, rows)
    return tmp_path


def write(folder: Path, rows: list[Any]) -> None:
    lines = [item if isinstance(item, bytes) else json.dumps(item).encode() for item in rows]
    (folder / "annotations.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))


def read(folder: Path) -> list[Row]:
    return [json.loads(line) for line in (folder / "annotations.jsonl").read_text().splitlines()]


def put(**changes: Any) -> Callable[[Path], None]:
    """Damage by other values in the victim's row; ``...`` takes a key out."""

    def damage(folder: Path) -> None:
        rows = read(folder)
        changed = rows[VICTIM - 1] | changes
        rows[VICTIM - 1] = {key: value for key, value in changed.items() if value is not ...}
        write(folder, rows)

    return damage


def target(**changes: Any) -> Callable[[Path], None]:
    return put(mask=..., **changes)


def line(data: bytes) -> Callable[[Path], None]:
    """Damage by another line in the victim's place."""

    def damage(folder: Path) -> None:
        rows: list[Any] = read(folder)
        rows[VICTIM - 1] = data
        write(folder, rows)

    return damage


def cut(name: str, share: float) -> Callable[[Path], None]:
    """Damage by a file that ends early."""

    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return damage


def replaced(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: [None, (folder / name).write_bytes(data)][0]


def removed(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def resized(name: str, size: tuple[int, int]) -> Callable[[Path], None]:
    return lambda folder: Pillow.new("L", size, 1).save(folder / name)


def to_png(then: Callable[[Path], None]) -> Callable[[Path], None]:
    """The victim's image as PNG, damaged by ``then``."""

    def damage(folder: Path) -> None:
        put(image="own.png")(folder)
        then(folder)

    return damage


def flipped(name: str, place: int) -> Callable[[Path], None]:
    """Damage by one byte inverted."""

    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[place] ^= 0xFF
        (folder / name).write_bytes(bytes(data))

    return damage


BOMB = b"P6 60000 60000 255\n"
RING = [[20, 10], [50, 10], [50, 30]]
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "torn line": (line(b'{"id": "q4", "image": "own.j'), "not JSON"),
    "no object": (line(b"[1, 2]"), "found a list"),
    "null": (line(b"null"), "found null"),
    "latin-1": (line('{"query": "où?"}'.encode("latin-1")), "not UTF-8"),
    "deep": (line(b"[" * 50_000), "not JSON"),
    "key twice": (line(b'{"id": "q4", "id": "q5"}'), "occurs twice"),
    "nan": (line(b'{"id":"q4","image":"own.jpg","query":"q","split":"val","boxes":[[0,0,NaN,9]]}'), "box 0"),
    "no id": (put(id=...), "id: missing"),
    "id again": (put(id="q1"), "also the id of line 1"),
    "id a number": (put(id=4), "id=4"),
    "no image": (put(image=...), "image: missing"),
    "absolute image": (put(image="/own.jpg"), "must be relative"),
    "image a folder": (put(image="."), "not a file"),
    "image misspelt": (put(image="onw.jpg"), "no such file"),
    "empty query": (put(query=""), "query=''"),
    "blank query": (put(query=" \t"), "must be text that is not empty"),
    "no split": (put(split=None), "split: missing"),
    "split misspelt": (put(split="trian"), "did you mean train?"),
    "split in capitals": (put(split="Train"), "did you mean train?"),
    "unknown key": (put(qeury="where?"), "did you mean query?"),
    "two targets": (put(polygons=[]), "give exactly one"),
    "no target": (put(mask=...), "found none of"),
    "mask misspelt": (put(mask="n.png"), "no such file"),
    "mask of another size": (resized("m.png", (80, 61)), "a mask of 80 x 61 pixels"),
    "mask turned": (resized("m.png", (60, 80)), "a mask of 60 x 80 pixels"),
    "mask cut": (cut("m.png", 0.5), "damaged or truncated"),
    "mask empty file": (replaced("m.png", b""), "an empty file"),
    "image gone": (removed("own.jpg"), "no such file"),
    "image cut early": (cut("own.jpg", 0.05), "own.jpg"),
    "image cut in the middle": (cut("own.jpg", 0.5), "damaged or truncated"),
    "image cut late": (cut("own.jpg", 0.98), "damaged or truncated"),
    "image is text": (replaced("own.jpg", b"<html>404 Not Found</html>"), "not an image"),
    "image too large": (replaced("own.jpg", BOMB), "cut it into tiles"),
    "header flipped": (flipped("own.jpg", 0), "not an image"),
    "PNG cut": (to_png(cut("own.png", 0.7)), "damaged or truncated"),
    "PNG checksum": (to_png(flipped("own.png", 30)), "own.png"),
    "PNG data flipped": (to_png(flipped("own.png", 2000)), "damaged or truncated"),
    "rle of another size": (target(rle={"size": [80, 60], "counts": [4800]}), "size [80, 60]"),
    "rle too short": (target(rle={"size": [60, 80], "counts": [10, 20]}), "counts of 30 pixels"),
    "rle garbage": (target(rle={"size": [60, 80], "counts": "~~~"}), "no run lengths"),
    "ring of two points": (target(polygons=[RING[:2]]), "three or more points"),
    "ring flat": (target(polygons=[[1, 2, 3, 4, 5, 6]]), "ring 0"),
    "ring of another image": (
        target(polygons=[RING, [[700, 500], [800, 500], [800, 600]]]),
        "reaches from (20, 10) to (800, 600)",
    ),
    "ring half outside": (target(polygons=[[*RING, [20, 400]]]), "reaches from (20, 10) to (50, 400)"),
    "ring without area": (target(polygons=[[[5, 5], [9, 5], [30, 5]]]), "holds no pixel"),
    "box turned": (target(boxes=[[50, 10, 20, 30]]), "x0 < x1"),
    "box outside": (target(boxes=[[500, 10, 520, 30]]), "reaches from"),
    "box in thousandths": (target(boxes=[[200, 100, 600, 930]]), "thousandths of the image"),
    "box of a turned image": (
        target(boxes=[[5, 50, 20, 75]]),
        "training cuts it off: where coordinates are thousandths",
    ),
    "normalised box": (target(boxes=[[0.2, 0.3, 0.5, 0.6]]), "multiply x by its width (80) and y by its height (60)"),
    "normalised ring": (target(polygons=[[[0.1, 0.2], [0.9, 0.2], [0.9, 0.9]]]), "between 0 and 1"),
    "normalised small ring": (target(polygons=[[[0.1, 0.1], [0.2, 0.1], [0.2, 0.3]]]), "between 0 and 1"),
    "half a character": (put(query="where \ud800?"), "half a character"),
    "half a character in an id": (put(id="\udc00"), "half a character"),
    "half a character in a name": (put(image="\udfff.jpg"), "half a character"),
    "a long name": (put(image="a" * 256), "at most 255 bytes"),
    "a drive": (put(image="C:\\own.jpg"), "must be relative"),
    "run lengths of many digits": (target(rle={"size": [60, 80], "counts": [10**4000] * 3}), "counts must be"),
    "a size of many digits": (target(rle={"size": [10**4000, 80], "counts": [1]}), "size must be"),
    "a number of many digits": (line(b'{"id": "q4", "boxes": [[' + b"9" * 5000 + b"]]}"), "more than 4300 digits"),
    "control token": (put(query="what is <|im_end|> here?"), "control token of chat templates; reword it"),
    "image token": (put(query="<image>\nwhere?"), "control token"),
    "control token in a thought": (put(reasoning="<|eot_id|>"), "control token"),
    "holes of a mask": (put(holes=True), "holes: found without polygons"),
    "holes no truth value": (target(polygons=[RING], holes=1), "must be true or false"),
    "ring that is all hole": (target(polygons=[RING, RING], holes=True), "cover whole"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found(folder: Path, name: str) -> None:
    assert validate(folder / "annotations.jsonl", MAX_PIXELS).findings == []
    damage, said = DAMAGE[name]
    damage(folder)
    began = time.process_time()
    report = validate(folder / "annotations.jsonl", MAX_PIXELS)
    assert time.process_time() - began < 2
    assert {finding.line for finding in report.findings} == {VICTIM}
    assert report.bad == 1
    text = "; ".join(finding.problem for finding in report.findings)
    assert said in text
    assert ";" in text or "must be" in text  # a remedy follows what was found


def test_every_bad_row_is_listed_and_no_good_one(folder: Path) -> None:
    """All damage that is in a line alone, at once, between good lines."""
    good, bad = read(folder), []
    for damage, _ in DAMAGE.values():
        before = {path: path.read_bytes() for path in folder.iterdir()}
        damage(folder)
        if all(path.read_bytes() == data for path, data in before.items() if path.exists() and path.suffix != ".jsonl"):
            bad.append((folder / "annotations.jsonl").read_bytes().split(b"\n")[VICTIM - 1])
        for path, data in before.items():
            path.write_bytes(data)
    assert len(bad) >= 30
    mixed: list[Any] = []
    for number, data in enumerate(bad):
        mixed += [good[1] | {"id": f"good-{number}"}, data]
    write(folder, [good[0], *mixed])
    report = validate(folder / "annotations.jsonl", MAX_PIXELS)
    assert {finding.line for finding in report.findings} == {3 + 2 * n for n in range(len(bad))}
    assert report.bad == len(bad)
    assert report.splits.total() == 1 + len(bad)


def test_truncated_anywhere(folder: Path) -> None:
    """A JPEG and a PNG cut at every percent: none crashes, none is slow, and what is missing data is found."""
    for name in ("own.jpg", "own.png"):
        data = (folder / name).read_bytes()
        put(image=name)(folder)
        for percent in range(0, 98):
            (folder / name).write_bytes(data[: len(data) * percent // 100])
            began = time.process_time()
            assert validate(folder / "annotations.jsonl", MAX_PIXELS).bad == 1, (name, percent)
            assert time.process_time() - began < 2
        (folder / name).write_bytes(data)


def test_bits_flipped_anywhere(folder: Path) -> None:
    """Some flips leave an image that decodes; none crashes or hangs, and a row that passes can be loaded."""
    rng = np.random.default_rng(0)
    for name in ("own.jpg", "own.png", "m.png"):
        data = (folder / name).read_bytes()
        put(image=name if name != "m.png" else "own.jpg")(folder)
        for _ in range(40):
            broken = bytearray(data)
            broken[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
            (folder / name).write_bytes(bytes(broken))
            began = time.process_time()
            bad = validate(folder / "annotations.jsonl", MAX_PIXELS).bad
            assert time.process_time() - began < 2
            if not bad:
                assert JsonlSource(str(folder)).split("train")[VICTIM - 1].size == (60, 80)
        (folder / name).write_bytes(data)


def test_the_report_counts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data_cli.main(["validate", str(folder), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == {
        "file": str(folder / "annotations.jsonl"),
        "ok": True,
        "rows": 8,
        "bad": 0,
        "warnings": 0,
        "splits": {
            "train": {"rows": 4, "no_target": 1},
            "val": {"rows": 2, "no_target": 0},
            "test": {"rows": 1, "no_target": 0},
            "test_ood": {"rows": 1, "no_target": 0},
        },
        "kinds": {"polygons": 6, "boxes": 1, "mask": 1},
        "no_target_share": 0.125,
        "images_in_several_splits": 0,
        "conversions": {},
        "findings": [],
    }
    put(query="")(folder)
    removed("own.jpg")(folder)
    assert data_cli.main(["validate", str(folder / "annotations.jsonl")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{folder}/annotations.jsonl:4: query='': must be")
    assert lines[-1] == "8 rows, 1 bad, 14% of the good ones without target"


def test_names_of_ones_own_splits_are_taken(folder: Path) -> None:
    for name in ("test2", "test_a", "trainval", "seasonal", "tests"):
        put(split=name)(folder)
        assert validate(folder / "annotations.jsonl", MAX_PIXELS).findings == []


def dot(folder: Path) -> None:
    image = np.zeros((60, 80, 3), dtype=np.uint8)
    image[:2, :2] = 255
    Pillow.fromarray(image).save(folder / "own.jpg", format="PNG")


def half_clear(folder: Path) -> None:
    image = np.random.default_rng(1).integers(0, 255, (60, 80, 4), dtype=np.uint8)
    image[..., 3] = 255
    image[30:, :, 3] = 90
    Pillow.fromarray(image).save(folder / "own.jpg", format="PNG")


ODD: dict[str, tuple[Callable[[Path], None], str]] = {
    "the whole image": (target(boxes=[[0, 0, 80, 60]]), "the target is 100.0% of the image"),
    "three pixels": (target(polygons=[[[10, 10], [13, 10], [13, 11], [10, 11]]]), "has 3 of 4800 pixels"),
    "ring in ring": (target(polygons=[[[0, 0], [60, 0], [60, 40], [0, 40]], RING]), "no hole"),
    "flat": (lambda folder: Pillow.new("RGB", (80, 60), (9, 99, 9)).save(folder / "own.jpg"), "is flat"),
    "black": (dot, "is black in 99.9%"),
    "transparent": (half_clear, "is transparent in 50.0%"),
    "val by another name": (put(split="validation", image="val.jpg"), "did you mean val?"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_unlikely_is_a_warning(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage, said = ODD[name]
    if name == "val by another name":
        write(folder, read(folder)[:4])
    damage(folder)
    report = validate(folder / "annotations.jsonl", MAX_PIXELS)
    assert [(f.line, f.level) for f in report.findings] == [(VICTIM, "warning")]
    assert said in report.findings[0].problem
    assert ";" in report.findings[0].problem or "?" in report.findings[0].problem
    assert ("own.jpg" in report.findings[0].problem) == (name != "val by another name")
    assert (report.ok, report.bad, report.splits.total()) == (True, 0, report.rows)
    assert data_cli.main(["validate", str(folder)]) == 0
    assert f":{VICTIM}: warning: " in capsys.readouterr().out
    assert data_cli.main(["validate", str(folder), "--strict", "--json"]) == 1
    assert [f["level"] for f in json.loads(capsys.readouterr().out)["findings"]] == ["error"]


def test_holes_are_cut_out(folder: Path) -> None:
    """Four rings in one another: a frame, and an island with a pond in its hole."""
    rings = [[[a, a], [b, a], [b, b], [a, b]] for a, b in ((20, 30), (0, 50), (24, 26), (10, 40))]
    target(polygons=rings, holes=True)(folder)
    assert validate(folder / "annotations.jsonl", MAX_PIXELS).findings == []
    sample = JsonlSource(str(folder)).split("train")[VICTIM - 1]
    wanted = np.zeros((60, 80), dtype=np.bool_)
    wanted[:50, :50] = True
    wanted[10:40, 10:40] = False
    wanted[20:30, 20:30] = True
    wanted[24:26, 24:26] = False
    assert sample.target_mask is not None
    np.testing.assert_array_equal(sample.target_mask, wanted)
    assert [label.box for label in sample.weak_labels or ()] == [(0, 0, 50, 50), (20, 20, 30, 30)]
    target(polygons=rings, holes=False)(folder)
    assert "ring 2 lies within ring 0" in validate(folder / "annotations.jsonl", MAX_PIXELS).findings[0].problem


def test_annotations_of_the_frame_before_exif_rotation(folder: Path) -> None:
    """The file is 80 x 60 and is seen as 60 x 80."""
    with Pillow.open(folder / "own.jpg") as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(folder / "own.jpg", exif=exif)
    mask = np.zeros((60, 80), dtype=np.bool_)
    mask[5:20, 50:75] = True
    write_image(folder / "m.png", mask)
    for form in (
        {"polygons": [[[50, 5], [75, 5], [75, 20]]]},
        {"boxes": [[50, 5, 75, 20]]},
        {"rle": {"size": [60, 80], "counts": [3000, 15, 1785]}},
        {"mask": "m.png"},
    ):
        put(**({"polygons": ..., "boxes": ..., "rle": ..., "mask": ...} | form))(folder)
        (finding,) = validate(folder / "annotations.jsonl", MAX_PIXELS).findings
        assert (finding.line, finding.level) == (VICTIM, "error")
        assert "it fits the 80 x 60 (width x height) that the file holds before its EXIF rotation" in finding.problem
    target(boxes=[[5, 50, 20, 75]], rle=...)(folder)
    assert validate(folder / "annotations.jsonl", MAX_PIXELS).findings == []


def test_pictures_in_several_splits_are_named(folder: Path) -> None:
    rows = read(folder)
    rows[4]["image"] = rows[5]["image"] = "./own.jpg"
    shutil.copy(folder / "own.jpg", folder / "copy.jpg")
    rows[6]["image"] = "copy.jpg"
    write(folder, rows)
    report = validate(folder / "annotations.jsonl", MAX_PIXELS)
    assert [(f.line, f.level) for f in report.findings] == [(5, "warning"), (7, "warning")]
    assert "own.jpg: the same picture is in the split train (line 4) and in val" in report.findings[0].problem
    assert "copy.jpg: the same picture as" in report.findings[1].problem
    assert "own.jpg is in the split train (line 4) and in test" in report.findings[1].problem
    assert report.shared == 1
    assert report.ok


def test_backslashes_and_both_unicode_forms_of_a_name(folder: Path) -> None:
    (folder / "o\u0308st").mkdir()  # decomposed, as some systems write it
    for name in ("k\u00fcste.jpg", "x.png"):
        shutil.copy(folder / ("own.jpg" if name.endswith("jpg") else "m.png"), folder / "o\u0308st" / name)
    for image in ("\u00f6st\\k\u00fcste.jpg", "\u00f6st/ku\u0308ste.jpg", "o\u0308st\\ku\u0308ste.jpg"):
        put(image=image, mask="\u00f6st\\x.png")(folder)
        assert validate(folder / "annotations.jsonl", MAX_PIXELS).findings == []
        assert JsonlSource(str(folder)).split("train")[VICTIM - 1].target_mask is not None
    put(image="\u00f6st\\gone.jpg")(folder)
    assert "no such file" in validate(folder / "annotations.jsonl", MAX_PIXELS).findings[0].problem


ROW = {"id": "a", "image": "a.jpg", "query": "where?", "split": "train", "polygons": []}
COCO = {"info": {}, "images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": []}
LABELME = {"version": "5", "flags": {}, "shapes": [{"label": "a", "points": [[1, 2]]}], "imagePath": "a.jpg"}
STUDIO = [{"id": 1, "annotations": [{"result": [{"from_name": "x", "to_name": "i"}]}], "data": {"image": "u"}}]
LINE = json.dumps(ROW)
OTHER_FORMATS: dict[str, tuple[str, str]] = {
    "array": (json.dumps([ROW, ROW]), "one JSON array"),
    "array of lines": (f"[\n{LINE},\n{LINE}\n]", "jq -c '.[]'"),
    "array in lines": (f"[{LINE},\n{LINE}]", "one JSON array"),
    "array indented": (json.dumps([ROW], indent=1), "one JSON array"),
    "object indented": (json.dumps(ROW, indent=2), "JSON written over several lines"),
    "COCO": (json.dumps(COCO), "grasp-rl data import coco"),
    "COCO indented": (json.dumps(COCO, indent=1), "grasp-rl data import coco"),
    "COCO in lines": ('{"images": [\n{"id": 1}\n],\n"annotations": []}', "grasp-rl data import coco"),
    "large COCO": (json.dumps({"images": [{"id": n} for n in range(9999)]} | COCO), "grasp-rl data import coco"),
    "LabelMe": (json.dumps(LABELME, indent=2), "grasp-rl data import labelme"),
    "Label Studio": (json.dumps(STUDIO), "Label Studio"),
    "Label Studio indented": (json.dumps(STUDIO, indent=1), "grasp-rl data import coco"),
    "YOLO": ("0 0.5 0.5 0.2 0.2\n1 .1 .1 .1 .1\n", "grasp-rl data import yolo"),
    "table": ("image,question\na.jpg,where?\n", "grasp-rl data import folder"),
    "XML": ("<annotation>", "XML (Pascal VOC, CVAT)"),
    "GeoJSON": (json.dumps({"type": "FeatureCollection", "features": []}), "map coordinates"),
    "UTF-16": ("\ufeff" + LINE, "UTF-16"),
}


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_a_file_that_is_something_else_gets_one_sentence(folder: Path, name: str) -> None:
    text, said = OTHER_FORMATS[name]
    (folder / "annotations.jsonl").write_text(text, encoding="utf-16-le" if name == "UTF-16" else "utf-8")
    (finding,) = validate(folder / "annotations.jsonl", MAX_PIXELS).findings
    assert (finding.line, finding.level) == (1, "error")
    assert finding.problem.startswith("the whole file is ")
    assert said in finding.problem
    assert "; " in finding.problem


def test_json_lines_are_taken_for_nothing_else(folder: Path) -> None:
    for first in ('{"id": "q4", "image": "own.j', "[1, 2]", "null", "{", f"{LINE},", json.dumps({"id": "x"})):
        (folder / "annotations.jsonl").write_text(f"{first}\n{LINE}\n")
        report = validate(folder / "annotations.jsonl", MAX_PIXELS)
        assert {f.line for f in report.findings if f.level == "error"} == {1}, first
        assert "whole file" not in report.findings[0].problem
    long = ROW | {"polygons": [[[n % 70, n % 50] for n in range(20_000)]]}
    (folder / "annotations.jsonl").write_text(json.dumps(long) + "\n" + LINE.replace('"a"', '"b"') + "\n")
    assert validate(folder / "annotations.jsonl", MAX_PIXELS).ok


def test_a_folder_that_is_something_else_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders: dict[str, dict[str, str]] = {
        "yolo": {"data.yaml": "names: [a]"},
        "coco": {"instances.json": json.dumps(COCO)},
        "labelme": {"a.json": json.dumps(LABELME)},
        "folder": {"images/a.txt": "", "masks/a.txt": ""},
    }
    for name, files in folders.items():
        for path, text in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(text)
        assert data_cli.main(["validate", str(tmp_path / name)]) == 2
        assert f"grasp-rl data import {name} {tmp_path / name}" in capsys.readouterr().err


def test_nothing_of_a_dataset_is_obeyed_by_a_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;TITLE\x07\x9b2J\u202e\u2066"
    rows = read(folder)
    rows[0]["query"] = f"where {evil}"
    rows[1] |= {f"{evil}key": 1}
    rows[2]["image"] = f"{evil}.png"
    write(folder, rows)
    assert data_cli.main(["validate", str(folder)]) == 1
    assert data_cli.main(["show", str(folder), "--out", str(folder / "look"), "--count", "1"]) == 2
    write(folder, [rows[0], *rows[3:]])
    assert data_cli.main(["show", str(folder), "--out", str(folder / "look"), "--count", "1"]) == 0
    told = capsys.readouterr()
    assert not set("\x1b\x07\x9b\u202e\u2066") & set(told.out + told.err)
    assert (told.out + told.err).count("\\x1b]0;TITLE\\x07\\x9b2J\\u202e\\u2066") >= 4


def test_hand_drawn_outlines_may_leave_the_image_a_little(folder: Path) -> None:
    target(polygons=[[[-0.5, 10], [80.7, 10], [50, 30]]])(folder)
    assert validate(folder / "annotations.jsonl", MAX_PIXELS).findings == []


def test_an_empty_dataset(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "annotations.jsonl").write_text("\n\n")
    assert data_cli.main(["validate", str(folder)]) == 1
    assert "annotations.jsonl:0: no rows; write" in capsys.readouterr().out


def test_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["validate", str(tmp_path)], ["show", str(tmp_path / "x"), "--out", str(tmp_path / "o")]):
        assert data_cli.main(words) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.count("\n") == 1
        assert "no such file; name a folder that holds annotations.jsonl" in told.err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit):
        data_cli.main(["validate", str(tmp_path), "--max-pixels", "0"])


def test_max_pixels(folder: Path) -> None:
    assert validate(folder / "annotations.jsonl", 4000).bad == 8
    assert data_cli.main(["validate", str(folder), "--max-pixels", "4800"]) == 0


@pytest.mark.parametrize("name", ["annotations.jsonl", "other_forms.jsonl"])
def test_the_small_real_dataset_is_good(name: str) -> None:
    report = validate(AERIAL / name, MAX_PIXELS)
    assert report.ok
    assert all("flatter" in finding.problem for finding in report.findings)  # its splits share its three pictures
    assert report.no_target.total() >= 1
    assert sum(path.stat().st_size for path in AERIAL.rglob("*")) < 400_000


def test_show(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(id="../../odd id")(folder)
    out = tmp_path / "look"
    assert data_cli.main(["show", str(folder), "--out", str(out), "--count", "9"]) == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == ["000_q1.png", "001_q2.png", "002_q3.png", "003_odd_id.png"]
    with Pillow.open(out / names[0]) as image:
        assert image.size[0] == 336
    assert capsys.readouterr().out.splitlines()[0] == f"{out / names[0]}  where?"
    assert data_cli.main(["show", str(folder), "--split", "dev", "--out", str(out)]) == 2
    assert "has train (4 rows), val (2 rows)" in capsys.readouterr().err
    assert data_cli.main(["show", "synthetic", "--split", "val", "--count", "1", "--out", str(out)]) == 0
    assert (out / "000_val-0-0.png").exists()
    assert data_cli.main(["show", "synthetic", "--out", str(folder / "a.jpg")]) == 1


def test_through_the_door_without_torch(tmp_path: Path) -> None:
    shutil.copytree(AERIAL, tmp_path / "aerial")
    (tmp_path / "aerial/images/islands.jpg").unlink()
    command = [sys.executable, "-X", "importtime", "-m", "grasp_rl.cli.main", "data", "validate", "aerial"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "aerial/annotations.jsonl:3: image: aerial/images/islands.jpg: no such file; name an image" in ended.stdout
    assert "9 rows, 3 bad" in ended.stdout
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in ended.stderr.splitlines() if "|" in line}
    assert "grasp_rl" in imported
    assert not imported & {"torch", "transformers", "hydra"}
