"""`grasp-rl data import`: what is read back is what the source says, it is valid, and nothing leads out of a folder."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from pycocotools import mask as coco

from grasp_rl.cli import data as data_cli
from grasp_rl.data.image_io import MAX_PIXELS, write_image
from grasp_rl.data.importers.base import Shape, Splitting, run_lengths, target_of
from grasp_rl.data.rasterize import decode_rle
from grasp_rl.data.readers.jsonl import JsonlSource
from grasp_rl.data.validate import validate
from grasp_rl.types import Sample

HEIGHT, WIDTH = 40, 60
RING = [[10.0, 5.0], [30.5, 5.0], [30.5, 20.0], [10.0, 20.0]]
FLAT = [value for point in RING for value in point]

Json = dict[str, Any]


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8))


def imported(*words: object) -> list[Json]:
    """The rows of a successful import into the last word, which are valid."""
    out = Path(str(words[-1]))
    assert data_cli.main(["import", *map(str, words[:-1]), "--out", str(out)]) == 0
    assert validate(out / "annotations.jsonl", MAX_PIXELS).ok
    return [json.loads(line) for line in (out / "annotations.jsonl").read_text().splitlines()]


def samples(out: Path, split: str = "train") -> dict[str, Sample]:
    rows = JsonlSource(str(out)).split(split)
    return {rows[index].sample_id: rows[index] for index in range(len(rows))}


def hollow() -> np.ndarray:
    """A frame: a mask with a hole."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    mask[5:30, 10:50] = True
    mask[12:20, 20:40] = False
    return mask


def uncompressed(mask: np.ndarray) -> Json:
    """COCO's counts of a crowd, counted here one pixel at a time."""
    counts, value = [0], 0
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": [HEIGHT, WIDTH], "counts": counts}


@pytest.fixture
def coco_file(tmp_path: Path) -> Path:
    """Two images: polygons in two parts and by two objects, a crowd, run lengths with a hole, a box alone."""
    for number, name in enumerate(("a.png", "deep/b.png")):
        picture(tmp_path / "src/images" / name, number)
    encoded = coco.encode(np.asfortranarray(hollow(), dtype=np.uint8))
    shift = [[x + 25 * (n % 2 == 0) for n, x in enumerate(FLAT)]]
    annotations: list[Json] = [
        {"id": 1, "image_id": 7, "category_id": 1, "segmentation": [FLAT, [1, 30, 9, 30, 9, 38]], "bbox": [0, 0, 1, 1]},
        {"id": 2, "image_id": 7, "category_id": 1, "segmentation": shift, "bbox": [0, 0, 1, 1]},
        {"id": 3, "image_id": 7, "category_id": 3, "segmentation": uncompressed(hollow()), "iscrowd": 1},
        {"id": 4, "image_id": 8, "category_id": 3, "segmentation": encoded | {"counts": encoded["counts"].decode()}},
        {"id": 5, "image_id": 8, "category_id": 1, "segmentation": [], "bbox": [2, 3, 10, 20.5]},
        {"id": 6, "image_id": 8, "category_id": 1, "bbox": [50, 30, 30, 30]},
    ]
    data = {
        "images": [
            {"id": 7, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
            {"id": 8, "file_name": "deep\\b.png", "width": WIDTH, "height": HEIGHT},
        ],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "storage_tank"}, {"id": 3, "name": "harbour"}],
    }
    path = tmp_path / "src/instances.json"
    path.write_text(json.dumps(data))
    return path


def changed(path: Path, change: Callable[[Any], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_coco(coco_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows = {row["id"]: row for row in imported("coco", coco_file, out)}
    assert rows["7-1"]["query"] == "Segment every storage tank."
    assert rows["7-1"]["polygons"] == [RING, [[1, 30], [9, 30], [9, 38]], [[x + 25, y] for x, y in RING]]
    assert rows["8-1"]["boxes"] == [[2, 3, 12, 23.5], [50, 30, 60, 40]]
    assert rows["8-1"]["image"] == "images/deep/b.png"
    assert (out / "images/deep/b.png").read_bytes() == (coco_file.parent / "images/deep/b.png").read_bytes()
    back = samples(out)
    for name in ("7-3", "8-3"):
        assert back[name].query == "Segment every harbour."
        np.testing.assert_array_equal(back[name].target_mask, hollow())
    assert [label.box for label in back["8-1"].weak_labels or ()] == [(2, 3, 12, 23.5), (50, 30, 60, 40)]
    assert len(back["7-1"].weak_labels or ()) == 3


def test_a_question_of_ones_own_and_splits(coco_file: Path, tmp_path: Path) -> None:
    asked = "Where is the {category} here?"
    rows = imported("coco", coco_file, "--question", asked, "--split", "test", tmp_path / "out")
    assert {row["split"] for row in rows} == {"test"}
    assert rows[0]["query"] == "Where is the storage tank here?"
    rows = imported("coco", coco_file, "--fractions", "train=0.5,val=0.5", tmp_path / "halves")
    by_image = {(row["image"], row["split"]) for row in rows}
    assert sorted(split for _, split in by_image) == ["train", "val"]
    assert rows == imported("coco", coco_file, "--fractions", "train=0.5,val=0.5", tmp_path / "again")
    others = [
        imported("coco", coco_file, "--fractions", "train=0.5,val=0.5", "--seed", seed, tmp_path / f"seed-{seed}")
        for seed in range(1, 6)
    ]
    assert any(other != rows for other in others)
    for wrong in ("train=0.5", "train", "train=0.7,val=0.7", "train=1.5,val=-0.5"):
        with pytest.raises(SystemExit):
            data_cli.main(["import", "coco", str(coco_file), "--out", str(tmp_path / "x"), "--fractions", wrong])


def test_fractions_are_of_the_images() -> None:
    from grasp_rl.data.importers.base import Item

    items = [
        Item(sample_id=f"{n}-{k}", image=Path("a"), name=f"{n}.png", query="q", target={})
        for n in range(100)
        for k in "ab"
    ]
    splits = Splitting(fractions={"train": 0.8, "val": 0.15, "test": 0.05}).of(items)
    assert {name: splits.count(name) for name in splits} == {"train": 160, "val": 30, "test": 10}
    assert splits[::2] == splits[1::2]
    assert len(set(splits[:40])) > 1


COCO_ERRORS: dict[str, tuple[Callable[[Any], object], str]] = {
    "an image outside": (lambda d: d["images"][0].update(file_name="../a.png"), "without a leading / and without .."),
    "an absolute image": (lambda d: d["images"][0].update(file_name="/etc/passwd"), "file_name='/etc/passwd': must be"),
    "a drive": (lambda d: d["images"][0].update(file_name="C:\\a.png"), "must be a file's path within"),
    "an image that is gone": (lambda d: d["images"][0].update(file_name="c.png"), "no such file; name the folder"),
    "another size": (lambda d: d["images"][0].update(width=61), "is said to be 61 x 40 (width x height), the file has"),
    "no category": (lambda d: d["annotations"][0].update(category_id=9), "has category_id=9, which is not listed"),
    "no image": (lambda d: d["annotations"][0].update(image_id=9), "has image_id=9, which is not listed"),
    "an odd ring": (lambda d: d["annotations"][0].update(segmentation=[[1, 2, 3]]), "annotation 1: a ring must be"),
    "text in a ring": (lambda d: d["annotations"][0].update(segmentation=[[*FLAT[:7], "x"]]), "must be a number"),
    "run lengths that end early": (
        lambda d: d["annotations"][2]["segmentation"].update(counts=[3]),
        "counts of 3 pixels",
    ),
    "run lengths of another size": (lambda d: d["annotations"][2]["segmentation"].update(size=[4, 5]), "size [4, 5]"),
    "no shape": (lambda d: d["annotations"][4].update(bbox=None), "has neither a segmentation nor a bbox"),
    "no list": (lambda d: d.update(annotations={}), "annotations must be a list of objects"),
    "a control token": (lambda d: d["categories"][0].update(name="<image>"), "a control token of chat templates"),
    "nothing": (lambda d: d.update(annotations=[]), "nothing to import"),
}


@pytest.mark.parametrize("name", COCO_ERRORS)
def test_a_coco_file_that_cannot_be_read_is_named(
    coco_file: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, said = COCO_ERRORS[name]
    changed(coco_file, change)
    assert data_cli.main(["import", "coco", str(coco_file), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]  # nothing half-done is left


def test_what_holds_no_pixel_is_left_out_and_what_reaches_beyond_is_cut(
    coco_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(data: Any) -> None:
        outside = [[value + 500 for value in FLAT]]
        data["annotations"][0]["segmentation"] = outside
        data["annotations"][1]["segmentation"] = [[40, 10, 100, 10, 100, 20, 40, 20]]
        data["annotations"][4]["bbox"] = [3, 3, 0, 10]

    changed(coco_file, change)
    rows = {row["id"]: row for row in imported("coco", coco_file, tmp_path / "out")}
    assert capsys.readouterr().err.count("1 of 2 shapes hold no pixel of the image") == 2
    assert rows["8-1"]["boxes"] == [[50, 30, 60, 40]]
    wanted = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    wanted[10:20, 40:] = True
    np.testing.assert_array_equal(samples(tmp_path / "out")["7-1"].target_mask, wanted)
    assert "rle" in rows["7-1"]


def test_a_folder_that_is_not_empty_stays_as_it_is(
    coco_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    imported("coco", coco_file, tmp_path / "out")  # an empty one is taken
    before = (tmp_path / "out/annotations.jsonl").read_bytes()
    assert data_cli.main(["import", "coco", str(coco_file), "--out", str(tmp_path / "out"), "--split", "val"]) == 2
    assert "is there already and not empty; name a new folder" in capsys.readouterr().err
    assert (tmp_path / "out/annotations.jsonl").read_bytes() == before
    assert data_cli.main(["import", "coco", str(tmp_path / "gone"), "--out", str(tmp_path / "x")]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    assert data_cli.main(["import", "coco", str(coco_file), "--out", str(tmp_path / "x"), "--question", "what?"]) == 2
    assert "must hold {category}" in capsys.readouterr().err


def test_run_lengths_are_those_of_pycocotools() -> None:
    rng = np.random.default_rng(0)
    for mask in (hollow(), rng.random((7, 5)) < 0.5, np.ones((3, 4), dtype=np.bool_), np.zeros((3, 4), dtype=np.bool_)):
        written = run_lengths(mask)
        np.testing.assert_array_equal(decode_rle(written, mask.shape), mask)
        theirs = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
        assert coco.frPyObjects(written, *mask.shape) == theirs


def test_a_mask_among_rings_is_one_union() -> None:
    left_out: list[str] = []
    target = target_of([Shape(rings=(RING,)), Shape(mask=hollow())], (HEIGHT, WIDTH), "here", left_out)
    assert target is not None
    square = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    square[5:20, 10:30] = True  # the centre of column 30 is on the edge, and so outside
    np.testing.assert_array_equal(decode_rle(target["rle"], (HEIGHT, WIDTH)), hollow() | square)
    assert left_out == []
    boxes = [Shape(box=(1.0, 2.0, 5.0, 9.0)), Shape(rings=(RING,))]
    mixed = target_of(boxes, (HEIGHT, WIDTH), "here", left_out)
    assert mixed == {"polygons": [[[1, 2], [5, 2], [5, 9], [1, 9]], RING]}


def labelme(path: Path, *shapes: Json, image: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": image or f"{path.stem}.png"}
    path.write_text(json.dumps(data | {"imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH}))


def test_labelme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "src"
    picture(source / "a.png", 0)
    picture(source / "images/b.png", 1)
    labelme(
        source / "a.json",
        {"label": "ship", "points": RING, "shape_type": "polygon"},
        {"label": "ship", "points": [[40, 30], [35, 25]], "shape_type": "rectangle"},
        {"label": "tank", "points": [[30, 20], [30, 30]], "shape_type": "circle"},
        {"label": "tank", "points": [[3, 3]], "shape_type": "point"},
    )
    labelme(
        source / "json/b.json",
        {"label": "ship", "points": [[5, 6], [15, 26]], "shape_type": "rectangle"},
        image="..\\images\\b.png",
    )
    out = tmp_path / "out"
    rows = {row["id"]: row for row in imported("labelme", source, out)}
    assert set(rows) == {"a-ship", "a-tank", "json/b-ship"}
    assert rows["a-ship"]["polygons"] == [RING, [[35, 25], [40, 25], [40, 30], [35, 30]]]
    assert rows["json/b-ship"]["boxes"] == [[5, 6, 15, 26]]
    assert rows["json/b-ship"]["query"] == "Segment every ship."
    assert "a point covers nothing" in capsys.readouterr().err
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    disc = np.hypot(x - 30, y - 20) < 10
    mask = samples(out)["a-tank"].target_mask
    assert mask is not None
    assert abs(int(mask.sum()) - math.pi * 100) < 8
    assert (mask ^ disc).sum() <= 8
    assert imported("labelme", source / "a.json", tmp_path / "one")[0]["id"] == "a-ship"


def test_labelme_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "src/a.png")
    buffer = io.BytesIO()
    Pillow.fromarray(hollow()[5:30, 10:50]).save(buffer, format="PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    shape = {"label": "quay", "points": [[10.0, 5.0], [49.0, 29.0]], "shape_type": "mask", "mask": text}
    labelme(tmp_path / "src/a.json", shape)
    imported("labelme", tmp_path / "src", tmp_path / "out")
    np.testing.assert_array_equal(samples(tmp_path / "out")["a-quay"].target_mask, hollow())
    labelme(tmp_path / "src/a.json", shape | {"points": [[40.0, 35.0], [79.0, 59.0]]})
    imported("labelme", tmp_path / "src", tmp_path / "cut")
    moved = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    moved[35:, 40:] = True
    np.testing.assert_array_equal(samples(tmp_path / "cut")["a-quay"].target_mask, moved)
    labelme(tmp_path / "src/a.json", shape | {"mask": text[:40]})
    assert data_cli.main(["import", "labelme", str(tmp_path / "src"), "--out", str(tmp_path / "x")]) == 2
    assert "a.json: shape 0: mask is no PNG in base64" in capsys.readouterr().err
    for corner in ([-1.0, 5.0], [10.0, 40.0]):
        labelme(tmp_path / "src/a.json", shape | {"points": [corner, [49.0, 50.0]]})
        assert data_cli.main(["import", "labelme", str(tmp_path / "src"), "--out", str(tmp_path / "x")]) == 2
        assert "a mask beyond its image of 60 x 40" in capsys.readouterr().err


def test_a_coco_folder_with_one_file_and_a_data_yaml_are_taken(
    coco_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = imported("coco", coco_file, tmp_path / "file")
    assert imported("coco", coco_file.parent, tmp_path / "folder") == rows
    (coco_file.parent / "b.json").write_text("{}")
    assert data_cli.main(["import", "coco", str(coco_file.parent), "--out", str(tmp_path / "x")]) == 2
    assert "one .json file of annotations, found b.json, instances.json; name the file" in capsys.readouterr().err
    picture(tmp_path / "yolo/a.png")
    (tmp_path / "yolo/a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "yolo/data.yaml").write_text("names: [ship]\n")
    assert len(imported("yolo", tmp_path / "yolo/data.yaml", tmp_path / "yaml")) == 1


@pytest.mark.parametrize(
    ("shape", "image", "said"),
    [
        ({"label": "a", "points": RING[:2], "shape_type": "polygon"}, "", "a.json: shape 0: a polygon of 2 points"),
        ({"label": "a", "points": "x"}, "", "points must be [[x, y], ...]"),
        ({"label": "a", "points": [[1, None], [2, 3], [3, 4]]}, "", "must be a number of pixels"),
        ({"label": "a", "points": RING, "shape_type": "mask"}, "", "a mask of 4 points"),
        ({"label": "a", "points": RING}, "../../secret.png", "no image '../../secret.png' within"),
        ({"label": "a", "points": RING}, "/etc/hostname", "no image '/etc/hostname' within"),
    ],
)
def test_labelme_files_that_cannot_be_read(
    tmp_path: Path, shape: Json, image: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "secret.png")
    picture(tmp_path / "src/in/a.png")
    labelme(tmp_path / "src/in/a.json", shape, image=image)
    assert data_cli.main(["import", "labelme", str(tmp_path / "src"), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_labelme_of_another_image_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "src/a.png", size=(HEIGHT, WIDTH + 1))
    labelme(tmp_path / "src/a.json", {"label": "a", "points": RING})
    (tmp_path / "src/notes.json").write_text("{}")
    assert data_cli.main(["import", "labelme", str(tmp_path / "src"), "--out", str(tmp_path / "out")]) == 2
    assert "is about an image of 60 x 40 (width x height), the file has 61 x 40" in capsys.readouterr().err
    (tmp_path / "src/a.json").unlink()
    assert data_cli.main(["import", "labelme", str(tmp_path / "src"), "--out", str(tmp_path / "out")]) == 2
    assert "notes.json: has no list of shapes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "layout",
    ["images/{split}/{name}.png labels/{split}/{name}.txt", "{split}/images/{name}.png {split}/labels/{name}.txt"],
)
def test_yolo(tmp_path: Path, layout: str) -> None:
    source, (image, label) = tmp_path / "src", layout.split()
    texts = {
        ("train", "a"): "0 0.5 0.5 0.2 0.25\n1 0.1 0.2 0.3 0.2 0.3 0.6\n0 0.95 0.9 0.1 0.2 0.87\n\n",
        ("valid", "b"): "1 .5 .5 1 1\n",
        ("test", "c"): "",
    }
    for number, ((split, name), text) in enumerate(texts.items()):
        picture(source / image.format(split=split, name=name), number)
        (source / label.format(split=split, name=name)).parent.mkdir(parents=True, exist_ok=True)
        (source / label.format(split=split, name=name)).write_text(text)
    (source / "data.yaml").write_text("path: /etc\ntrain: ../../x\nnames:\n  0: ship\n  1: oil_tank\n")
    out = tmp_path / "out"
    rows = {(row["split"], row["query"]): row for row in imported("yolo", source, out)}
    assert set(rows) == {
        ("train", "Segment every ship."),
        ("train", "Segment every oil tank."),
        ("val", "Segment every oil tank."),
    }
    np.testing.assert_allclose(rows["train", "Segment every ship."]["boxes"], [[24, 15, 36, 25], [54, 32, 60, 40]])
    np.testing.assert_allclose(rows["train", "Segment every oil tank."]["polygons"], [[[6, 8], [18, 8], [18, 24]]])
    assert rows["val", "Segment every oil tank."]["boxes"] == [[0, 0, WIDTH, HEIGHT]]
    (source / "data.yaml").write_text("names: [ship, oil_tank]\n")
    assert len(imported("yolo", source, "--split", "train", tmp_path / "list")) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 10 20 30 40", "a.txt:1: a number outside 0..1"),
        ("0 0.5 0.5 0.5", "a.txt:1: 3 numbers"),
        ("0 .1 .1 .2 .2 .3 .3 .4", "7 numbers"),
        ("ship 0.5 0.5 0.5 0.5", "must be a class and numbers"),
        ("0 0.5 0.5 0.5 nan", "a number outside 0..1"),
        ("4 0.5 0.5 0.5 0.5", "class 4 has no name"),
    ],
)
def test_yolo_files_that_cannot_be_read(
    tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "src/a.png")
    (tmp_path / "src/a.txt").write_text(text)
    command = ["import", "yolo", str(tmp_path / "src"), "--out", str(tmp_path / "out")]
    assert data_cli.main(command) == 2
    assert "has neither data.yaml nor classes.txt" in capsys.readouterr().err
    (tmp_path / "src/classes.txt").write_text("ship\n")
    assert data_cli.main(command) == 2
    assert said in capsys.readouterr().err
    (tmp_path / "src/a.txt").unlink()
    assert data_cli.main(command) == 2
    assert "holds no image with a label file" in capsys.readouterr().err


def test_an_image_that_a_camera_turned_has_its_upright_size(tmp_path: Path) -> None:
    picture(tmp_path / "src/a.jpg")
    with Pillow.open(tmp_path / "src/a.jpg") as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(tmp_path / "src/a.jpg", exif=exif)
    (tmp_path / "src/a.txt").write_text("0 0.5 0.25 0.5 0.5\n")
    (tmp_path / "src/classes.txt").write_text("ship\n")
    assert imported("yolo", tmp_path / "src", tmp_path / "out")[0]["boxes"] == [[10, 0, 30, 30]]


def test_folder(tmp_path: Path) -> None:
    source = tmp_path / "src"
    for number, name in enumerate(("a.png", "deep/b.png", "c.png")):
        picture(source / "images" / name, number)
    for name in ("a.png", "deep/b.png"):
        (source / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(source / "masks" / name, hollow())
    (source / "q.csv").write_text(
        "\ufeffImage;Question;Mask;Split;Reasoning\n"
        'a.png;"Where, then, is ""it""?";a.png;train;A frame.\n'
        "images/deep/b.png;Where?;masks/deep/b.png;val;\n\n"
        "c.png;Where not?;;train;\n"
    )
    out = tmp_path / "out"
    rows = imported("folder", source, out)
    assert [row["query"] for row in rows] == ['Where, then, is "it"?', "Where?", "Where not?"]
    assert [row["split"] for row in rows] == ["train", "val", "train"]
    assert rows[0]["reasoning"] == "A frame."
    assert rows[2]["polygons"] == []
    np.testing.assert_array_equal(samples(out, "val")[rows[1]["id"]].target_mask, hollow())
    (source / "q.csv").write_text("image,question\na.png,Where?\na.png,Where else?\n")
    rows = imported("folder", source, "--split", "test", tmp_path / "plain")
    assert [row["mask"] for row in rows] == ["masks/a.png"] * 2
    assert len({row["id"] for row in rows}) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,question\ngone.png,Where?\n", "q.csv:2: image='gone.png': no such file"),
        ("image,question\n../a.png,Where?\n", "q.csv:2: image='../a.png': must be a file's path"),
        ("image,question,mask\na.png,Where?,gone.png\n", "q.csv:2: mask='gone.png': no such file"),
        ("image,question,mask\na.png,Where?,/etc/passwd\n", "without a leading /"),
        ("image,question\na.png,Where?\n", "q.csv:2: no mask a.png in"),
        ("picture,question\na.png,Where?\n", "needs the columns image and question, found picture, question"),
        ("image,question,mask\na.png,,\n", "query=''"),
        ("image,question,mask,split\na.png,Where?,,my split\n", "must be a word"),
        ("", "needs the columns image and question, found none"),
        ("image,question\n", "nothing to import"),
    ],
)
def test_folders_that_cannot_be_read(tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "src/images/a.png")
    (tmp_path / "src/masks").mkdir()
    command = ["import", "folder", str(tmp_path / "src"), "--out", str(tmp_path / "out")]
    assert data_cli.main(command) == 2
    assert "one CSV of questions, found none" in capsys.readouterr().err
    (tmp_path / "src/q.csv").write_text(text)
    assert data_cli.main(command) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
