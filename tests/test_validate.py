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
        write_image(tmp_path / name, image)
    write_image(tmp_path / "m.png", mask)
    ring = [[20, 10], [50, 10], [50, 30], [20, 30]]
    splits = ["train", "train", "train", "train", "val", "val", "test", "test_ood"]
    rows: list[Row] = [
        {"id": f"q{n}", "image": "a.jpg", "query": "where?", "split": split, "polygons": [ring]}
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
    "ring of another image": (target(polygons=[RING, [[700, 500], [800, 500], [800, 600]]]), "holds no pixel"),
    "ring half outside": (target(polygons=[[*RING, [20, 400]]]), "reaches from (20, 10) to (50, 400)"),
    "ring without area": (target(polygons=[[[5, 5], [9, 5], [30, 5]]]), "holds no pixel"),
    "box turned": (target(boxes=[[50, 10, 20, 30]]), "x0 < x1"),
    "box outside": (target(boxes=[[500, 10, 520, 30]]), "reaches from"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found(folder: Path, name: str) -> None:
    assert validate(folder / "annotations.jsonl", MAX_PIXELS).findings == []
    damage, said = DAMAGE[name]
    damage(folder)
    began = time.monotonic()
    report = validate(folder / "annotations.jsonl", MAX_PIXELS)
    assert time.monotonic() - began < 2
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
            began = time.monotonic()
            assert validate(folder / "annotations.jsonl", MAX_PIXELS).bad == 1, (name, percent)
            assert time.monotonic() - began < 2
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
            began = time.monotonic()
            bad = validate(folder / "annotations.jsonl", MAX_PIXELS).bad
            assert time.monotonic() - began < 2
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
        "splits": {
            "train": {"rows": 4, "no_target": 1},
            "val": {"rows": 2, "no_target": 0},
            "test": {"rows": 1, "no_target": 0},
            "test_ood": {"rows": 1, "no_target": 0},
        },
        "kinds": {"polygons": 6, "boxes": 1, "mask": 1},
        "no_target_share": 0.125,
        "images_in_several_splits": 1,
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
    assert report.findings == []
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
