"""Which of several images fits the first one: pairs of your own, such as a street view and satellite images.

    {split}.json   [{id, image, question, images: [path, ...], answer: "B"}], paths relative to the folder
                   A is the first of ``images``

The pairs that Geo-R1 (arXiv 2510.00072) trains on are not published as files; this is our own layout for such data.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grasp_rl.data.annotations import AnnotationError, Row
from grasp_rl.data.base import load_image
from grasp_rl.data.published import FolderDataset, inside, name_of, value_of
from grasp_rl.types import Image, Sample
from grasp_rl.utils.files import Record


@dataclass(frozen=True, kw_only=True)
class ChoiceRow(Row):
    """A question that shows more than one image."""

    more_images: tuple[Path, ...]
    choice: str
    """Letter of the right one."""


@dataclass(kw_only=True, eq=False, repr=False)
class CrossView(FolderDataset):
    """What ``data=cross_view`` instantiates; its samples have a choice, and neither mask nor boxes."""

    def splits(self) -> Sequence[str]:
        stems = sorted(path.stem for path in self.top.glob("*.json"))
        return stems or ("train", "val", "test")

    def rows(self, split: str) -> Iterator[Row | AnnotationError]:
        def asked(_: int, place: str, entry: Record) -> Iterator[Row | AnnotationError]:
            paths = tuple(inside(self.top, name) for name in value_of(entry, "images", list))
            letters, answer = string.ascii_uppercase[: len(paths)], value_of(entry, "answer", str)
            if len(paths) < 2:
                raise AnnotationError(f"images: {len(paths)} of them; a choice is between two or more")
            if len(answer) != 1 or answer not in letters:
                raise AnnotationError(f"answer={answer!r}: must be one of {', '.join(letters)}")
            row = ChoiceRow(
                location=place,
                sample_id=name_of(entry),
                image=inside(self.top, value_of(entry, "image", str)),
                query="",
                split=split,
                reasoning=None,
                kind="boxes",
                target=[],
                more_images=paths,
                choice=answer,
            )
            yield from self.ask(row, [value_of(entry, "question", str)])

        yield from self.each(self.file(f"{split}.json"), asked)

    def decode(self, record: Any, split: str, image: Image | None = None) -> Sample:
        """See the base.

        Raises:
            AnnotationError: an image cannot be read.
        """
        sample = super().decode(record, split, image)
        more = tuple(
            load_image(replace(record, image=path), self.max_pixels, self.image_reading)[0]
            for path in record.more_images
        )
        return replace(sample, more_images=more, choice=record.choice, target_mask=None, weak_labels=())

    def files(self, records: Sequence[Any]) -> list[Path]:
        """See the base."""
        return [*super().files(records), *(path for record in records for path in record.more_images)]
