"""VRSBench (Li et al., arXiv 2406.12384; xiang709/VRSBench on the hub): boxes of described objects, 512 x 512 pixels.

    Annotations_train|val/*.json     {image, objects: [{referring_sentence, obj_coord, obj_corner, obj_cls, ...}]}, or
    Annotations_train|val.json       a list of such
    VRSBench_EVAL_referring.json     [{image_id, question, ground_truth, question_id, obj_corner, ...}], the split test
    Images_train|val/                the images; test has those of val

``obj_coord`` is [x0, y0, x1, y1] in shares of the image, ``ground_truth`` the text {<x0><y0><x1><y1>} in percent; both
are rounded to 1 % of the image (5 pixels of 512). ``obj_corner``, the four corners in shares, is finer.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from grasp_rl.data.annotations import AnnotationError, Row
from grasp_rl.data.published import (
    SHARES,
    FolderDataset,
    attributes_of,
    boxes_of,
    inside,
    name_of,
    read_document,
    value_of,
)
from grasp_rl.utils.files import Record

log = logging.getLogger(__name__)

EVALUATION = "VRSBench_EVAL_referring.json"
_FOLDERS = {"train": "train", "val": "val", "test": "val"}
_PERCENT = re.compile(r"\s*\{" + r"\s*<\s*(\d{1,3}(?:\.\d{1,9})?)\s*>" * 4 + r"\s*\}\s*")
_ATTRIBUTES = {"category": "obj_cls", "position": "obj_position", "size": "obj_size", "size_group": "size_group"}


@dataclass(kw_only=True, eq=False, repr=False)
class VrsBench(FolderDataset):
    """What ``data=vrsbench`` instantiates. There is no mask.

    A sample's id is the stem of its image and the number of its object; in test its ``question_id``.
    """

    truth: Literal["percent", "corner"] = "percent"
    """``percent``: the boxes that published scores are about, rounded to 1 % of the image; ``corner``: the box around
    the four corners."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.truth == "percent":
            log.info("%s: boxes are rounded to 1 %% of the image; data.truth=corner takes finer ones", self.name)

    def rows(self, split: str) -> Iterator[Row | AnnotationError]:
        images = self.subfolder(f"Images_{_FOLDERS[split]}")
        if split == "test":
            yield from self.each(self.file(EVALUATION), lambda _, place, entry: self._tested(place, entry, images))
            return
        together = self.top / f"Annotations_{split}.json"
        if together.is_file():
            yield from self.each(together, lambda _, place, entry: self._described(place, entry, images, split))
            return
        for path in sorted(self.subfolder(f"Annotations_{split}").glob("*.json")):
            try:
                entry = read_document(path)
                if not isinstance(entry, dict):
                    raise AnnotationError(f"{path}: must be an object, {{...}}; download it again")
                yield from self._described(str(path), entry, images, split, path)
            except AnnotationError as error:
                yield error if str(error).startswith(str(path)) else AnnotationError(f"{path}: {error}")

    def _tested(self, place: str, entry: Record, images: Path) -> Iterator[Row | AnnotationError]:
        row = self._row(place, entry, name_of(entry, "question_id"), images, value_of(entry, "image_id", str), "test")
        yield from self.ask(row, [entry.get("question")])

    def _described(
        self, place: str, entry: Record, images: Path, split: str, path: Path | None = None
    ) -> Iterator[Row | AnnotationError]:
        image = value_of(entry, "image", str)
        for index, thing in enumerate(value_of(entry, "objects", list)):
            where = f"{place}, object {index}"
            try:
                if not isinstance(thing, dict):
                    raise AnnotationError("must be an object, {...}; correct the annotation")
                if not thing.get("referring_sentence"):
                    continue
                row = self._row(where, thing, f"{Path(image).stem}-{index}", images, image, split, path)
            except AnnotationError as error:
                yield AnnotationError(f"{where}: {error}")
                continue
            yield from self.ask(row, [thing["referring_sentence"]])

    def _row(
        self, place: str, entry: Record, name: str, images: Path, image: str, split: str, path: Path | None = None
    ) -> Row:
        unique = "unique" if "unique" in entry else "is_unique"
        return Row(
            location=place,
            sample_id=name,
            image=inside(images, image),
            query="",
            split=split,
            reasoning=None,
            kind="boxes",
            target=[self._box(entry)],
            extent=SHARES,
            attributes=attributes_of(entry, {**_ATTRIBUTES, "unique": unique}),
            sources=() if path is None else (path,),
        )

    def _box(self, entry: Record) -> list[float]:
        """[x0, y0, x1, y1] in shares of the image's sides.

        Raises:
            AnnotationError: it is not given as it should be.
        """
        if self.truth == "corner":
            key, numbers = "obj_corner", _around(entry.get("obj_corner"))
        elif "ground_truth" in entry:
            match = _PERCENT.fullmatch(value_of(entry, "ground_truth", str))
            key, numbers = "ground_truth", [float(number) / 100 for number in match.groups()] if match else None
        else:
            key, numbers = "obj_coord", entry.get("obj_coord")
        try:
            (box,) = boxes_of([numbers])
        except AnnotationError as error:
            raise AnnotationError(f"{key}: no box in it ({error})") from error
        if max(box) > 1 or min(box) < 0:
            raise AnnotationError(
                f"{key}: {box} must be shares of the image, from 0 to 1; download the annotations anew"
            )
        return box


def _around(corners: Any) -> list[float] | None:
    """The box around [[x, y], ...] or [x, y, x, y, ...], cut off at the image's border; None of anything else."""
    flat = corners if isinstance(corners, list) else []
    if flat and all(isinstance(corner, list) for corner in flat):
        flat = [value for corner in flat for value in corner]
    if len(flat) != 8 or not all(isinstance(value, int | float) for value in flat):
        return None
    xs, ys = ([min(max(value, 0.0), 1.0) for value in flat[axis::2]] for axis in (0, 1))
    return [min(xs), min(ys), max(xs), max(ys)]
