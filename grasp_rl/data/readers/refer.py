"""The layout of REFER: pickled references, one COCO file of masks, a folder of images.

Of Yu et al. (arXiv 1608.00272, github.com/lichengunc/refer) for RefCOCO; RRSIS-D (Liu et al., arXiv 2312.12470,
github.com/Lsan2401/RMSIN) and sets after it are published so::

    {folder}/refs(unc).p             [{ref_id, ann_id, image_id, split, sentences: [{raw, ...}], ...}]
    {folder}/instances.json          {images: [{id, file_name}], annotations: [{id, image_id, category_id,
                                      segmentation}], categories: [{id, name}]}
    images/{folder}/JPEGImages/      the images
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from grasp_rl.data.annotations import AnnotationError, Row, problem_of
from grasp_rl.data.published import CocoTables, FolderDataset, inside, objects_in, read_document, ring_of
from grasp_rl.utils.files import Record

_DAMAGE = (EOFError, AttributeError, LookupError, MemoryError, OverflowError, TypeError, ValueError, struct.error)
"""What unpickling a damaged file raises, beside ``UnpicklingError``."""


@dataclass(kw_only=True, eq=False, repr=False)
class ReferDataset(FolderDataset):
    """What ``data=rrsis_d``, ``data=rrsis_hr`` and ``data=ris_lad`` instantiate. A sample's id is its ``ref_id``.

    ``on_doubt`` and how masks' values are read have no effect: masks are run lengths or polygons.
    """

    folder: str
    """Folder of the annotations, in the root."""
    refs: str = "refs(unc).p"
    """File of the references in :attr:`folder`: a pickle, or JSON where the name ends in ``.json``."""
    same_ids: bool = False
    """Demand that every reference has ``image_id == ref_id``. Public readers of RRSIS-D find the image by one or the
    other, which is the same only then."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pictures = self.subfolder(f"images/{self.folder}/JPEGImages")
        self.refs_file = self.file(f"{self.folder}/{self.refs}")
        self.instances_file = self.file(f"{self.folder}/instances.json")

    def splits(self) -> Sequence[str]:
        """The splits that the references name, sorted."""
        return sorted({split for ref in self.references if isinstance(split := ref.get("split"), str)})

    def rows(self, split: str) -> Iterator[Row | AnnotationError]:
        tables = self._tables
        for index, ref in enumerate(self.references):
            if ref.get("split") != split:
                continue
            number = ref.get("ref_id")
            place = f"{self.refs_file}: reference {index}" + (f" (ref_id {number})" if isinstance(number, int) else "")
            try:
                row = self._row(ref, place, split, tables)
            except AnnotationError as error:
                yield AnnotationError(f"{place}: {error}")
                continue
            yield from self.ask(row, [sentence["raw"] for sentence in ref["sentences"]])

    @cached_property
    def references(self) -> list[Record]:
        """The references, in the order of their file.

        Raises:
            AnnotationError: the file cannot be read, or is no list of them.
        """
        path = self.refs_file
        document = read_document(path) if path.suffix == ".json" else read_plain_pickle(path)
        return objects_in(path, "the file", document)

    @cached_property
    def _tables(self) -> CocoTables:
        return CocoTables.read(self.instances_file)

    def _row(self, ref: Record, place: str, split: str, tables: CocoTables) -> Row:
        """The row of a reference, still without its question.

        Raises:
            AnnotationError: a field is not there, or refers to nothing.
        """
        missing = [key for key in ("ref_id", "ann_id", "image_id") if not isinstance(ref.get(key), int)]
        if missing:
            raise AnnotationError(f"{', '.join(missing)}: must be a whole number; this is no file of REFER's layout")
        sentences = ref.get("sentences")
        if not isinstance(sentences, list) or not all(isinstance(s, dict) and "raw" in s for s in sentences):
            raise AnnotationError("sentences: must be a list of objects with raw; this is no file of REFER's layout")
        if self.same_ids and ref["image_id"] != ref["ref_id"]:
            raise AnnotationError(
                f"image_id {ref['image_id']}: must be ref_id in {self.name}, whose readers take one for the other; "
                "download the annotations anew, or say data.same_ids=false to go by image_id"
            )
        image, annotation = tables.find("images", ref["image_id"]), tables.find("annotations", ref["ann_id"])
        if annotation.get("image_id") != ref["image_id"]:
            raise AnnotationError(
                f"ann_id {ref['ann_id']} is of image {annotation.get('image_id')!r} in {self.instances_file}, not of "
                f"image_id {ref['image_id']}; download both files anew"
            )
        kind, target = _target(annotation.get("segmentation"))
        number = annotation.get("category_id")
        category = tables.lists["categories"].get(number, {}).get("name") if isinstance(number, int) else None
        return Row(
            location=place,
            sample_id=str(ref["ref_id"]),
            image=inside(self.pictures, image.get("file_name")),
            query="",
            split=split,
            reasoning=None,
            kind=kind,
            target=target,
            attributes={"category": category} if isinstance(category, str) else {},
            sources=(self.refs_file, self.instances_file),
        )


def _target(segmentation: Any) -> tuple[str, Any]:
    """The kind and value of a row's target: run lengths whose union is meant, or rings.

    Args:
        segmentation: COCO's: run lengths, a list of such, or a list of flat polygons [x0, y0, x1, y1, ...].

    Raises:
        AnnotationError: it is none of these.
    """
    shapes = [segmentation] if isinstance(segmentation, dict) else segmentation
    if not isinstance(shapes, list) or not shapes:
        raise AnnotationError("segmentation: must be run lengths or polygons, and not empty; leave the reference out")
    if all(isinstance(shape, dict) for shape in shapes):
        problems = [problem_of("rle", shape) for shape in shapes]
        kind, target = "rle", shapes
    else:
        target = [ring_of(shape) for shape in shapes]
        problems, kind = [problem_of("polygons", target)], "polygons"
    problem = next((text for text in problems if text), None)
    if problem is not None:
        raise AnnotationError(f"segmentation: {problem}")
    return kind, target


class _PlainUnpickler(pickle._Unpickler):
    """Reads containers, text and numbers; whatever names a class or function is refused before it is looked up.

    The one in Python, since that in C takes gigabytes of memory where a damaged or crafted file numbers a value highly.
    Byte arrays, for which any file could claim as much, are no plain values.
    """

    dispatch: ClassVar[dict[int, Callable[[pickle.Unpickler], None]]] = {
        code: read for code, read in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]
    }

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module}.{name}, which reading it would run")


def read_plain_pickle(path: Path) -> Any:
    """The value in a pickle of nothing but containers, text and numbers; nothing in the file is executed.

    Raises:
        AnnotationError: it holds something else, or is damaged.
    """
    try:
        return _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="utf-8").load()
    except pickle.UnpicklingError as error:
        raise AnnotationError(
            f"{path}: not a pickle of plain values ({error}); download it from its authors, or convert it to JSON "
            "where you trust it and say data.refs=FILE.json"
        ) from error
    except _DAMAGE as error:
        raise AnnotationError(f"{path}: a damaged pickle ({error}); it may be cut short, download it again") from error
