"""Referring sets as a list of phrases: ``output_phrase_{split}.txt``, a folder of images and one of masks.

A line is the image's name, white space and the phrase. RefSegRS (Yuan et al., arXiv 2306.08625) gives names without
their suffix, RISBench (Dong et al., CroBIM, arXiv 2410.08613) with it; a mask is called like its image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from grasp_rl.data.annotations import AnnotationError, Row
from grasp_rl.data.published import FolderDataset, inside, lines_of


@dataclass(kw_only=True, eq=False, repr=False)
class PhraseListDataset(FolderDataset):
    """What ``data=refsegrs`` and ``data=risbench`` instantiate. A sample's id is the name in its line."""

    images: str
    """Folder of the images, in the root."""
    masks: str
    """Folder of the masks, in the root."""
    suffix: str = ""
    """What follows the name in a line to make that of a file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.subfolder(self.images)
        self.subfolder(self.masks)

    def rows(self, split: str) -> Iterator[Row | AnnotationError]:
        path = self.file(f"output_phrase_{split}.txt")
        for number, line in enumerate(lines_of(path), 1):
            if not line.strip():
                continue
            name, *phrase = line.split(maxsplit=1)
            try:
                image, mask = (
                    inside(folder, name + self.suffix) for folder in (self.top / self.images, self.top / self.masks)
                )
            except AnnotationError as error:
                yield AnnotationError(f"{path}:{number}: {error}")
                continue
            row = Row(
                location=f"{path}:{number}",
                sample_id=name,
                image=image,
                query="",
                split=split,
                reasoning=None,
                kind="mask",
                target=mask,
                sources=(path,),
            )
            yield from self.ask(row, ["".join(phrase).strip()])
