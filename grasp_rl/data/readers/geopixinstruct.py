"""GeoPixInstruct (GeoPix; Norman-ou/GeoPixInstruct-Anno on the hub): a row an image, its instances described.

A row is ``{image_id, image_path, instances: [{instance_id, category, category_id, bbox, description, mask}]}`` with
``mask`` as COCO's run lengths; rows stand in Parquet tables, or in JSON of the same schema. Whether a ``bbox`` is [x0,
y0, x1, y1] or [x, y, width, height] is not documented, so it is decided by the masks: see :func:`order_of`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.annotations import AnnotationError, Row, problem_of
from grasp_rl.data.published import (
    FolderDataset,
    attributes_of,
    boxes_of,
    checked,
    entries_of,
    inside,
    name_of,
    value_of,
)
from grasp_rl.data.rasterize import ShapeError, decode_rle
from grasp_rl.geometry import box_iou, mask_to_box
from grasp_rl.types import Box
from grasp_rl.utils.files import Record

log = logging.getLogger(__name__)

Order = Literal["xyxy", "xywh"]
_ORDERS: tuple[Order, ...] = ("xyxy", "xywh")
COLUMNS = ("image_id", "image_path", "instances")
PROBES = 200
"""Instances by whose masks the order of boxes is decided."""
FIT = 0.8
"""Mean IoU of boxes with those of their masks from which an order fits."""


@dataclass(kw_only=True, eq=False, repr=False)
class GeoPixInstruct(FolderDataset):
    """What ``data=geopixinstruct`` instantiates. A sample's id is those of its image and instance."""

    images: str = "."
    """Folder of the images, in the root."""
    files_of: dict[str, str] = field(
        default_factory=lambda: {"train": "**/train*", "val": "**/valid*", "test": "**/test*"}
    )
    """The files of each split, ``.parquet``, ``.json`` or ``.jsonl``, as a pattern in the root."""
    truth: Literal["mask", "boxes"] = "mask"
    """``boxes``: an instance's box is all that is known; its mask only decides the order of boxes."""

    def splits(self) -> Sequence[str]:
        return list(self.files_of)

    def rows(self, split: str) -> Iterator[Row | AnnotationError]:
        images, paths = self.subfolder(self.images), self._paths(split)
        order = order_of(paths, self.max_pixels)
        log.info("%s: boxes are %s, by the masks of up to %d instances", self.name, order, PROBES)

        def asked(_: int, place: str, entry: Record) -> Iterator[Row | AnnotationError]:
            for index, instance in enumerate(value_of(entry, "instances", list)):
                try:
                    row = self._row(entry, instance, order, f"{place}, instance {index}", split, images)
                except AnnotationError as error:
                    yield AnnotationError(f"{place}, instance {index}: {error}")
                    continue
                yield from self.ask(row, [instance.get("description")])

        for path in paths:
            yield from self.each(path, asked, COLUMNS)

    def _row(self, entry: Record, instance: Any, order: Order, place: str, split: str, images: Path) -> Row:
        if not isinstance(instance, dict):
            raise AnnotationError("must be an object, {...}; correct the annotation")
        (box,) = boxes_of([instance.get("bbox")], order)
        masks = self.truth == "mask"
        return Row(
            location=place,
            sample_id=f"{name_of(entry, 'image_id')}-{name_of(instance, 'instance_id')}",
            image=inside(images, value_of(entry, "image_path", str)),
            query="",
            split=split,
            reasoning=None,
            kind="rle" if masks else "boxes",
            target=checked("rle", instance.get("mask")) if masks else [box],
            attributes=attributes_of(instance, {"category": "category"}),
        )

    def _paths(self, split: str) -> list[Path]:
        """The files of a split, sorted.

        Raises:
            ConfigError: there are none.
        """
        paths = sorted(p for p in self.top.glob(self.files_of[split]) if p.suffix in (".parquet", ".json", ".jsonl"))
        if not paths:
            raise ConfigError(
                f"{self.top}/{self.files_of[split]}: no such file of .parquet, .json or .jsonl; data.root is the "
                f"folder that {self.name} was unpacked into, data.files_of.{split} names the files"
            )
        return paths


def order_of(paths: Sequence[Path], max_pixels: int) -> Order:
    """The order of the numbers of boxes in files of one set: the one that fits the masks of its first instances.

    Each box is compared, in either order, with the box around its mask; an order fits from a mean IoU of :data:`FIT`.

    Args:
        paths: of the files.
        max_pixels: size of the largest mask that is decoded.

    Raises:
        AnnotationError: neither order fits, or there is no instance with a box and a mask.
    """
    probes = list(islice(_probes(paths, max_pixels), PROBES))
    if not probes:
        raise AnnotationError(f"{paths[0]}: no instance with bbox and mask; see that this is the right file")
    fits = {order: sum(_fit(box, order, truth) for box, truth in probes) / len(probes) for order in _ORDERS}
    best = max(_ORDERS, key=lambda order: fits[order])
    if fits[best] < FIT:
        raise AnnotationError(
            f"{paths[0]}: bbox fits the masks neither as [x0, y0, x1, y1] (mean IoU {fits['xyxy']:.2f}) nor as [x, y, "
            f"width, height] ({fits['xywh']:.2f}) in {len(probes)} instances; download the set anew"
        )
    return best


def _probes(paths: Sequence[Path], max_pixels: int) -> Iterator[tuple[Any, Box]]:
    """The box as written and that around the mask, of every instance whose mask can be decoded."""
    for path in paths:
        for _, entry in entries_of(path, COLUMNS):
            instances = entry.get("instances") if isinstance(entry, dict) else None
            for instance in instances if isinstance(instances, list) else []:
                rle: Any = instance.get("mask") if isinstance(instance, dict) else None
                if problem_of("rle", rle) or rle["size"][0] * rle["size"][1] > max_pixels:
                    continue
                with suppress(ShapeError):
                    box = mask_to_box(decode_rle(rle, tuple(rle["size"])))
                    yield from [] if box is None else [(instance.get("bbox"), box)]


def _fit(written: Any, order: Order, truth: Box) -> float:
    """IoU of a box, read in an order, with the true one; 0 of what is no box in that order."""
    try:
        ((x0, y0, x1, y1),) = boxes_of([written], order)
    except AnnotationError:
        return 0.0
    return box_iou((x0, y0, x1, y1), truth)
