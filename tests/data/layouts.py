"""Small drawn datasets in the layouts of published ones, written from their documented fields alone.

Nothing of the readers is used. Every writer returns what it wrote, by split: a list of :class:`Written`.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow
from pycocotools import mask as coco

SIZE = (56, 64)
"""(height, width) of every image."""
SPLITS = {"train": 4, "val": 2, "test": 2}
"""Images of each split."""


@dataclass(frozen=True)
class Written:
    """One question as it was written down."""

    sample_id: str
    image: np.ndarray
    queries: Sequence[str]
    mask: np.ndarray
    reasoning: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)


def picture(number: int) -> np.ndarray:
    """An image [H, W, 3] uint8 that no other number has."""
    return np.random.default_rng(number).integers(0, 255, (*SIZE, 3), dtype=np.uint8)


def boxes_mask(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """[H, W] bool, True in boxes (x0, y0, x1, y1)."""
    mask = np.zeros(SIZE, dtype=np.bool_)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


def save(path: Path, values: np.ndarray) -> None:
    """Write an image; a mask as 0 and 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(values.astype(np.uint8) * 255 if values.dtype == np.bool_ else values).save(path)


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
