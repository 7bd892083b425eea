"""Referring sets as a list of phrases: ``output_phrase_{split}.txt``, a folder of images and one of masks.

A line is the image's name, white space and the phrase. RefSegRS (Yuan et al., arXiv 2306.08625) gives names without
their suffix, RISBench (Dong et al., CroBIM, arXiv 2410.08613) with it; a mask is called like its image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from grasp_rl.data.annotations import AnnotationError, Row
from grasp_rl.data.image_io import MAX_PIXELS
from grasp_rl.data.published import FolderDataset, inside


class PhraseListDataset(FolderDataset):
    """What ``data=refsegrs`` and ``data=risbench`` instantiate. A sample's id is the name in its line.

    Args:
        root: see :class:`~grasp_rl.data.published.FolderDataset`; as for ``name`` and those from ``question`` on.
        name: of the dataset.
        images: folder of the images, in the root.
        masks: folder of the masks, in the root; all that is not 0 is the target.
        suffix: what follows the name in a line to make that of a file.
        question: which of several questions about one target is asked; here a target has one.
        seed: of the draw of a question.
        limit: records of a split that are used.
        on_bad: what to do about a record that cannot be used.
        max_pixels: largest image that is decoded.
        on_doubt: what to do about a mask whose values speak against how it is read.
    """

    def __init__(
        self,
        root: str,
        name: str,
        images: str,
        masks: str,
        suffix: str = "",
        question: Literal["first", "all", "seeded"] = "first",
        seed: int = 0,
        limit: int | None = None,
        on_bad: Literal["raise", "skip"] = "raise",
        max_pixels: int = MAX_PIXELS,
        on_doubt: Literal["raise", "warn"] = "warn",
    ) -> None:
        super().__init__(root, name, question, seed, limit, on_bad, max_pixels, on_doubt)
        self.image_folder, self.mask_folder, self.suffix = self.folder(images), self.folder(masks), suffix

    def rows(self, split: str) -> Iterator[Row | AnnotationError]:
        path = self.file(f"output_phrase_{split}.txt")
        for number, line in enumerate(_lines(path), 1):
            if not line.strip():
                continue
            name, *phrase = line.split(maxsplit=1)
            try:
                image, mask = (inside(folder, name + self.suffix) for folder in (self.image_folder, self.mask_folder))
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


def _lines(path: Path) -> Sequence[str]:
    """The lines of a text file.

    Raises:
        AnnotationError: it is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error
