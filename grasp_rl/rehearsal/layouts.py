"""Small drawn datasets in the layouts of published ones, written from their documented fields alone.

Nothing of the readers is used. Every writer returns what it wrote, by split: a list of :class:`Written`.
"""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
from PIL import Image as Pillow
from pycocotools import mask as coco

SIZE = (56, 64)
"""(height, width) of every image."""
SPLITS = {"train": 4, "val": 2, "test": 2}
"""Images of each split."""
SHOTS = ("train_1shot", "train_5shot", "train_10shot")
"""Files of few shots; all hold the same lines here."""


@dataclass(frozen=True)
class Written:
    """One question as it was written down."""

    sample_id: str
    image: np.ndarray
    queries: Sequence[str]
    mask: np.ndarray | None
    reasoning: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    boxes: Sequence[Sequence[float]] | None = None
    """[x0, y0, x1, y1] in pixels; None where the mask says them."""


def picture(number: int) -> np.ndarray:
    """An image [H, W, 3] uint8 that no other number has."""
    return np.random.default_rng(number).integers(0, 255, (*SIZE, 3), dtype=np.uint8)


def numbered(splits: Sequence[str] = ("train", "val", "test")) -> Iterator[tuple[str, int, int]]:
    """(split, place in it, number over all from 1) of every image."""
    number = 0
    for split in splits:
        for place in range(SPLITS[split]):
            number += 1
            yield split, place, number


def boxes_mask(*boxes: Sequence[int]) -> np.ndarray:
    """[H, W] bool, True in boxes (x0, y0, x1, y1)."""
    mask = np.zeros(SIZE, dtype=np.bool_)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


def save(path: Path, values: np.ndarray) -> None:
    """Write an image; a mask as 0 and 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = Pillow.fromarray(values.astype(np.uint8) * 255 if values.dtype == np.bool_ else values)
    file.save(path, format="PNG" if path.suffix == ".jpg" else None)  # a file's content says what it is, and is exact


def rle(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths."""
    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def phrases(root: Path, *, images: str, masks: str, suffix: str, named: bool, separator: str) -> dict[str, Any]:
    """RefSegRS or RISBench: phrase lists, images and masks; ``named``: a line has the suffix, too."""
    written: dict[str, list[Written]] = {}
    number = 0
    for split, count in SPLITS.items():
        lines = []
        for _ in range(count):
            number += 1
            mask = boxes_mask((number, 5, number + 20, 30))
            save(root / images / f"{number}{suffix}", picture(number))
            save(root / masks / f"{number}{suffix}", np.repeat(mask[..., None] * np.uint8(255), 3, axis=2))
            name = f"{number}{suffix}" if named else str(number)
            lines.append(f"{name}{separator}the road  along field {number}\n")
            query = f"the road  along field {number}"
            written.setdefault(split, []).append(Written(name, picture(number), [query], mask))
        (root / f"output_phrase_{split}.txt").write_text("".join(lines))
    return written


def refer(root: Path, *, folder: str, same_ids: bool = True, protocol: int = 4) -> dict[str, list[Written]]:
    """RRSIS-D or RIS-LAD: pickled references, a COCO file and images; masks as run lengths and polygons in turn."""
    refs, images, annotations = [], [], []
    written: dict[str, list[Written]] = {}
    number = 0
    for split, count in SPLITS.items():
        for _ in range(count):
            number += 1
            first, second = (number, 4, number + 10, 20), (number + 20, 30, number + 30, 50)
            image_id = number if same_ids else number + 100
            segmentation: list[Any] = [rle(boxes_mask(first)), rle(boxes_mask(second))]
            if number % 2:
                segmentation = [[x0, y0, x1, y0, x1, y1, x0, y1] for x0, y0, x1, y1 in (first, second)]
            queries = [f"The Left ship of {number}", f"the ship in row {number}"]
            sentences = [
                {"sent_id": 10 * number + k, "sent": q.lower(), "raw": q, "tokens": q.lower().split()}
                for k, q in enumerate(queries)
            ]
            refs.append({
                "ref_id": number, "ann_id": number + 500, "image_id": image_id, "category_id": 1 + number % 2,
                "split": split, "sentences": sentences, "sent_ids": [s["sent_id"] for s in sentences],
            })  # fmt: skip
            images.append({"id": image_id, "file_name": f"{number:05d}.png", "height": SIZE[0], "width": SIZE[1]})
            annotations.append({
                "id": number + 500, "image_id": image_id, "category_id": 1 + number % 2, "segmentation": segmentation,
                "bbox": [number, 4, 30, 46], "area": 360, "iscrowd": 0,
            })  # fmt: skip
            save(root / "images" / folder / "JPEGImages" / f"{number:05d}.png", picture(number))
            category = {"category": ["ship", "harbor"][number % 2]}
            written.setdefault(split, []).append(
                Written(str(number), picture(number), queries, boxes_mask(first, second), attributes=category)
            )
    categories = [{"id": 1, "name": "ship"}, {"id": 2, "name": "harbor"}]
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=protocol))
    document = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    (root / folder / "instances.json").write_text(json.dumps(document))
    return written


EARTHREASON = ("plain", "deep", "nested", "mixed")
"""Where the folders of a split may be."""


def earthreason(
    root: Path, variant: str = "plain", suffix: str = ".png", asked: str = ".json"
) -> dict[str, list[Written]]:
    """EarthReason; the last image of every split has no target."""
    written: dict[str, list[Written]] = {}
    number = 0
    for split, count in SPLITS.items():
        top = root / "rs_reason_seg/RSReasonSeg" / split if variant == "deep" else root / split
        images = top / split if variant in ("nested", "mixed") else top
        labels = top / split if variant == "nested" else top
        for place in range(count):
            number += 1
            empty = place == count - 1
            mask = boxes_mask() if empty else boxes_mask((3, number, 40, number + 30))
            queries = [f"Where would flood {number} come first?", f"Which land lies low ({number})?"]
            answers = [] if empty else [f"The meadow {number} by the river.", "It lies low."]
            save(images / "images" / f"{number}{suffix}", picture(number))
            save(labels / "labels" / f"{number}.png", mask.astype(np.uint8))
            (labels / "QAs").mkdir(exist_ok=True)
            (labels / "QAs" / f"{number}{asked}").write_text(json.dumps({"questions": queries, "answer": answers}))
            written.setdefault(split, []).append(
                Written(
                    str(number), picture(number), queries, mask, next(iter(answers), None), {"no_target": int(empty)}
                )
            )
    return written


Splits = dict[str, list[Written]]


def write(path: Path, text: str) -> None:
    """Write ``text``, its folders too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def lines(path: Path, entries: Sequence[Any]) -> None:
    """Write JSON Lines."""
    write(path, "".join(json.dumps(entry) + "\n" for entry in entries))


def arrow(path: Path, columns: dict[str, Any], *, stream: bool = True) -> None:
    """An Arrow file, in the form of a stream as the datasets library writes it, or in that of a file."""
    table = pa.table(columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        pa.OSFile(str(path), "wb") as sink,
        (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as out,
    ):
        out.write_table(table, max_chunksize=1)


def risbench_arrow(root: Path, *, stream: bool = True, nested: bool = True) -> Splits:
    """RISBench's Arrow form, two files a split; ``nested``: a cell has bytes and path, else bytes alone."""
    written: Splits = {}
    rows: dict[str, list[dict[str, Any]]] = {}
    for split, place, number in numbered():
        mask = boxes_mask((number, 5, number + 20, 30))
        cells = {}
        for name, values in (("image", picture(number)), ("mask", mask)):
            save(root / "passing.png", values)
            data = (root / "passing.png").read_bytes()
            cells[name] = {"bytes": data, "path": f"{number}.png"} if nested else data
        rows.setdefault(split, []).append({**cells, "phrase": f"the pier of {number}"})
        written.setdefault(split, []).append(Written(str(place), picture(number), [f"the pier of {number}"], mask))
    (root / "passing.png").unlink()
    for split, items in rows.items():
        half = len(items) // 2
        for part, some in enumerate((items[:half], items[half:])):
            path = root / {"val": "validation"}.get(split, split) / f"data-{part:05d}-of-00002.arrow"
            arrow(path, {key: [row[key] for row in some] for key in ("image", "mask", "phrase")}, stream=stream)
    return written


def earthreason_fs(root: Path) -> Splits:
    """Lines as the evaluator of Geo-R1 reads them; the last image of every split has no target."""
    written: Splits = {}
    entries: dict[str, list[Any]] = {}
    for split, place, number in numbered():
        boxes = [] if place == SPLITS[split] - 1 else [[number, 4, number + 10, 20], [30, 30, 44, 40]]
        query = f"Where would {number} be safe?"
        save(root / f"images/{number}.png", picture(number))
        save(root / f"masks/{number}.png", boxes_mask(*boxes))
        entries.setdefault(split, []).append({
            "id": number, "category": "park", "image": f"images/{number}.png", "mask": f"masks/{number}.png",
            "problem": f"<image>{query}", "bbox_list": boxes,
        })  # fmt: skip
        attributes = {"category": "park", "instances": len(boxes), "no_target": int(not boxes)}
        written.setdefault(split, []).append(
            Written(str(number), picture(number), [query], boxes_mask(*boxes), None, attributes)
        )
    for split, items in entries.items():
        for name in SHOTS if split == "train" else (split,):
            lines(root / f"{name}.jsonl", items)
    return written


def vrsbench_fs(root: Path) -> Splits:
    """Lines of images, problem, answer, category, is_unique."""
    written: Splits = {}
    entries: dict[str, list[Any]] = {}
    for split, place, number in numbered(("train", "val")):
        box = [number, 4.5, number + 10, 20]
        save(root / f"images/{number}.png", picture(number))
        entries.setdefault(split, []).append({
            "images": [f"images/{number}.png"], "problem": f"the ship {number}", "answer": box, "category": "ship",
            "is_unique": number % 2 == 0,
        })  # fmt: skip
        attributes = {"category": "ship", "unique": int(number % 2 == 0), "instances": 1}
        written.setdefault(split, []).append(
            Written(f"{split}-{place}", picture(number), [f"the ship {number}"], None, None, attributes, [box])
        )
    for name in SHOTS:
        lines(root / f"{name}.jsonl", entries["train"])
    lines(root / "val.jsonl", entries["val"])
    return written


def vrsbench_rl(root: Path) -> Splits:
    """Lines of RS-HyRe-R1: answers of one box, of several, and of words, which ask for something else."""
    written: Splits = {}
    entries = []
    answers: tuple[dict[str, Any], ...] = (
        {"bbox": [5.12, 4, 20.48, 20], "label": "ship"}, {"text": "Three."}, {"boxes": [[30, 4, 44, 20], [1, 2, 9, 9]]},
    )  # fmt: skip
    for number, answer in enumerate(answers):
        save(root / f"images/{number}.png", picture(number))
        entries.append({
            "problem": f"the ship {number}", "answer": answer, "images": [f"images/{number}.png"], "obj_cls": "ship",
            "is_unique": True, "obj_position": "top-left", "obj_size": "small", "img_size": [512, 512],
        })  # fmt: skip
        boxes: Any = answer.get("boxes", [answer.get("bbox")])
        attributes = {"category": "ship", "unique": 1, "position": "top-left", "size": "small", "instances": len(boxes)}
        if "text" not in answer:
            written.setdefault("train", []).append(
                Written(f"train-{number}", picture(number), [f"the ship {number}"], None, None, attributes, boxes)
            )
    lines(root / "train.jsonl", entries)
    return written


def nwpu_fs(root: Path) -> Splits:
    """A COCO file a split, and the classes that are present; a class that is absent from that list is not asked for."""
    written: Splits = {}
    present: dict[str, list[str]] = {}
    documents: dict[str, dict[str, list[Any]]] = {}
    categories = [{"id": 1, "name": "ship"}, {"id": 2, "name": "storage_tank"}, {"id": 3, "name": "bridge"}]
    for split, _, number in numbered():
        document = documents.setdefault(split, {"images": [], "annotations": [], "categories": categories})
        document["images"].append({"id": number, "file_name": f"{number:03d}.jpg"})
        save(root / "positive_image_set" / f"{number:03d}.jpg", picture(number))
        present[str(number)] = ["ship", "storage_tank"]
        for category, name, boxes in (
            (1, "ship", [(number, 2, 10, 8), (number + 20, 30, 12, 9.5)]), (2, "storage tank", [(3, 40, 6, 6)]),
            (3, "bridge", [(1, 1, 5, 5)]),
        ):  # fmt: skip
            for box in boxes:
                index = 10 * number + len(document["annotations"])
                document["annotations"].append(
                    {"id": index, "image_id": number, "category_id": category, "bbox": list(box)}
                )
            plain = name.replace(" ", "_")
            if category < 3:
                attributes = {"category": plain, "instances": len(boxes)}
                corners = [[x, y, x + w, y + h] for x, y, w, h in boxes]
                question = f"Segment every {name}."
                written.setdefault(split, []).append(
                    Written(f"{number}-{plain}", picture(number), [question], None, None, attributes, corners)
                )
    for split, document in documents.items():
        write(root / f"annotations_{split}_set_10shot.json", json.dumps(document))
    write(root / "nwpu_exist_cat.json", json.dumps(present))
    return written


def geopixinstruct(root: Path, *, order: str = "xyxy", form: str = "parquet") -> Splits:
    """Rows of images with two instances each; boxes in an order, as a table or as JSON."""
    written: Splits = {}
    rows: dict[str, list[Any]] = {}
    for split, _, number in numbered():
        instances = []
        save(root / f"SIOR/{number}.png", picture(number))
        for index, (x0, y0, x1, y1) in enumerate(((number, 4, number + 10, 20), (30, 25, 50, 50))):
            mask = boxes_mask((x0, y0, x1, y1))
            box = [x0, y0, x1, y1] if order == "xyxy" else [x0, y0, x1 - x0, y1 - y0]
            instances.append({
                "instance_id": index, "category": "ship", "category_id": 4, "bbox": box, "mask": rle(mask),
                "description": f"ship {index} of {number}",
            })  # fmt: skip
            written.setdefault(split, []).append(
                Written(
                    f"{number}-{index}", picture(number), [f"ship {index} of {number}"], mask, None,
                    {"category": "ship"},
                )
            )  # fmt: skip
        rows.setdefault(split, []).append(
            {"image_id": number, "image_path": f"SIOR/{number}.png", "instances": instances}
        )
    for split, items in rows.items():
        path = root / "data" / f"{'valid' if split == 'val' else split}-SIOR_T.{form}"
        path.parent.mkdir(exist_ok=True)
        if form == "parquet":
            pa.parquet.write_table(pa.Table.from_pylist(items), path)
        else:
            write(path, json.dumps(items))
    return written


def dior_rsvg(root: Path) -> Splits:
    """XML files of two objects each; the first objects are those of train, and so on."""
    written: Splits = {}
    numbers: dict[str, list[int]] = {}
    for split, _, number in numbered():
        things = []
        for index, (x0, y0, x1, y1) in enumerate(((number, 4, number + 10, 20), (30, 25, 50, 50))):
            count = 2 * (number - 1) + index
            numbers.setdefault(split, []).append(count)
            box = f"<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
            things.append(
                f"<object><name>ship</name><pose>Unspecified</pose><bndbox>{box}</bndbox>"
                f"<description>A ship &amp; its wake {count}</description></object>"
            )
            written.setdefault(split, []).append(
                Written(
                    str(count), picture(number), [f"A ship & its wake {count}"], None, None, {"category": "ship"},
                    [[x0, y0, x1, y1]],
                )
            )  # fmt: skip
        save(root / "JPEGImages" / f"{number:05d}.jpg", picture(number))
        head = f"<?xml version='1.0' encoding='UTF-8'?><annotation><filename>{number:05d}.jpg</filename>"
        write(root / "Annotations" / f"{number:05d}.xml", f"{head}{''.join(things)}</annotation>")
    for split, items in numbers.items():
        write(root / f"{split}.txt", "".join(f"{number}\n" for number in items))
    return written


def vrsbench(root: Path, *, together: bool = False, truth: str = "percent") -> Splits:
    """VRSBench; ``together``: the annotations of a split are one list, else a file an image."""
    written: Splits = {}
    height, width = SIZE
    entries: dict[str, list[Any]] = {}
    for split, place, number in numbered():
        folder = "train" if split == "train" else "val"
        name = f"P{number:04d}.png"
        rounded, exact = [0.02 * number, 0.1, 0.02 * number + 0.3, 0.57], [0.02 * number + 0.004, 0.098, 0.48, 0.573]
        save(root / f"Images_{folder}" / name, picture(number))
        box = rounded if truth == "percent" else exact
        pixels = [box[0] * width, box[1] * height, box[2] * width, box[3] * height]
        corners = [[exact[0], exact[1]], [exact[2], exact[1]], [exact[2], exact[3]], [exact[0], exact[3]]]
        attributes: dict[str, Any] = {"category": "ship", "unique": number % 2}
        if split == "test":
            numbers = "".join(f"<{round(100 * value)}>" for value in rounded)
            entries.setdefault("test", []).append({
                "image_id": name, "question": f"the ship {number}", "ground_truth": f"{{{numbers}}}",
                "question_id": place, "unique": bool(number % 2), "obj_corner": corners, "obj_cls": "ship",
                "size_group": "small",
            })  # fmt: skip
            sample_id, attributes["size_group"] = str(place), "small"
        else:
            things = [
                {"obj_cls": "road"},
                {
                    "referring_sentence": f"the ship {number}", "obj_corner": corners, "obj_coord": rounded,
                    "obj_cls": "ship", "obj_size": "large", "obj_position": "top", "is_unique": bool(number % 2),
                },
            ]  # fmt: skip
            entries.setdefault(split, []).append(
                {"image": name, "caption": "Ships.", "objects": things, "qa_pairs": []}
            )
            sample_id = f"P{number:04d}-1"
            attributes |= {"size": "large", "position": "top"}
        written.setdefault(split, []).append(
            Written(sample_id, picture(number), [f"the ship {number}"], None, None, attributes, [pixels])
        )
    for split in ("train", "val"):
        if together:
            write(root / f"Annotations_{split}.json", json.dumps(entries[split]))
        for entry in () if together else entries[split]:
            write(root / f"Annotations_{split}" / f"{entry['image'][:-4]}.json", json.dumps(entry))
    write(root / "VRSBench_EVAL_referring.json", json.dumps(entries["test"]))
    return written


def lasers(root: Path, *, deep: bool = False, public: bool = False) -> Splits:
    """LaSeRS, two files in test; ``public``: those come without answer and mask."""
    written: Splits = {}
    top = root / "rs_reason_seg/LaSeRS" if deep else root
    entries: dict[str, list[Any]] = {}
    for split, place, number in numbered(("train", "test")):
        boxes = [(number, 4, number + 10, 20), (30, 25, 50, 50)][: 1 + place % 2]
        axis = ["short", "instance"][place % 2] if split == "test" else ""
        path = f"{split}/annotations/{axis or 'train_ann'}.json"
        save(top / f"{split}/images/{number}.png", picture(number))
        entry = {"id": number, "image_name": f"{number}.png", "description": f"Where is {number}?"}
        truth = {
            "answer": " and ".join(["It is [SEG]"] * len(boxes)), "mask": [rle(boxes_mask(box)) for box in boxes],
        }  # fmt: skip
        bare = public and split == "test"
        entries.setdefault(path, []).append(entry if bare else entry | truth)
        numbers = {} if bare else {"instances": len(boxes), "no_target": 0}
        written.setdefault(split, []).append(
            Written(
                f"{axis}-{number}" if axis else str(number), picture(number), [f"Where is {number}?"],
                None if bare else boxes_mask(*boxes), None, {**({"axis": axis} if axis else {}), **numbers},
            )
        )  # fmt: skip
    for path, items in entries.items():
        write(top / path, json.dumps(items))
    return written


def geoseg(root: Path) -> Splits:
    """UniGeoSeg's triplets, of three tasks in turn; masks of 0 and 255 with 128 where nothing is meant."""
    written: Splits = {}
    triplets: dict[str, list[Any]] = {}
    for split, _, number in numbered():
        folder, task = [("ref", "referring"), ("intera", "interactive"), ("reason", "reasoning")][number % 3]
        mask = boxes_mask((number, 4, number + 10, 20))
        save(root / f"{folder}/images/{number}.png", picture(number))
        save(root / f"{folder}/masks/{number}.png", mask * np.uint8(255) + boxes_mask((50, 50, 54, 54)) * np.uint8(128))
        questions = [f"The thing {number} at [{number}, 5]?", f"What of x0,y0=[{number},4], x1,y1=[20,20]?"]
        reasons = [] if folder == "ref" else [f"Because of {number}.", f"For {number}."]
        write(root / f"{folder}/json/{number}.json", json.dumps({"question": questions, "reason": reasons}))
        triplets.setdefault(split, []).append({
            "img": f"{folder}/images/{number}.png", "mask": f"{folder}/masks/{number}.png",
            "json": f"{folder}/json/{number}.json",
        })  # fmt: skip
        written.setdefault(split, []).append(
            Written(
                f"{folder}/json/{number}", picture(number), questions, mask, next(iter(reasons), None), {"task": task}
            )
        )
    for split, items in triplets.items():
        write(root / f"{split}.json", json.dumps(items))
    return written


def drseg(root: Path) -> Splits:
    """DRSeg; the polygons of every entry end with one of two points and one beside the image."""
    written: Splits = {}
    entries: dict[str, list[Any]] = {}
    for split, _, number in numbered():
        boxes = [(number, 4, number + 10, 20), (30, 25, 50, 50)]
        flat: list[Any] = [[x0, y0, x1, y0, x1, y1, x0, y1] for x0, y0, x1, y1 in boxes]
        flat += [[1, 1, 5, 5], [3.1, 3.1, 3.2, 3.1, 3.2, 3.2]]
        save(root / f"CODrone/DR{split}/{number}.jpg", picture(number))
        questions = [f"Who waits at {number}?", f"What may cross {number}?"]
        entries.setdefault(split, []).append({
            "id": str(number), "height": SIZE[0], "width": SIZE[1], "ann_list": [{"segmentation": f} for f in flat],
            "questions": questions, "answers": ["The cars wait.", "A car."],
            "reasoning_types": ["spatial", "attribute"],
        })  # fmt: skip
        written.setdefault(split, []).append(
            Written(
                str(number), picture(number), questions, boxes_mask(*boxes), "The cars wait.",
                {"reasoning_type": "spatial"}, boxes,
            )
        )  # fmt: skip
    for split, items in entries.items():
        write(root / f"labels/DRSeg_{split}.json", json.dumps(items))
    return written


def remotesam(root: Path, *, order: str = "xyxy") -> Splits:
    """RemoteSAM-270K; its key mask holds boxes."""
    entries, written = [], []
    for _, place, number in numbered(("train",)):
        boxes = [[number, 4, number + 10, 20], [30, 25, 50, 50]]
        values = boxes if order == "xyxy" else [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in boxes]
        save(root / f"JPEGImages/{number}.jpg", picture(number))
        entries.append({"text": f"ships of {number}", "mask": values, "image": f"{number}.jpg"})
        written.append(
            Written(str(place), picture(number), [f"ships of {number}"], None, None, {"instances": 2}, boxes)
        )
    write(root / "triplets_train.json", json.dumps(entries))
    return {"train": written}


def grasp1k(root: Path) -> Splits:
    """The layout of weak cues in conf/data/grasp1k.yaml; the last line of a split has no target."""
    written: Splits = {}
    entries: dict[str, list[Any]] = {}
    for split, place, number in numbered():
        empty = place == SPLITS[split] - 1
        boxes = [] if empty else [[30, 25, 50, 50], [number, 4, number + 10, 20]]
        points = [] if empty else [[[40, 30.5, 1], [1, 1, 0]], [[number + 2, 6, 1]]]
        save(root / f"images/{number}.png", picture(number))
        entries.setdefault(split, []).append({
            "id": f"g{number}", "image": f"images/{number}.png", "question": f"Where to land {number}?", "boxes": boxes,
            "points": points, "category": "field", "reasoning": "It is flat.",
        })  # fmt: skip
        attributes = {"category": "field", "instances": len(boxes), "no_target": int(empty)}
        query = f"Where to land {number}?"
        written.setdefault(split, []).append(
            Written(f"g{number}", picture(number), [query], None, "It is flat.", attributes, boxes)
        )
    for split, items in entries.items():
        lines(root / f"{split}.jsonl", items)
    return written


def folder(root: Path) -> Splits:
    """images/, masks/ by stem, and a CSV with a column split."""
    written: Splits = {}
    rows = [["image", "question", "split", "id"]]
    for split, _, number in numbered():
        mask = boxes_mask((number, 4, number + 10, 20))
        save(root / f"images/{number}.jpg", picture(number))
        save(root / f"masks/{number}.png", mask)
        rows.append([f"{number}.jpg", f"Where, say, is {number}?", split, f"q{number}"])
        written.setdefault(split, []).append(
            Written(f"q{number}", picture(number), [f"Where, say, is {number}?"], mask, None, {"no_target": 0})
        )
    with (root / "questions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return written


def cross_view(root: Path) -> None:
    """A JSON list for each split: a picture, three others, and which of them answers."""
    for name in ("street", "a", "b", "c"):
        save(root / f"{name}.png", picture(len(name) + ord(name[0])))
    for split, images in SPLITS.items():
        entries = [
            {"id": f"{split}-{number}", "image": "street.png", "question": "Where is it?", "answer": "ABC"[number % 3]}
            | {"images": ["a.png", "b.png", "c.png"]}
            for number in range(images)
        ]
        write(root / f"{split}.json", json.dumps(entries))


WRITERS: dict[str, Callable[[Path], Splits]] = {
    "refsegrs": lambda root: phrases(root, images="images", masks="masks", suffix=".tif", named=False, separator="\t "),
    "risbench": lambda root: phrases(root, images="img_rgb", masks="mask", suffix=".png", named=True, separator=" "),
    "rrsis_d": lambda root: refer(root, folder="rrsisd"),
    "rrsis_hr": lambda root: refer(root, folder="rrsis_hr", same_ids=False, protocol=2),
    "ris_lad": lambda root: refer(root, folder="ris_lad", same_ids=False),
    "earthreason": earthreason,
    "risbench_arrow": risbench_arrow,
    "earthreason_fs": earthreason_fs,
    "vrsbench_fs": vrsbench_fs,
    "vrsbench_rl": vrsbench_rl,
    "nwpu_fs": nwpu_fs,
    "geopixinstruct": geopixinstruct,
    "dior_rsvg": dior_rsvg,
    "vrsbench": vrsbench,
    "lasers": lasers,
    "geoseg_bench_unigeoseg": geoseg,
    "drseg": drseg,
    "remotesam_270k": remotesam,
    "grasp1k": grasp1k,
    "folder": folder,
}
"""What writes the layout that ``data=NAME`` reads."""
