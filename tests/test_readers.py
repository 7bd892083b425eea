"""Readers of published layouts: exactly what was written, in any order on disk, and one sentence for what is broken."""

from __future__ import annotations

import builtins
import contextlib
import importlib
import json
import os
import pickle
import re
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import grasp_rl.conf
import numpy as np
import pytest
import yaml

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.base import RecordDataset
from grasp_rl.data.readers.refer import read_plain_pickle
from grasp_rl.rehearsal import layouts
from grasp_rl.rehearsal.layouts import WRITERS, Written
from grasp_rl.types import Sample

ROOT = Path(__file__).parents[1]
CONF = Path(next(iter(grasp_rl.conf.__path__))) / "data"


def reader(name: str, root: Path, **options: Any) -> RecordDataset:
    """The dataset that ``data=NAME`` makes."""
    arguments = yaml.safe_load((CONF / f"{name}.yaml").read_text()) | {"root": str(root), **options}
    module, _, cls = arguments.pop("_target_").rpartition(".")
    dataset: RecordDataset = getattr(importlib.import_module(module), cls)(**arguments)
    return dataset


def samples(dataset: RecordDataset, names: Iterable[str] | None = None) -> dict[str, list[Sample]]:
    splits = {name: dataset.split(name) for name in names or dataset.splits()}
    return {name: [split[index] for index in range(len(split))] for name, split in splits.items()}


def same(read: list[Sample], written: list[Written], name: str, split: str, question: int = 0) -> None:
    """Demand that ``read`` is what was written, by the order of ids."""
    number = f"#{question}" if question else ""
    assert sorted(s.sample_id for s in read) == sorted(w.sample_id + number for w in written)
    by_id = {w.sample_id + number: w for w in written}
    for sample in read:
        of = by_id[sample.sample_id]
        assert (sample.query, sample.dataset, sample.split) == (of.queries[question], name, split)
        assert (sample.reasoning, sample.attributes) == (of.reasoning, of.attributes)
        np.testing.assert_array_equal(sample.image, of.image)
        assert (sample.target_mask is None) == (of.mask is None)
        if of.mask is not None:
            np.testing.assert_array_equal(sample.target_mask, of.mask)
            assert bool(sample.weak_labels) == bool(of.mask.any())
        if of.boxes is not None:
            boxes = [weak_label.box for weak_label in sample.weak_labels or ()]
            np.testing.assert_allclose(np.reshape(boxes, (-1, 4)), np.reshape(sorted(map(list, of.boxes)), (-1, 4)))


def refusal(dataset: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError) as refused:
        dataset()
    said = str(refused.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize("name", WRITERS)
def test_what_was_written_is_read(name: str, tmp_path: Path) -> None:
    written = WRITERS[name](tmp_path)
    read = samples(reader(name, tmp_path), written)
    for split in written:
        same(read[split], written[split], name, split)


@pytest.mark.parametrize("name", ["rrsis_d", "earthreason"])
def test_every_question_is_read(name: str, tmp_path: Path) -> None:
    written = WRITERS[name](tmp_path)["train"]
    read = samples(reader(name, tmp_path, question="all"))["train"]
    for question in (0, 1):
        same([s for s in read if ("#" in s.sample_id) == bool(question)], written, name, "train", question)


@pytest.mark.parametrize("variant", layouts.EARTHREASON)
def test_variants_of_earthreason(variant: str, tmp_path: Path) -> None:
    suffix, asked = (".png", ".json") if variant == "plain" else (".PNG", ".txt")
    written = layouts.earthreason(tmp_path, variant, suffix, asked)
    read = samples(reader("earthreason", tmp_path))
    for split in written:
        same(read[split], written[split], "earthreason", split)


@pytest.mark.parametrize("name", WRITERS)
def test_the_order_on_disk_does_not_matter(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = WRITERS[name](tmp_path)

    def read() -> list[tuple[str, str]]:
        found = samples(reader(name, tmp_path, question="seeded"), written)
        return [(s.sample_id, s.query) for split in sorted(found) for s in found[split]]

    before, listdir, iterdir = read(), os.listdir, Path.iterdir
    monkeypatch.setattr(os, "listdir", lambda *a: sorted(listdir(*a), reverse=True))
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(sorted(iterdir(path), reverse=True)))
    assert read() == before


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("refsegrs", ["output_phrase_train.txt", "images/1.tif", "masks/1.tif"]),
        ("rrsis_d", ["rrsisd/refs(unc).p", "rrsisd/instances.json", "images/rrsisd/JPEGImages/00001.png"]),
        ("earthreason", ["train/QAs/1.json", "train/images/1.png", "train/labels/1.png"]),
    ],
)
def test_a_reader_names_its_files(name: str, files: list[str], tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    assert reader(name, tmp_path).split("train").files(1) == [tmp_path / file for file in files]


@pytest.mark.parametrize("name", WRITERS)
def test_no_such_split_or_folder(name: str, tmp_path: Path) -> None:
    written = WRITERS[name](tmp_path)
    said = refusal(lambda: reader(name, tmp_path).split("tset"))
    assert said.startswith(f"data split 'tset': {name} has ")
    assert all(split in said for split in written)
    said = refusal(lambda: reader(name, tmp_path / "nowhere").split("train"))
    assert said.startswith(f"{tmp_path}/nowhere")
    assert "data.root is the folder" in said


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("refsegrs", "masks"), ("refsegrs", "output_phrase_train.txt"), ("risbench", "img_rgb"),
        ("rrsis_d", "rrsisd/instances.json"), ("rrsis_d", "rrsisd/refs(unc).p"), ("ris_lad", "images/ris_lad/JPEGImages"),
        ("earthreason", "train/labels"), ("earthreason", "train/QAs"), ("earthreason", "train/images"),
    ],
)  # fmt: skip
def test_a_missing_half_is_named(name: str, half: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    (tmp_path / half).rename(tmp_path / "elsewhere")
    said = refusal(lambda: reader(name, tmp_path).split("train"))
    assert all(part in said for part in Path(half).parts)
    assert "data.root is the folder" in said


def _edited(path: Path, edit: Callable[[Any], Any]) -> None:
    """Change what is in a pickle or JSON file in place."""
    if path.suffix == ".p":
        value = pickle.loads(path.read_bytes())
        edit(value)
        path.write_bytes(pickle.dumps(value))
    else:
        value = json.loads(path.read_text())
        edit(value)
        path.write_text(json.dumps(value))


REFS, INSTANCES = "rrsisd/refs(unc).p", "rrsisd/instances.json"
BROKEN: dict[str, tuple[str, str, Callable[[Any], Any], list[str]]] = {
    "another id": ("rrsis_d", REFS, lambda v: v[1].update(image_id=3), ["reference 1 (ref_id 2)", "image_id 3: must be ref_id", "same_ids"]),
    "id twice": ("rrsis_d", REFS, lambda v: v.append(dict(v[0])), ["reference 8", "'1' is also that of", "reference 0"]),
    "no ids": ("rrsis_d", REFS, lambda v: v[0].pop("ann_id"), ["reference 0", "ann_id: must be a whole number"]),
    "no list": ("rrsis_d", REFS, lambda v: v.append(3), ["the file must be a list of objects"]),
    "no sentence": ("rrsis_d", REFS, lambda v: v[0].update(sentences=[]), ["reference 0", "no question"]),
    "no raw": ("rrsis_d", REFS, lambda v: v[0]["sentences"][0].pop("raw"), ["reference 0", "sentences: must be"]),
    "no annotation": ("rrsis_d", REFS, lambda v: v[0].update(ann_id=9), ["reference 0", "9 is not in annotations of"]),
    "of another image": ("rrsis_d", INSTANCES, lambda v: v["annotations"][0].update(image_id=2), ["ann_id 501 is of image 2"]),
    "out of the folder": ("rrsis_d", INSTANCES, lambda v: v["images"][0].update(file_name="../x.png"), ["'../x.png': leads out of its folder"]),
    "from the top": ("rrsis_d", INSTANCES, lambda v: v["images"][0].update(file_name="/x.png"), ["'/x.png': must be relative"]),
    "no mask": ("rrsis_d", INSTANCES, lambda v: v["annotations"][0].update(segmentation=[]), ["segmentation: must be"]),
    "two corners": ("rrsis_d", INSTANCES, lambda v: v["annotations"][0].update(segmentation=[[1, 2, 3, 4]]), ["segmentation: polygons", "ring 0"]),
    "odd values": ("rrsis_d", INSTANCES, lambda v: v["annotations"][0]["segmentation"][0].append(3), ["segmentation: polygons", "ring 0 must be a list of three or more points [x, y]"]),
    "odd counts": ("rrsis_d", INSTANCES, lambda v: v["annotations"][1].update(segmentation=[{"size": [2, 3]}]), ["segmentation: rle", "counts"]),
    "no image": ("rrsis_d", INSTANCES, lambda v: v["images"].pop(0), ["reference 0", "1 is not in images of"]),
    "no images": ("rrsis_d", INSTANCES, lambda v: v.pop("images"), ["instances.json: images must be a list"]),
    "no answer": ("earthreason", "train/QAs/2.json", lambda v: v.pop("answer"), ["2.json: answer: must be a list"]),
    "no questions": ("earthreason", "train/QAs/2.json", lambda v: v.update(questions=[]), ["2.json: no question"]),
    "odd answer": ("earthreason", "train/QAs/2.json", lambda v: v.update(answer=[3]), ["2.json: answer 0: reasoning=3"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_named(kind: str, tmp_path: Path) -> None:
    name, file, edit, words = BROKEN[kind]
    WRITERS[name](tmp_path)
    _edited(tmp_path / file, edit)
    said = refusal(lambda: reader(name, tmp_path).split("train"))
    assert str(tmp_path) in said
    assert all(word in said for word in words), said
    assert "; " in said or " must be " in said


def test_a_category_that_is_none_is_left_out(tmp_path: Path) -> None:
    layouts.refer(tmp_path, folder="rrsisd")
    for number, odd in enumerate(([1], 77, None)):
        _edited(tmp_path / INSTANCES, lambda v, n=number, odd=odd: v["annotations"][n].update(category_id=odd))
    read = samples(reader("rrsis_d", tmp_path))["train"]
    assert [sample.attributes for sample in read] == [{}, {}, {}, {"category": "ship"}]


def test_the_ids_of_other_sets_may_differ(tmp_path: Path) -> None:
    layouts.refer(tmp_path, folder="rrsisd", same_ids=False)
    assert "data.same_ids=false" in refusal(lambda: reader("rrsis_d", tmp_path).split("train"))
    assert len(reader("rrsis_d", tmp_path, same_ids=False).split("train")) == layouts.SPLITS["train"]


@pytest.mark.parametrize("place", [1, 7, 100, 1000, -1])
def test_a_pickle_that_is_cut_short(place: int, tmp_path: Path) -> None:
    layouts.refer(tmp_path, folder="rrsisd")
    path = tmp_path / REFS
    path.write_bytes(path.read_bytes()[:place])
    said = refusal(lambda: reader("rrsis_d", tmp_path).split("train"))
    assert said.startswith(f"{path}: ")
    assert "download it" in said


def test_any_damage_of_a_pickle_is_one_sentence(tmp_path: Path) -> None:
    layouts.refer(tmp_path, folder="rrsisd")
    path, rng = tmp_path / REFS, np.random.default_rng(0)
    sound, said = path.read_bytes(), []
    for _ in range(500):
        damaged = bytearray(sound)
        damaged[rng.integers(len(damaged))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_plain_pickle(path)
        except ConfigError as error:
            said.append(str(error))
    assert len(said) > 100
    assert all(text.startswith(f"{path}: ") and "\n" not in text for text in said)


@pytest.mark.parametrize(
    "data",
    [b"\x80\x02]r\xff\xff\xff\x3f.", b"\x80\x05\x96" + (1 << 33).to_bytes(8, "little") + b"."],
    ids=["number of a value", "byte array"],
)
def test_a_pickle_cannot_claim_memory(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.p").write_bytes(data)
    tracemalloc.start()
    with contextlib.suppress(ConfigError):
        read_plain_pickle(tmp_path / "x.p")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6


class Call:
    """Unpickles as what ``function(*words)`` returns."""

    def __init__(self, function: Any, *words: Any) -> None:
        self.made = function, words

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.made


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("way", ["os.system", "exec", "eval", "open", "class"])
def test_nothing_in_a_pickle_is_run(way: str, protocol: int, tmp_path: Path) -> None:
    layouts.refer(tmp_path, folder="rrsisd")
    canary = tmp_path / "canary"
    sly = {
        "os.system": Call(os.system, f"touch {canary}"),
        "exec": Call(builtins.exec, f"open({str(canary)!r}, 'w')"),
        "eval": Call(builtins.eval, f"open({str(canary)!r}, 'w')"),
        "open": Call(builtins.open, str(canary), "w"),
        "class": canary,
    }[way]
    path = tmp_path / REFS
    path.write_bytes(pickle.dumps([{"ref_id": sly}], protocol=protocol))
    said = refusal(lambda: reader("rrsis_d", tmp_path).split("train"))
    assert said.startswith(f"{path}: not a pickle of plain values (it names ")
    assert "data.refs=FILE.json" in said
    assert not canary.exists()


def test_splits_of_references_are_sorted(tmp_path: Path) -> None:
    layouts.refer(tmp_path, folder="rrsisd")
    _edited(tmp_path / REFS, lambda refs: [ref.update(split=f"part{9 - i}") for i, ref in enumerate(refs)])
    assert reader("rrsis_d", tmp_path).splits() == [f"part{n}" for n in range(2, 10)]


def test_a_document_that_is_cut_short(tmp_path: Path) -> None:
    layouts.refer(tmp_path, folder="rrsisd")
    path = tmp_path / INSTANCES
    path.write_bytes(path.read_bytes()[:100])
    said = refusal(lambda: reader("rrsis_d", tmp_path).split("train"))
    assert said.startswith(f"{path}: not JSON (")
    assert said.endswith("it may be cut short, download it again")


@pytest.mark.parametrize(
    ("name", "file"), [("refsegrs", "output_phrase_train.txt"), ("earthreason", "train/QAs/1.json")]
)
def test_a_byte_order_mark_is_no_text(name: str, file: str, tmp_path: Path) -> None:
    written = WRITERS[name](tmp_path)
    path = tmp_path / file
    path.write_text(path.read_text(), encoding="utf-8-sig")
    same(samples(reader(name, tmp_path))["train"], written["train"], name, "train")


def test_references_as_json(tmp_path: Path) -> None:
    written = layouts.refer(tmp_path, folder="rrsisd")
    path = tmp_path / REFS
    path.with_suffix(".json").write_text(json.dumps(pickle.loads(path.read_bytes())))
    path.unlink()
    same(samples(reader("rrsis_d", tmp_path, refs="refs(unc).json"))["val"], written["val"], "rrsis_d", "val")


def test_what_is_in_a_pickle_of_any_age(tmp_path: Path) -> None:
    value = [{"a": 1, "b": [2.5, None, True, ("ü", 10**30)], "c": {}}]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "x.p").write_bytes(pickle.dumps(value, protocol=protocol))
        assert read_plain_pickle(tmp_path / "x.p") == value


@pytest.mark.parametrize("kind", ["labels", "images", "QAs"])
def test_an_unmatched_stem_is_named_and_can_be_left_out(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layouts.earthreason(tmp_path)
    suffix = ".json" if kind == "QAs" else ".png"
    (tmp_path / "train" / kind / f"2{suffix}").unlink()
    (tmp_path / "train/images/.hidden.png").touch()
    (tmp_path / "train/images/notes.md").touch()
    said = refusal(lambda: reader("earthreason", tmp_path).split("train"))
    assert f"/2{'.png' if kind == 'QAs' else '.json'}" in said
    assert said.endswith(f"no file of this stem in {tmp_path}/train/{kind}; add it, or remove what there is of it")
    split = reader("earthreason", tmp_path, on_bad="skip").split("train")
    assert [record.sample_id for record in split.records] == ["1", "3", "4"]
    assert [said in message for message in caplog.messages] == [True]


def test_folders_and_stems_that_occur_twice(tmp_path: Path) -> None:
    layouts.earthreason(tmp_path)
    (tmp_path / "train/images/2.jpg").touch()
    assert "2.png: 2.jpg has the same stem" in refusal(lambda: reader("earthreason", tmp_path).split("train"))
    (tmp_path / "val/val/labels").mkdir(parents=True)
    assert "several of labels" in refusal(lambda: reader("earthreason", tmp_path).split("val"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("1 again", ["txt:5: the id '1' is also that of", "txt:1"]),
        ("7", ["txt:5: question 0: query='': must be text"]),
        ("../7 a road", ["txt:5: ", "leads out of its folder"]),
        ("/etc/7 a road", ["txt:5: ", "must be relative"]),
    ],
)
def test_lines_of_phrases_that_cannot_be_used(line: str, words: list[str], tmp_path: Path) -> None:
    WRITERS["refsegrs"](tmp_path)
    with (tmp_path / "output_phrase_train.txt").open("a") as file:
        file.write(f"{line}\n\n")
    said = refusal(lambda: reader("refsegrs", tmp_path).split("train"))
    assert all(word in said for word in words), said


def test_a_list_of_phrases_in_another_encoding(tmp_path: Path) -> None:
    WRITERS["refsegrs"](tmp_path)
    (tmp_path / "output_phrase_train.txt").write_bytes("1 Straße".encode("latin-1"))
    assert "txt: not UTF-8 at byte 6" in refusal(lambda: reader("refsegrs", tmp_path).split("train"))


def test_a_file_that_is_not_there_is_named_when_it_is_read(tmp_path: Path) -> None:
    WRITERS["refsegrs"](tmp_path)
    (tmp_path / "masks/2.tif").unlink()
    split = reader("refsegrs", tmp_path).split("train")
    said = refusal(lambda: split[1])
    assert "output_phrase_train.txt:2: mask: " in said
    assert "masks/2.tif" in said


def test_the_reader_shown_in_the_documentation_reads(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/datasets.md").read_text(), re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)
    layouts.save(tmp_path / "a.png", layouts.picture(1))
    mask = layouts.boxes_mask((1, 2, 9, 9))
    entry = {"image": "a.png", "category": "field", "questions": ["q?"], "rle": layouts.rle(mask)}
    (tmp_path / "fields.json").write_text(json.dumps({"val": [entry]}))
    split = found["Fields"](root=str(tmp_path), name="fields").split("val")
    same([split[0]], [Written("val-0", layouts.picture(1), ["q?"], mask, None, {"category": "field"})], "fields", "val")
