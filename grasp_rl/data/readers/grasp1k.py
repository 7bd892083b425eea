"""GRASP-1k (GRASP, arXiv 2508.17102): not released. What is read here is a layout of ours, until it is.

    {split}.jsonl     one object a line: {"id", "image", "question", "boxes": [[x0, y0, x1, y1], ...],
                      "points": [[[x, y, label], ...], ...], "category", "reasoning", "mask"}
    images            as their paths in the lines say, in the root

``boxes`` are the weak cues: in pixels, one an instance, [] where nothing answers. ``points`` are optional, for each box
a list, label 1 on the instance and 0 beside it. With ``mask``, the path of a file, the mask is the truth, and boxes and
points are derived from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from grasp_rl.data.annotations import AnnotationError, Row, problem_of
from grasp_rl.data.published import FolderDataset, attributes_of, boxes_of, inside, name_of
from grasp_rl.utils.files import Record


@dataclass(kw_only=True, eq=False, repr=False)
class Grasp1k(FolderDataset):
    """What ``data=grasp1k`` instantiates. A sample's id is that of its line."""

    def rows(self, split: str) -> Iterator[Row | AnnotationError]:
        def asked(_: int, place: str, entry: Record) -> Iterator[Row | AnnotationError]:
            thought, boxes = entry.get("reasoning"), boxes_of(entry.get("boxes"))
            problem = problem_of("reasoning", thought) if thought is not None else None
            if problem is not None:
                raise AnnotationError(f"{problem}; correct the line")
            masked = entry.get("mask") is not None
            row = Row(
                location=place,
                sample_id=name_of(entry),
                image=inside(self.top, entry.get("image")),
                query="",
                split=split,
                reasoning=thought,
                kind="mask" if masked else "boxes",
                target=inside(self.top, entry["mask"]) if masked else boxes,
                points=None if masked else _points(entry.get("points"), len(boxes)),
                attributes={
                    **attributes_of(entry, {"category": "category"}),
                    "instances": len(boxes),
                    "no_target": int(not boxes),
                },
            )
            yield from self.ask(row, [entry.get("question")])

        yield from self.each(self.file(f"{split}.jsonl"), asked)


def _points(value: Any, count: int) -> list[list[list[float]]] | None:
    """The points of each of ``count`` boxes; None where there are none at all.

    Raises:
        AnnotationError: they are not given as they should be.
    """
    if value is None:
        return None
    lists = value if isinstance(value, list) and all(isinstance(points, list) for points in value) else []
    if len(lists) != count or not all(_is_point(point) for points in lists for point in points):
        raise AnnotationError(f"points: must be a list of [x, y, 1 or 0] for each of {count} boxes; correct the line")
    return lists


def _is_point(value: Any) -> bool:
    """Whether ``value`` is [x, y, label] with finite pixels and a label of 1 or 0."""
    if not isinstance(value, list) or len(value) != 3 or value[2] not in (0, 1):
        return False
    return problem_of("polygons", [[value[:2]] * 3]) is None
