"""NWPU-FS (Geo-R1's few-shot detection set of NWPU VHR-10): a COCO file and the classes that each image has.

    annotations_{split}_set*.json    {images: [{id, file_name}], annotations: [{id, image_id, category_id, bbox}],
                                     categories: [{id, name}]}
    nwpu_exist_cat.json              {image_id: [class, ...]}
    positive_image_set/              the images

A question asks for every instance of a class, and only for classes that the second file says are present.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grasp_rl.config.errors import ConfigError, require
from grasp_rl.data.annotations import AnnotationError, Row
from grasp_rl.data.importers.base import QUESTION, question_of
from grasp_rl.data.published import CocoTables, FolderDataset, boxes_of, inside, read_document
from grasp_rl.utils.files import Record

PRESENT = "nwpu_exist_cat.json"


@dataclass(kw_only=True, eq=False, repr=False)
class NwpuFewShot(FolderDataset):
    """What ``data=nwpu_fs`` instantiates. A sample's id is that of the image and the class; there is no mask."""

    template: str = QUESTION
    """The question, ``{category}`` in it for the class."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            "{category}" in self.template, "data.template", self.template, f"with {{category}}, such as {QUESTION!r}"
        )

    def rows(self, split: str) -> Iterator[Row | AnnotationError]:
        images, listed = self.subfolder("positive_image_set"), self.file(PRESENT)
        coco = CocoTables.read(self._annotations(split))
        present = read_document(listed)
        if not isinstance(present, dict):
            raise AnnotationError(f"{listed}: must be an object of lists by image id; see that this is the right file")
        boxes: dict[tuple[int, int], list[Any]] = {}
        for annotation in coco.lists["annotations"].values():
            match annotation:
                case {"image_id": int() as of_image, "category_id": int() as of_class}:
                    boxes.setdefault((of_image, of_class), []).append(annotation.get("bbox"))
        for image_id, image in sorted(coco.lists["images"].items()):
            place = f"{listed}: image {image_id}"
            classes = present.get(str(image_id))
            if not isinstance(classes, list):
                yield AnnotationError(
                    f"{place}: must be a list of the classes that image {image_id} of {coco.path} has"
                )
                continue
            for requested in classes:
                try:
                    category = _category(coco, requested)
                    matching = boxes.get((image_id, category["id"]), [])
                    row = Row(
                        location=place,
                        sample_id=f"{image_id}-{category['name']}",
                        image=inside(images, image.get("file_name")),
                        query="",
                        split=split,
                        reasoning=None,
                        kind="boxes",
                        target=boxes_of(matching, "xywh"),
                        attributes={"category": category["name"], "instances": len(matching)},
                        category=category["name"],
                        sources=(coco.path, listed),
                    )
                    if not matching:
                        raise AnnotationError(
                            f"{category['name']!r} has no box in {coco.path}; download both files anew"
                        )
                except AnnotationError as error:
                    yield AnnotationError(f"{place}: {error}")
                    continue
                yield from self.ask(row, [question_of(self.template, category["name"])])

    def _annotations(self, split: str) -> Path:
        """The COCO file of a split.

        Raises:
            ConfigError: there is none, or several.
        """
        pattern = f"annotations_{split}_set*.json"
        files = sorted(self.top.glob(pattern))
        if len(files) != 1:
            names = ", ".join(path.name for path in files) or "none"
            raise ConfigError(
                f"{self.top}/{pattern}: one file is wanted, found {names}; data.root is the folder that "
                f"{self.name} was unpacked into"
            )
        return files[0]


def _category(coco: CocoTables, requested: Any) -> Record:
    """The category called ``requested``, or with that id.

    Raises:
        AnnotationError: there is none.
    """
    for number, category in coco.lists["categories"].items():
        if isinstance(category.get("name"), str) and requested in (number, category["name"]):
            return category
    raise AnnotationError(f"{str(requested)[:40]!r} is not in categories of {coco.path}; download both files anew")
