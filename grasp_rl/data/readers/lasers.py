"""LaSeRS (SegEarth-R2): questions of several axes, an answer with a ``[SEG]`` for every mask, masks as run lengths.

    train/annotations/train_ann.json     [{id, image_name, description, answer, mask: [run lengths, ...]}]
    test/annotations/*.json              such a list for every axis
    train|test/images/                   the images

The public files of test have neither ``answer`` nor ``mask``: their samples have no truth, and can be asked but not
scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.annotations import AnnotationError, Row
from grasp_rl.data.published import FolderDataset, checked, inside, name_of, value_of
from grasp_rl.utils.files import Record

MARK = "[SEG]"
_DEEP = "rs_reason_seg/LaSeRS"


@dataclass(kw_only=True, eq=False, repr=False)
class Lasers(FolderDataset):
    """What ``data=lasers`` instantiates.

    A sample's id is the entry's ``id``; in test, where there are several files, the stem of its file comes first.
    """

    axis: str | None = None
    """The file of test that is read, without ``.json``; None for all."""

    def splits(self) -> Sequence[str]:
        return ("train", "test")

    def rows(self, split: str) -> Iterator[Row | AnnotationError]:
        deep = (self.top / _DEEP / split).is_dir()
        folder = f"{_DEEP}/{split}" if deep else split
        images = self.subfolder(f"{folder}/images")
        for path in self._files(f"{folder}/annotations", split):

            def asked(_: int, place: str, entry: Record, path: Path = path) -> Iterator[Row | AnnotationError]:
                row = self._row(place, entry, split, images, path.stem if split == "test" else "")
                yield from self.ask(row, [entry.get("description")])

            yield from self.each(path, asked)

    def _row(self, place: str, entry: Record, split: str, images: Path, axis: str) -> Row:
        name, masks, answer = name_of(entry), entry.get("mask"), entry.get("answer")
        if masks is None and split != "test":
            raise AnnotationError("mask: must be a list of run lengths; only files of test come without")
        count = answer.count(MARK) if isinstance(answer, str) else None
        if masks is not None:
            masks = [checked("rle", rle) for rle in value_of(entry, "mask", list)]
            if count is None or count != len(masks):
                said = "no answer" if count is None else f"{count} {MARK} in its answer"
                raise AnnotationError(f"mask: {len(masks)} masks and {said}, must be as many; download the file anew")
        numbers = {} if masks is None else {"instances": len(masks), "no_target": int(not masks)}
        return Row(
            location=place,
            sample_id=f"{axis}-{name}" if axis else name,
            image=inside(images, entry.get("image_name")),
            query="",
            split=split,
            reasoning=None,
            kind="none" if masks is None else "rle",
            target=masks,
            attributes={**({"axis": axis} if axis else {}), **numbers},
        )

    def _files(self, folder: str, split: str) -> list[Path]:
        """The files of a split.

        Raises:
            ConfigError: there are none.
        """
        if split == "train":
            return [self.file(f"{folder}/train_ann.json")]
        if self.axis is not None:
            return [self.file(f"{folder}/{self.axis}.json")]
        files = sorted(self.subfolder(folder).glob("*.json"))
        if not files:
            raise ConfigError(f"{self.top / folder}: no .json in it; download the annotations anew")
        return files
