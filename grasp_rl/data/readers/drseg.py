"""DRSeg (PixDLM; WhynotHug/DRSeg on the hub): reasoning about images from drones, masks as polygons.

    labels/DRSeg_{train,val,test}.json     [{id, height, width, ann_list: [{segmentation}], questions, answers,
                                           reasoning_types}]
    CODrone/DR{train,val,test}/<id>.jpg    the images

A ``segmentation`` is a flat polygon or a list of them. Polygons that hold no pixel occur, and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from grasp_rl.data.annotations import AnnotationError, Row
from grasp_rl.data.base import Target
from grasp_rl.data.published import FolderDataset, checked, inside, name_of, ring_of, thoughts_of, value_of
from grasp_rl.data.rasterize import ShapeError, ring_mask
from grasp_rl.utils.files import Record


@dataclass(kw_only=True, eq=False, repr=False)
class DrSeg(FolderDataset):
    """What ``data=drseg`` instantiates. A sample's id is the entry's ``id``; every polygon is an instance."""

    def rows(self, split: str) -> Iterator[Row | AnnotationError]:
        path, images = self.file(f"labels/DRSeg_{split}.json"), self.subfolder(f"CODrone/DR{split}")

        def asked(_: int, place: str, entry: Record) -> Iterator[Row | AnnotationError]:
            name, questions = name_of(entry), value_of(entry, "questions", list)
            rings = _rings(value_of(entry, "ann_list", list))
            row = Row(
                location=place,
                sample_id=name,
                image=inside(images, f"{name}.jpg"),
                query="",
                split=split,
                reasoning=None,
                kind="polygons",
                target=rings,
            )
            details = thoughts_of(value_of(entry, "answers", list), len(questions))
            sorts = value_of(entry, "reasoning_types", list)
            if len(sorts) == len(questions):
                kinds = [{"reasoning_type": sort} if isinstance(sort, str) else {} for sort in sorts]
                details = [{**more, "attributes": kind} for more, kind in zip(details, kinds, strict=True)]
            yield from self.ask(row, questions, details)

        yield from self.each(path, asked)

    def target(self, record: Any, size: tuple[int, int]) -> Target:
        kept = [ring for ring in record.target if _holds_pixels(ring, size)]
        if not kept:
            raise AnnotationError("ann_list: no polygon in it holds a pixel of the image; leave the entry out")
        return super().target(replace(record, target=kept), size)


def _rings(annotations: list[Any]) -> list[Any]:
    """The rings of three or more points in a list of annotations.

    Raises:
        AnnotationError: a segmentation is no polygon, or none is left.
    """
    rings = []
    for annotation in annotations:
        segmentation = value_of(annotation if isinstance(annotation, dict) else {}, "segmentation", list)
        flat = segmentation if segmentation and isinstance(segmentation[0], list) else [segmentation]
        rings += [ring for ring in map(ring_of, flat) if len(ring) > 2]
    if not rings:
        raise AnnotationError("ann_list: no polygon of three or more points in it; leave the entry out")
    checked("polygons", rings)
    return rings


def _holds_pixels(ring: Any, size: tuple[int, int]) -> bool:
    with suppress(ShapeError):
        ring_mask(ring, size)
        return True
    return False
