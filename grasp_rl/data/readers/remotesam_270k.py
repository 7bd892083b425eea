"""RemoteSAM-270K (1e12Leon/RemoteReasoner reads it): texts and boxes.

triplets_train.json     [{text, mask, image}]; mask is a list of boxes
JPEGImages/             the images
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from grasp_rl.data.annotations import AnnotationError, Row
from grasp_rl.data.published import FolderDataset, boxes_of, inside
from grasp_rl.utils.files import Record


@dataclass(kw_only=True, eq=False, repr=False)
class RemoteSam270k(FolderDataset):
    """What ``data=remotesam_270k`` instantiates. A sample's id is the number of its entry; there is no mask."""

    order: Literal["xyxy", "xywh"] = "xyxy"
    """Of the numbers of a box: two corners, or a corner, width and height; in pixels."""

    def splits(self) -> Sequence[str]:
        return ("train",)

    def rows(self, split: str) -> Iterator[Row | AnnotationError]:
        path, images = self.file(f"triplets_{split}.json"), self.subfolder("JPEGImages")

        def asked(number: int, place: str, entry: Record) -> Iterator[Row | AnnotationError]:
            boxes = boxes_of(entry.get("mask"), self.order)
            row = Row(
                location=place,
                sample_id=str(number),
                image=inside(images, entry.get("image")),
                query="",
                split=split,
                reasoning=None,
                kind="boxes",
                target=boxes,
                attributes={"instances": len(boxes)},
            )
            yield from self.ask(row, [entry.get("text")])

        yield from self.each(path, asked)
