"""A folder of your own, read where it is: images/, masks/ by the same stem, and one CSV of questions.

The CSV is that of ``grasp-rl data import folder``: columns image and question, and where there are, mask, split, id and
reasoning. Boxes and points are derived from the masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from grasp_rl.config.errors import require
from grasp_rl.data.annotations import AnnotationError, Row, problem_of
from grasp_rl.data.importers import folder as importer
from grasp_rl.data.importers.base import Item, SourceError, Splitting
from grasp_rl.data.published import FolderDataset


@dataclass(kw_only=True, eq=False, repr=False)
class QuestionFolder(FolderDataset):
    """What ``data=folder`` instantiates. A sample's id is the row's ``id``, else its image's stem and the line."""

    table: str | None = None
    """Name of the CSV; None for the only one in the folder."""
    fractions: dict[str, float] | None = None
    """Share of the images in each split, drawn by ``seed``; None for what the column ``split`` says, else train."""

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = self.fractions
        whole = shares is None or (min(shares.values(), default=0) > 0 and abs(sum(shares.values()) - 1) < 1e-6)
        require(
            whole, "data.fractions", shares, "shares above 0 that sum to 1, such as {train: 0.8, val: 0.1, test: 0.1}"
        )
        self.path = importer.table_of(self.top) if self.table is None else self.file(self.table)

    def splits(self) -> Sequence[str]:
        return list(dict.fromkeys(self.fractions or self._split_of.values()))

    def rows(self, split: str) -> Iterator[Row | AnnotationError]:
        for number, item in enumerate(self._items):
            if isinstance(item, SourceError):
                yield AnnotationError(str(item))
            elif self._split_of[number] == split:
                yield from self.ask(self._row(item, split), [item.query])

    @cached_property
    def _items(self) -> list[Item | SourceError]:
        """The rows of the CSV, or what is wrong with each."""
        return list(importer.items(self.path))

    @cached_property
    def _split_of(self) -> dict[int, str]:
        """The split of every row that can be used, by its number."""
        items = {number: item for number, item in enumerate(self._items) if isinstance(item, Item)}
        splits = Splitting(fractions=self.fractions, seed=self.seed).of(list(items.values()))
        return dict(zip(items, splits, strict=True))

    def _row(self, item: Item, split: str) -> Row:
        empty = "mask" not in item.target
        thought = item.reasoning if item.reasoning and problem_of("reasoning", item.reasoning) is None else None
        return Row(
            location=item.place,
            sample_id=item.sample_id,
            image=item.image,
            query="",
            split=split,
            reasoning=thought,
            kind="polygons" if empty else "mask",
            target=[] if empty else item.target["mask"],
            attributes={"no_target": int(empty)},
            sources=(self.path,),
        )
