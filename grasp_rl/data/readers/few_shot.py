"""Few-shot sets and training files as JSON lines: EarthReason-FS, VRSBench-FS, and the rows of RS-HyRe-R1.

A line is one question about one image, whose path is relative to the folder. ``{split}.jsonl`` holds a split; a set by
the number of shots has ``train_{shot_file}shot.jsonl`` for ``train``. What a line has is said with each reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from grasp_rl.data.annotations import AnnotationError, Row
from grasp_rl.data.published import (
    PERCENT,
    SHARES,
    FolderDataset,
    attributes_of,
    boxes_of,
    inside,
    name_of,
    question_in,
    value_of,
)
from grasp_rl.utils.files import Record

EXTENTS = {"pixel": None, "percent": PERCENT, "share": SHARES}
"""(width, height) of the frame that boxes are in, by the unit of their numbers."""


@dataclass(kw_only=True, eq=False, repr=False)
class FewShotLines(FolderDataset):
    """A set of JSON lines; a reader overrides :meth:`row` and says where its question stands."""

    shot_file: Literal[1, 5, 10] | None = 10
    """Examples of each class in ``train``; None for one file ``train.jsonl``."""

    def splits(self) -> Sequence[str]:
        """Those whose file is there: which ones are released differs. All three where none is."""
        usual = super().splits()
        return [split for split in usual if (self.top / self._name(split)).is_file()] or usual

    def records(self, split: str) -> Iterator[Row | AnnotationError]:
        """As elsewhere; of a usual split whose file is missing, the error names the file."""
        return self.rows(split) if split in super().splits() else super().records(split)

    def rows(self, split: str) -> Iterator[Row | AnnotationError]:
        path = self.file(self._name(split))

        def asked(number: int, place: str, entry: Record) -> Iterator[Row | AnnotationError]:
            row = self.row(number, place, entry, split)
            if row is not None:
                yield from self.ask(row, [question_in(entry, "problem")])

        yield from self.each(path, asked)

    def _name(self, split: str) -> str:
        """Of the file of ``split``."""
        shots = f"_{self.shot_file}shot" if split == "train" and self.shot_file is not None else ""
        return f"{split}{shots}.jsonl"

    def row(self, number: int, place: str, entry: Record, split: str) -> Row | None:
        """The row of a line, still without its question; None where another task is asked for.

        Raises:
            AnnotationError: the line is not as it should be.
        """
        raise NotImplementedError


@dataclass(kw_only=True, eq=False, repr=False)
class EarthReasonFewShot(FewShotLines):
    """What ``data=earthreason_fs`` instantiates: lines of id, category, image, mask, problem, bbox_list."""

    truth: Literal["mask", "boxes"] = "mask"
    """``boxes``: the lines' boxes, in pixels, are all that is known; no mask is read."""

    def row(self, number: int, place: str, entry: Record, split: str) -> Row | None:
        boxes = (
            boxes_of(entry.get("bbox_list")) if entry.get("bbox_list") is not None or self.truth == "boxes" else None
        )
        counts = {} if boxes is None else {"instances": len(boxes), "no_target": int(not boxes)}
        masks = self.truth == "mask"
        return Row(
            location=place,
            sample_id=name_of(entry),
            image=inside(self.top, entry.get("image")),
            query="",
            split=split,
            reasoning=None,
            kind="mask" if masks else "boxes",
            target=inside(self.top, value_of(entry, "mask", str)) if masks else boxes,
            attributes={**attributes_of(entry, {"category": "category"}), **counts},
        )


@dataclass(kw_only=True, eq=False, repr=False)
class BoxLines(FewShotLines):
    """What ``data=vrsbench_fs`` and ``data=vrsbench_rl`` instantiate: lines of problem, images and answer.

    ``images`` is a path or a list of one. ``answer`` is a box, a list of boxes, or an object with ``bbox`` or
    ``boxes``; an answer in words alone belongs to another task, and its line is passed over. There is no mask.
    """

    unit: Literal["pixel", "percent", "share"] = "pixel"
    """What the numbers of a box count: pixels of the image, or percent or shares of its sides."""

    def row(self, number: int, place: str, entry: Record, split: str) -> Row | None:
        boxes = _answer(entry)
        if boxes is None:
            return None
        names = entry.get("images")
        if isinstance(names, list) and len(names) != 1:
            raise AnnotationError(f"images: must be one image, found {len(names)}; take the line out")
        keys = {
            "category": "category" if "category" in entry else "obj_cls",
            "unique": "is_unique",
            "position": "obj_position",
            "size": "obj_size",
        }
        return Row(
            location=place,
            sample_id=name_of(entry) if "id" in entry else f"{split}-{number}",
            image=inside(self.top, names[0] if isinstance(names, list) else names),
            query="",
            split=split,
            reasoning=None,
            kind="boxes",
            target=boxes,
            extent=EXTENTS[self.unit],
            attributes={**attributes_of(entry, keys), "instances": len(boxes)},
        )


def _answer(entry: Record) -> list[list[float]] | None:
    """The boxes of a line; None where its answer is in words.

    Raises:
        AnnotationError: there is no answer, or none that is a box.
    """
    answer: Any = entry.get("answer")
    if isinstance(answer, dict):
        boxes = next((answer[key] for key in ("bbox", "boxes") if answer.get(key) is not None), None)
        if boxes is None and isinstance(answer.get("text"), str):
            return None
        answer = boxes
    if not isinstance(answer, list):
        raise AnnotationError("answer: must be a box, boxes, or an object with bbox, boxes or text; correct the line")
    return boxes_of(answer if not answer or isinstance(answer[0], list) else [answer])
