"""Readers of further layouts: their variants, what is broken in them, and what a stranger's file must not do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml
from test_readers import reader, refusal, same, samples

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import RunConfig
from grasp_rl.config.targets import load_config
from grasp_rl.data import tables, xml_files
from grasp_rl.launch import compose, worker
from grasp_rl.rehearsal import layouts
from grasp_rl.rehearsal.layouts import WRITERS
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.types import SpatialPrompt
from grasp_rl.utils.files import write_text

WORDS = ["policy=tiny", "policy.weights=random", "debug=fast", "run_dir=r", "segmenter=box_fill", "data.root=data"]
BOXES = ["vrsbench_fs", "vrsbench_rl", "nwpu_fs", "dior_rsvg", "vrsbench", "remotesam_270k", "grasp1k"]
"""Sets without masks."""


def composed(words: list[str]) -> RunConfig:
    with compose.hydra("train") as engine:
        write_text(Path("r/config.yaml"), yaml.safe_dump(compose.single(engine, ["command=train", *words], ()).config))
    return load_config(Path("r/config.yaml"))


@pytest.mark.parametrize("name", BOXES)
def test_boxes_serve_a_reward_by_boxes_and_are_refused_by_one_of_masks(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[name](tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    for reward, served in (("grasp", True), ("think2seg", False)):
        config = composed([*WORDS, f"data={name}", f"reward={reward}", "prompt=box"])
        parts = worker.build(config)
        pipeline = RewardPipeline(
            segmenter=parts.segmenter, reward=parts.reward, prompt=config.prompt, parsing=config.parsing
        )
        sample = parts.data.split("train")[0]
        if served:
            assert len(pipeline.labels(sample).instances or ()) == len(sample.weak_labels or ()) > 0
        else:
            assert "has no mask and this reward needs one" in refusal(lambda p=pipeline, s=sample: p.labels(s))


VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "Arrow as a file": ("risbench_arrow", {"stream": False}, {}),
    "cells of bytes": ("risbench_arrow", {"nested": False}, {}),
    "box of width and height": ("geopixinstruct", {"order": "xywh"}, {}),
    "rows of JSON": ("geopixinstruct", {"form": "json", "order": "xywh"}, {}),
    "one list": ("vrsbench", {"together": True}, {}),
    "corners": ("vrsbench", {"truth": "corner"}, {"truth": "corner"}),
    "deep": ("lasers", {"deep": True}, {}),
    "public": ("lasers", {"public": True}, {}),
    "width and height": ("remotesam_270k", {"order": "xywh"}, {"order": "xywh"}),
}


@pytest.mark.parametrize("kind", VARIANTS)
def test_variants(kind: str, tmp_path: Path) -> None:
    name, how, options = VARIANTS[kind]
    written = WRITERS[name](tmp_path, **how)  # type: ignore[call-arg]
    read = samples(reader(name, tmp_path, **options))
    for split in written:
        same(read[split], written[split], name, split)


def test_a_sample_without_truth_says_so(tmp_path: Path) -> None:
    layouts.lasers(tmp_path, public=True)
    sample = reader("lasers", tmp_path).split("test")[0]
    assert (sample.target_mask, sample.weak_labels) == (None, None)
    with pytest.raises(
        ConfigError, match=r"data split 'test': .* has neither a mask nor boxes .*evaluation\.test_split"
    ):
        reader("lasers", tmp_path).split("test").check_truth()
    reader("lasers", tmp_path).split("train").check_truth()
    one = reader("lasers", tmp_path, axis="short").split("test")
    assert [record.attributes["axis"] for record in one.records] == ["short"]


def test_each_question_has_its_own_thought_and_sort(tmp_path: Path) -> None:
    layouts.geoseg(tmp_path / "a")
    read = samples(reader("geoseg_bench_unigeoseg", tmp_path / "a", question="all"))["train"]
    assert [s.reasoning for s in read[:2]] == ["Because of 1.", "For 1."]
    layouts.drseg(tmp_path / "b")
    read = samples(reader("drseg", tmp_path / "b", question="all"))["train"]
    assert [s.attributes for s in read[:2]] == [{"reasoning_type": "spatial"}, {"reasoning_type": "attribute"}]
    assert [s.reasoning for s in read[:2]] == ["The cars wait.", "A car."]
    texts = {"question": ["one?", "two?"], "reason": ["Only one."]}
    (tmp_path / "a/intera/json/1.json").write_text(json.dumps(texts))
    read = samples(reader("geoseg_bench_unigeoseg", tmp_path / "a", question="all"))["train"]
    assert [s.reasoning for s in read[:2]] == ["Only one.", "Only one."]


@pytest.mark.parametrize("name", ["earthreason_fs", "geopixinstruct"])
def test_boxes_in_place_of_masks(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    sample = reader(name, tmp_path, truth="boxes").split("train")[0]
    boxes = [(1, 4, 11, 20), (30, 30, 44, 40)] if name == "earthreason_fs" else [(1, 4, 11, 20)]
    assert sample.target_mask is None
    assert sample.weak_labels == tuple(SpatialPrompt(box=box) for box in boxes)


def test_units_of_boxes(tmp_path: Path) -> None:
    layouts.vrsbench_fs(tmp_path)
    path = tmp_path / "train_1shot.jsonl"
    entry = {"images": "images/1.png", "problem": "it", "answer": [25, 50, 50, 100], "category": "ship"}
    layouts.lines(path, [entry])
    (sample,) = samples(reader("vrsbench_fs", tmp_path, shot_file=1, unit="percent"), ["train"])["train"]
    assert sample.weak_labels == (SpatialPrompt(box=(16, 28, 32, 56)),)
    layouts.lines(path, [{**entry, "answer": []}])
    (sample,) = samples(reader("vrsbench_fs", tmp_path, shot_file=1), ["train"])["train"]
    assert sample.weak_labels == ()


def test_cues_of_grasp1k_have_points_and_a_mask_is_the_truth(tmp_path: Path) -> None:
    layouts.grasp1k(tmp_path)
    first, second = reader("grasp1k", tmp_path).split("train")[0].weak_labels or ()
    assert (first.point_coords, first.point_labels) == (((3, 6),), (1,))
    assert (second.point_coords, second.point_labels) == (((40, 30.5), (1, 1)), (1, 0))
    layouts.save(tmp_path / "m.png", layouts.boxes_mask((2, 3, 9, 9)))
    lines(tmp_path / "train.jsonl", lambda v: v[0].update(mask="m.png"))
    sample = reader("grasp1k", tmp_path).split("train")[0]
    assert sample.target_mask is not None
    assert [weak_label.box for weak_label in sample.weak_labels or ()] == [(2, 3, 9, 9)]


def test_a_folder_without_splits_draws_images(tmp_path: Path) -> None:
    layouts.folder(tmp_path)
    path = tmp_path / "questions.csv"
    path.write_text("".join(f"{row.split(chr(44))[0]};q {n}\n" if n else "image;question\n" for n, row in enumerate(path.read_text().splitlines())))  # fmt: skip
    assert reader("folder", tmp_path).splits() == ["train"]
    shares = {"train": 0.5, "val": 0.25, "test": 0.25}
    drawn = samples(reader("folder", tmp_path, fractions=shares))
    assert {split: len(found) for split, found in drawn.items()} == {"train": 4, "val": 2, "test": 2}
    assert "data.fractions" in refusal(lambda: reader("folder", tmp_path, fractions={"train": 0.5}))
    (tmp_path / "other.csv").touch()
    assert "found other.csv, questions.csv" in refusal(lambda: reader("folder", tmp_path))
    assert len(reader("folder", tmp_path, table="questions.csv").split("train")) == 8
    (tmp_path / "masks/3.png").rename(tmp_path / "masks/33.png")
    said = refusal(lambda: reader("folder", tmp_path, table="questions.csv").split("train"))
    assert said.startswith(f"{path}:4: no mask 3.png in {tmp_path}/masks; put it there")


def test_two_objects_of_a_child_without_a_tag(tmp_path: Path) -> None:
    layouts.dior_rsvg(tmp_path)
    path = tmp_path / "Annotations/00001.xml"
    path.write_text(path.read_text().replace("bndbox>", "box>"))
    assert reader("dior_rsvg", tmp_path).split("train")[0].weak_labels == (SpatialPrompt(box=(1, 4, 11, 20)),)


def test_the_rounding_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layouts.vrsbench(tmp_path)
    caplog.set_level("INFO")
    samples(reader("vrsbench", tmp_path))
    assert [m for m in caplog.messages if "1 %" in m] == [
        "vrsbench: boxes are rounded to 1 % of the image; data.truth=corner takes finer ones"
    ]


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("risbench_arrow", "validation"), ("earthreason_fs", "val.jsonl"), ("vrsbench_fs", "val.jsonl"),
        ("nwpu_fs", "nwpu_exist_cat.json"), ("nwpu_fs", "positive_image_set"), ("nwpu_fs", "annotations_val_set_10shot.json"),
        ("geopixinstruct", "data"), ("dior_rsvg", "JPEGImages"), ("dior_rsvg", "val.txt"), ("dior_rsvg", "Annotations"),
        ("vrsbench", "Images_val"), ("vrsbench", "Annotations_val"), ("lasers", "train/annotations"), ("lasers", "train/images"),
        ("drseg", "labels"), ("drseg", "CODrone/DRval"), ("remotesam_270k", "triplets_train.json"),
        ("remotesam_270k", "JPEGImages"), ("grasp1k", "val.jsonl"),
    ],
)  # fmt: skip
def test_a_missing_half_is_named(name: str, half: str, tmp_path: Path) -> None:
    written = WRITERS[name](tmp_path / "set")
    (tmp_path / "set" / half).rename(tmp_path / "elsewhere")
    said = refusal(lambda: reader(name, tmp_path / "set").split("val" if "val" in written else "train"))
    assert str(tmp_path / "set") in said
    assert "data.root is the folder" in said


def lines(path: Path, edit: Callable[[Any], Any]) -> None:
    """Change the objects in a JSON, JSON lines or Parquet file in place."""
    if path.suffix == ".jsonl":
        value: Any = [json.loads(line) for line in path.read_text().splitlines()]
        edit(value)
        layouts.lines(path, value)
    elif path.suffix == ".parquet":
        value = pa.parquet.read_table(path).to_pylist()
        edit(value)
        pa.parquet.write_table(pa.Table.from_pylist(value), path)
    else:
        value = json.loads(path.read_text())
        edit(value)
        path.write_text(json.dumps(value))


GEOPIX, DRSEG, LASERS = "data/train-SIOR_T.parquet", "labels/DRSeg_train.json", "train/annotations/train_ann.json"
VRS, RSAM, TRIPLETS = "Annotations_train/P0001.json", "triplets_train.json", "train.json"
BROKEN: dict[str, tuple[str, str, Callable[[Any], Any], list[str]]] = {
    "fs id twice": ("earthreason_fs", "train_10shot.jsonl", lambda v: v[1].update(id=1), ["jsonl:2: the id '1' is also that of", "jsonl:1"]),
    "fs no id": ("earthreason_fs", "train_10shot.jsonl", lambda v: v[1].pop("id"), ["jsonl:2: id: must be text or a whole number"]),
    "fs no mask": ("earthreason_fs", "train_10shot.jsonl", lambda v: v[1].update(mask=None), ["jsonl:2: mask: must be text"]),
    "fs out": ("earthreason_fs", "train_10shot.jsonl", lambda v: v[1].update(mask="../x.png"), ["jsonl:2: ", "leads out of its folder"]),
    "fs box": ("earthreason_fs", "train_10shot.jsonl", lambda v: v[0].update(bbox_list=[[1, 2, 1, 4]]), ["jsonl:1: boxes=", "x0 < x1"]),
    "fs question": ("earthreason_fs", "train_10shot.jsonl", lambda v: v[0].update(problem="<image> "), ["jsonl:1: question 0: query=''"]),
    "rl answer": ("vrsbench_rl", "train.jsonl", lambda v: v[0].update(answer={}), ["jsonl:1: answer: must be a box"]),
    "rl images": ("vrsbench_rl", "train.jsonl", lambda v: v[0].update(images=["a", "b"]), ["jsonl:1: images: must be one image, found 2"]),
    "rl out": ("vrsbench_rl", "train.jsonl", lambda v: v[0].update(images=["/etc/x.png"]), ["jsonl:1: ", "must be relative"]),
    "nwpu class": ("nwpu_fs", "nwpu_exist_cat.json", lambda v: v["1"].append("tree"), ["image 1: 'tree' is not in categories of"]),
    "nwpu no box": ("nwpu_fs", "annotations_train_set_10shot.json", lambda v: v["annotations"].pop(2), ["image 1: 'storage_tank' has no box in"]),
    "nwpu not listed": ("nwpu_fs", "nwpu_exist_cat.json", lambda v: v.pop("1"), ["image 1: must be a list of the classes"]),
    "nwpu class twice": ("nwpu_fs", "nwpu_exist_cat.json", lambda v: v["1"].append("ship"), ["the id '1-ship' is also that of"]),
    "neither order": ("geopixinstruct", GEOPIX, lambda v: [i.update(bbox=[40, 50, 60, 55]) for e in v for i in e["instances"]], ["parquet: bbox fits the masks neither as", "(mean IoU 0.0", "in 8 instances; download"]),
    "geopix no mask": ("geopixinstruct", GEOPIX, lambda v: [i.pop("mask") for e in v for i in e["instances"]], ["no instance with bbox and mask; see"]),
    "geopix id twice": ("geopixinstruct", GEOPIX, lambda v: v[0]["instances"][1].update(instance_id=0), ["row 0, instance 1: the id '1-0' is also"]),
    "geopix out": ("geopixinstruct", GEOPIX, lambda v: v[0].update(image_path="../x"), ["row 0, instance 0: ", "leads out of its folder"]),
    "geopix column": ("geopixinstruct", GEOPIX, lambda v: [e.pop("image_path") for e in v], ["parquet: no column image_path, found image_id, instances; see"]),
    "vrs frame": ("vrsbench", VRS, lambda v: v["objects"][1].update(obj_coord=[10, 10, 20, 20]), ["object 1: obj_coord: ", "must be shares"]),
    "vrs no box": ("vrsbench", VRS, lambda v: v["objects"][1].pop("obj_coord"), ["object 1: obj_coord: no box in it"]),
    "vrs objects": ("vrsbench", VRS, lambda v: v.pop("objects"), ["P0001.json: objects: must be a list"]),
    "vrs image": ("vrsbench", VRS, lambda v: v.update(image="../x.png"), ["P0001.json, object 1: ", "leads out of its folder"]),
    "lasers count": ("lasers", LASERS, lambda v: v[1].update(answer="[SEG]"), ["entry 1: mask: 2 masks and 1 [SEG] in its answer, must be as many"]),
    "lasers no mask": ("lasers", LASERS, lambda v: v[1].pop("mask"), ["entry 1: mask: must be a list of run lengths; only files of test"]),
    "lasers rle": ("lasers", LASERS, lambda v: v[1].update(mask=[3, 4]), ["entry 1: rle=3: must be"]),
    "lasers id twice": ("lasers", LASERS, lambda v: v[1].update(id=1), ["entry 1: the id '1' is also"]),
    "triplet file": ("geoseg_bench_unigeoseg", TRIPLETS, lambda v: v[1].update(json="gone.json"), ["entry 1: json='gone.json': no such file"]),
    "triplet out": ("geoseg_bench_unigeoseg", TRIPLETS, lambda v: v[1].update(img="../a.png"), ["entry 1: ", "leads out of its folder"]),
    "triplet twice": ("geoseg_bench_unigeoseg", TRIPLETS, lambda v: v.append(v[0]), ["entry 4: the id 'intera/json/1' is also"]),
    "triplet texts": ("geoseg_bench_unigeoseg", "intera/json/1.json", lambda v: v.pop("reason"), ["entry 0: reason: must be a list"]),
    "no list": ("geoseg_bench_unigeoseg", TRIPLETS, lambda v: v.append(3), ["entry 4: must be an object"]),
    "drseg degenerate": ("drseg", DRSEG, lambda v: v[1].update(ann_list=[{"segmentation": [1, 2, 3, 4]}]), ["entry 1: ann_list: no polygon of three or more points"]),
    "drseg odd": ("drseg", DRSEG, lambda v: v[1]["ann_list"][0].update(segmentation="x"), ["entry 1: segmentation: must be a list"]),
    "drseg out": ("drseg", DRSEG, lambda v: v[1].update(id="../../x"), ["entry 1: ", "leads out of its folder"]),
    "rsam box": ("remotesam_270k", RSAM, lambda v: v[1].update(mask=[[1, 2, 3]]), ["entry 1: boxes=[[1, 2, 3]]: box 0 must be"]),
    "rsam none": ("remotesam_270k", RSAM, lambda v: v[1].pop("mask"), ["entry 1: boxes=None: must be a list"]),
    "grasp points": ("grasp1k", TRIPLETS + "l", lambda v: v[0]["points"].pop(), ["jsonl:1: points: must be a list of [x, y, 1 or 0] for each of 2 boxes"]),
    "grasp label": ("grasp1k", TRIPLETS + "l", lambda v: v[0]["points"][0][0].__setitem__(2, 3), ["jsonl:1: points: must be"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_named(kind: str, tmp_path: Path) -> None:
    name, file, edit, words = BROKEN[kind]
    WRITERS[name](tmp_path)
    lines(tmp_path / file, edit)
    said = refusal(lambda: reader(name, tmp_path).split("train"))
    assert str(tmp_path) in said
    assert said.count(str(tmp_path / file)) <= 2
    assert all(word in said for word in words), said
    assert "; " in said or " must be " in said


def test_what_is_found_when_a_sample_is_asked_for(tmp_path: Path) -> None:
    layouts.drseg(tmp_path / "a")
    lines(tmp_path / "a" / DRSEG, lambda v: v[0].update(ann_list=[{"segmentation": [3.1, 3.1, 3.2, 3.1, 3.2, 3.2]}]))
    split = reader("drseg", tmp_path / "a").split("train")
    assert "entry 0: ann_list: no polygon in it holds a pixel of the image; leave" in refusal(lambda: split[0])
    layouts.grasp1k(tmp_path / "b")
    lines(tmp_path / "b/train.jsonl", lambda v: v[0]["points"][0][0].__setitem__(0, 99))
    split = reader("grasp1k", tmp_path / "b").split("train")
    assert "jsonl:1: boxes: point [99, 30.5] is outside the image of 64 x 56; give" in refusal(lambda: split[0])


def test_a_line_that_is_no_json_can_be_left_out(tmp_path: Path) -> None:
    layouts.grasp1k(tmp_path)
    path = tmp_path / "train.jsonl"
    path.write_text(path.read_text().replace("\n", "\n{torn\n", 1))
    assert "jsonl:2: not JSON (" in refusal(lambda: reader("grasp1k", tmp_path).split("train"))
    assert len(reader("grasp1k", tmp_path, on_bad="skip").split("train")) == layouts.SPLITS["train"]


def test_numbers_that_do_not_fit_the_objects(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layouts.dior_rsvg(tmp_path)
    shutil.copy(tmp_path / "Annotations/00001.xml", tmp_path / "Annotations/00009.xml")
    assert len(reader("dior_rsvg", tmp_path).split("train")) == 8
    assert [m for m in caplog.messages if "18 objects, and the splits count 16; see that no file is added" in m]
    (tmp_path / "Annotations/00009.xml").unlink()
    gone = tmp_path / "Annotations/00003.xml"
    gone.rename(tmp_path / "00003.xml")
    said = refusal(lambda: reader("dior_rsvg", tmp_path).split("train"))
    assert "Annotations: 14 objects in its XML files, and the splits count 16; a missing file shifts" in said
    shutil.move(tmp_path / "00003.xml", gone)
    (tmp_path / "train.txt").write_text("0\none\n")
    assert "train.txt:2: 'one' must be the number of an object" in refusal(
        lambda: reader("dior_rsvg", tmp_path).split("train")
    )
    (tmp_path / "train.txt").write_text("0\n1\n0\n")
    assert "train.txt:3 (object 0): the id '0' is also" in refusal(lambda: reader("dior_rsvg", tmp_path).split("train"))
    gone.write_text(gone.read_text().replace("description>", "caption>").replace("<xmin>3<", "<xmin>x<"))
    (tmp_path / "train.txt").write_text("4\n5\n")
    said = refusal(lambda: reader("dior_rsvg", tmp_path).split("train"))
    assert "train.txt:1 (object 4): " in said
    assert "bndbox: must have xmin" in said
    assert "(and 1 more)" in said  # a text that is missing is not made up from the name


XML = {
    "cut short": (b"<a><b></b>", "not plain XML (no element found"),
    "an entity": (b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "it declares entities"),
    "entities of entities": (
        b'<!DOCTYPE a [<!ENTITY b "cccccccc"><!ENTITY d "&b;&b;&b;">]><a>&d;</a>', "it declares entities",
    ),
    "a file": (b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>', "it declares entities"),
    "an entity in UTF-16": ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'.encode("utf-16"), "it declares entities"),
    "depth": (b"<a>" * 1000, "more than 100 elements within one another"),
    "nothing": (b"", "not plain XML (no element found"),
    "an encoding": (b"<?xml version='1.0' encoding='x-no'?><a/>", "not plain XML (unknown encoding"),
}  # fmt: skip


@pytest.mark.parametrize("kind", XML)
def test_xml_of_strangers(kind: str, tmp_path: Path) -> None:
    layouts.dior_rsvg(tmp_path)
    data, words = XML[kind]
    path = tmp_path / "Annotations/00002.xml"
    path.write_bytes(data)
    said = refusal(lambda: reader("dior_rsvg", tmp_path).split("train"))
    assert said.startswith(f"{path}: ")
    assert words in said
    assert said.endswith("it may be cut short, download it again")


def test_xml_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.dior_rsvg(tmp_path)
    monkeypatch.setattr(xml_files, "MAX_BYTES", 100)
    assert "more than 0 MiB of XML; take it out" in refusal(lambda: reader("dior_rsvg", tmp_path).split("train"))


@pytest.mark.parametrize("stream", [True, False])
def test_an_arrow_file_that_is_cut_short_anywhere(stream: bool, tmp_path: Path) -> None:
    path, part = tmp_path / "x.arrow", tmp_path / "part.arrow"
    columns = {"image": [{"bytes": b"abc", "path": None}] * 3, "mask": [b"d"] * 3, "phrase": ["x"] * 3}
    layouts.arrow(path, columns, stream=stream)
    data = path.read_bytes()
    assert tables.stored_bytes(tables.open_arrow(path, list(columns)), "image", 2) == b"abc"
    for length in range(0, len(data), 4):
        part.write_bytes(data[:length])
        said = refusal(lambda: tables.open_arrow(part, list(columns)))
        assert said.startswith(f"{part}: a damaged Arrow file (")
        assert said.endswith("it may be cut short, download it again")


def test_an_arrow_file_with_any_damage_is_read_or_named(tmp_path: Path) -> None:
    path, rng = tmp_path / "x.arrow", np.random.default_rng(0)
    layouts.arrow(path, {"image": [b"abc"] * 3, "phrase": ["x"] * 3})
    sound, said = path.read_bytes(), []
    for _ in range(1000):
        damaged = bytearray(sound)
        damaged[rng.integers(len(damaged))] = rng.integers(256)
        (tmp_path / "y.arrow").write_bytes(damaged)
        try:
            table = tables.open_arrow(tmp_path / "y.arrow", ["image", "phrase"])
            assert len(table.column("phrase").to_pylist()) == len(table)
            for row in range(len(table)):
                tables.stored_bytes(table, "image", row)
        except ConfigError as error:
            said.append(str(error))
    assert len(said) > 100
    assert not any("\n" in text for text in said)


def test_a_set_of_arrow_files_that_is_not_whole(tmp_path: Path) -> None:
    layouts.risbench_arrow(tmp_path)
    path = tmp_path / "train/data-00001-of-00002.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    said = refusal(lambda: reader("risbench_arrow", tmp_path).split("train"))
    assert said.startswith(f"{path}: a damaged Arrow file (")
    path.unlink()
    said = refusal(lambda: reader("risbench_arrow", tmp_path).split("train"))
    assert said == f"{tmp_path}/train: found 1 files data-*.arrow and not the 2 of them; download the split whole"
    layouts.arrow(path, {"image": ["a.png"], "mask": ["a.png"], "phrase": [3]})
    said = refusal(lambda: reader("risbench_arrow", tmp_path).split("train"))
    assert said == f"{path}: phrase must be a column of text; see that this is the right file"
    path.unlink()
    layouts.arrow(path, {"image": ["a.png"], "mask": ["a.png"], "phrase": ["x"]})
    split = reader("risbench_arrow", tmp_path).split("train")
    said = refusal(lambda: split[2])
    assert said.startswith(f"{path}: row 0: image: must hold the bytes of an image file, found str; save the set")
    assert split.files(3) == [tmp_path / "train/data-00000-of-00002.arrow", path]


def test_a_cell_that_is_no_image(tmp_path: Path) -> None:
    layouts.risbench_arrow(tmp_path)
    path = tmp_path / "train/data-00000-of-00001.arrow"
    for old in (tmp_path / "train").iterdir():
        old.unlink()
    layouts.save(tmp_path / "a.png", layouts.picture(1))
    layouts.arrow(path, {"image": [(tmp_path / "a.png").read_bytes(), b"no"], "mask": [b"no"] * 2, "phrase": ["x"] * 2})
    split = reader("risbench_arrow", tmp_path).split("train")
    for index, column in enumerate(("mask", "image")):
        said = refusal(lambda n=index: split[n])
        assert said.startswith(f"{path}: row {index}: {column}: {column}: ")


def test_a_table_that_is_cut_short_or_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.geopixinstruct(tmp_path)
    path = tmp_path / GEOPIX
    data = path.read_bytes()
    for length in (0, 5, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        said = refusal(lambda: reader("geopixinstruct", tmp_path).split("train"))
        assert said.startswith(f"{path}: a damaged Parquet file (")
    path.write_bytes(data)
    monkeypatch.setattr(tables, "MAX_UNPACKED", 100)
    assert "unpacks to 0.0 GiB, more than" in refusal(lambda: reader("geopixinstruct", tmp_path).split("train"))


def test_pyarrow_waits_until_a_table_is_opened() -> None:
    readers = ["risbench_arrow", "geopixinstruct", "nwpu_fs"]
    code = "import sys\n" + "".join(f"import grasp_rl.data.readers.{name}\n" for name in readers)
    subprocess.run([sys.executable, "-c", code + "assert 'pyarrow' not in sys.modules"], check=True)


def test_one_file_of_a_split(tmp_path: Path) -> None:
    layouts.nwpu_fs(tmp_path)
    shutil.copy(tmp_path / "annotations_train_set_10shot.json", tmp_path / "annotations_train_set_5shot.json")
    said = refusal(lambda: reader("nwpu_fs", tmp_path).split("train"))
    assert "one file is wanted, found annotations_train_set_10shot.json, annotations_train_set_5shot.json; data" in said
    assert "data.template='all': must be with {category}, such as" in refusal(
        lambda: reader("nwpu_fs", tmp_path, template="all")
    )


def test_run_lengths_cannot_claim_memory(tmp_path: Path) -> None:
    layouts.geopixinstruct(tmp_path, form="json")
    huge = {"size": [10**6, 10**6], "counts": [10**12]}
    lines(tmp_path / "data/train-SIOR_T.json", lambda v: v[0]["instances"][0].update(mask=huge))
    split = reader("geopixinstruct", tmp_path).split("train")
    assert "size [1000000, 1000000] for an image of [56, 64]" in refusal(lambda: split[0])


ODD = [
    None,
    3,
    -1,
    "x",
    "",
    [],
    {},
    1e308,
    True,
    10**400,
    [[]],
    [None],
    {"a": 1},
    float("nan"),
    "../x",
    "\ud800",
    [1, 2],
]
"""Values that a stranger's file may have anywhere."""


def places_in(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys and indices that lead to every value within ``value``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*place, key)
        yield from places_in(inner, (*place, key))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("earthreason_fs", "train_10shot.jsonl"), ("vrsbench_rl", "train.jsonl"), ("nwpu_fs", "nwpu_exist_cat.json"),
        ("nwpu_fs", "annotations_train_set_10shot.json"), ("geopixinstruct", "data/train-SIOR_T.json"), ("vrsbench", VRS),
        ("lasers", LASERS), ("geoseg_bench_unigeoseg", TRIPLETS), ("geoseg_bench_unigeoseg", "intera/json/1.json"),
        ("drseg", DRSEG), ("remotesam_270k", RSAM), ("grasp1k", "train.jsonl"),
    ],
)  # fmt: skip
def test_any_odd_value_is_read_or_named(name: str, file: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path, **({"form": "json"} if name == "geopixinstruct" else {}))
    path, rng = tmp_path / file, np.random.default_rng(0)
    sound, said = path.read_bytes(), []

    def spoil(value: Any) -> None:
        *way, last = (places := list(places_in(value)))[rng.integers(len(places))]
        for key in way:
            value = value[key]
        value[last] = ODD[rng.integers(len(ODD))]

    for _ in range(60):
        lines(path, spoil)
        try:
            split = reader(name, tmp_path).split("train")
            for index in range(len(split)):
                json.dumps(dict(split[index].attributes), allow_nan=False)
        except ConfigError as error:
            said.append(str(error))
        path.write_bytes(sound)
    assert len(said) > 10
    assert all(str(tmp_path) in text and "\n" not in text for text in said), said


def test_the_class_that_a_question_asks_for_is_that_of_its_instances(tmp_path: Path) -> None:
    """prompt=detection demonstrates it, and rewards compare it with what an answer names."""
    WRITERS["nwpu_fs"](tmp_path)
    for sample in samples(reader("nwpu_fs", tmp_path), ["train"])["train"]:
        assert sample.weak_labels
        assert {label.category for label in sample.weak_labels} == {sample.attributes["category"]}
