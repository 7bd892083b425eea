"""DIOR-RSVG (Zhan et al., github.com/ZhanYang-nwpu/RSVG-pytorch): boxes of described objects on images of DIOR.

    Annotations/*.xml                <annotation><filename/><object><name/><pose/><bndbox/><description/></object>...
    JPEGImages/                      the images
    train.txt, val.txt, test.txt     a number a line

The numbers count the objects of all XML files, sorted by name, from 0. So one file too few shifts all that follow: more
numbers than objects are an error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree

from grasp_rl.data.annotations import AnnotationError, Row
from grasp_rl.data.published import FolderDataset, boxes_of, inside, lines_of
from grasp_rl.data.xml_files import read_xml

log = logging.getLogger(__name__)

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class _Object:
    """An object of an XML file."""

    path: Path
    image: str
    element: ElementTree.Element


@dataclass(kw_only=True, eq=False, repr=False)
class DiorRsvg(FolderDataset):
    """What ``data=dior_rsvg`` instantiates. A sample's id is the number of its object; there is no mask."""

    def rows(self, split: str) -> Iterator[Row | AnnotationError]:
        images, path = self.subfolder("JPEGImages"), self.file(f"{split}.txt")
        numbers = _numbers(path)
        self._demand_whole()
        for line, number in numbers:
            place = f"{path}:{line} (object {number})"
            thing = self._objects[number]
            if isinstance(thing, AnnotationError):
                yield thing
                continue
            try:
                row = Row(
                    location=place,
                    sample_id=str(number),
                    image=inside(images, thing.image),
                    query="",
                    split=split,
                    reasoning=None,
                    kind="boxes",
                    target=boxes_of([_box(thing.element)]),
                    attributes={"category": (thing.element.findtext("name") or "").strip()},
                    sources=(path, thing.path),
                )
            except AnnotationError as error:
                yield AnnotationError(f"{place}: {thing.path}: {error}")
                continue
            text = thing.element.findtext("description")
            yield from self.ask(row, [] if text is None else [text.strip()])

    @cached_property
    def _objects(self) -> list[_Object | AnnotationError]:
        """Every object by its number.

        Raises:
            AnnotationError: a file cannot be read, so that the numbers after it are not known.
        """
        objects: list[_Object | AnnotationError] = []
        for path in sorted(self.subfolder("Annotations").glob("*.xml")):
            root = read_xml(path)
            image = (root.findtext("filename") or f"{path.stem}.jpg").strip()
            objects += [_Object(path, image, element) for element in root.findall("object")]
        return objects

    def _demand_whole(self) -> None:
        """Demand that there are as many objects as the files of all splits count.

        Raises:
            AnnotationError: there are fewer.
        """
        files = [path for split in self.splits() if (path := self.top / f"{split}.txt").is_file()]
        expected = 1 + max((number for path in files for _, number in _numbers(path)), default=-1)
        count, folder = len(self._objects), self.top / "Annotations"
        if count < expected:
            raise AnnotationError(
                f"{folder}: {count} objects in its XML files, and the splits count {expected}; a missing file shifts "
                "all numbers after it, so download the annotations whole"
            )
        if count > expected:
            log.warning("%s: %d objects, and the splits count %d; see that no file is added", folder, count, expected)


def _numbers(path: Path) -> list[tuple[int, int]]:
    """(line, number) of every line of a split.

    Raises:
        AnnotationError: a line is no number.
    """
    lines = [(line, text.strip()) for line, text in enumerate(lines_of(path), 1) if text.strip()]
    for line, text in lines:
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise AnnotationError(
                f"{path}:{line}: {text[:40]!r} must be the number of an object; download the file anew"
            )
    return [(line, int(text)) for line, text in lines]


def _box(element: ElementTree.Element) -> list[float]:
    """[x0, y0, x1, y1] of an object: its ``bndbox``, else its third child.

    Raises:
        AnnotationError: it has none.
    """
    box = element.find("bndbox")
    box = element[2] if box is None and len(element) > 2 else box
    try:
        return [float(box.findtext(name) or "") for name in _CORNERS] if box is not None else []
    except ValueError as error:
        raise AnnotationError(
            "bndbox: must have xmin, ymin, xmax, ymax, numbers of pixels; correct the file"
        ) from error
