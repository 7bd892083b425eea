"""RISBench (Dong et al., CroBIM, arXiv 2410.08613) as Arrow files: a folder a split, images and masks in the rows.

    train|validation|test/data-*.arrow      columns image, mask, phrase

The files are mapped into memory; a row's image and mask are decoded when its sample is asked for.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.annotations import AnnotationError, Row
from grasp_rl.data.base import Target
from grasp_rl.data.published import FolderDataset
from grasp_rl.data.tables import open_arrow, stored_bytes, texts_in
from grasp_rl.types import Image

if TYPE_CHECKING:
    import pyarrow

COLUMNS = ("image", "mask", "phrase")
_FOLDERS = {"train": "train", "val": "validation", "test": "test"}
_SHARD = re.compile(r"-of-(\d{1,6})\.arrow$")


@dataclass(frozen=True, kw_only=True)
class StoredRow(Row):
    """A row whose image and mask are cells of a table."""

    number: int = field(default=0)
    """Of the row in its file, :attr:`image`."""


@dataclass(kw_only=True, eq=False, repr=False)
class ArrowDataset(FolderDataset):
    """What ``data=risbench_arrow`` instantiates. A sample's id is the number of its row in the split."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.inside = None  # its images are in its tables

    def rows(self, split: str) -> Iterator[Row | AnnotationError]:
        total = 0
        for path in self._files(split):
            for number, phrase in enumerate(texts_in(path, _table(path), "phrase")):
                row = StoredRow(
                    location=f"{path}: row {number}",
                    sample_id=str(total),
                    image=path,
                    query="",
                    split=split,
                    reasoning=None,
                    kind="mask",
                    target=path,
                    number=number,
                )
                total += 1
                yield from self.ask(row, [phrase])

    def files(self, records: Sequence[Any]) -> list[Path]:
        return list(dict.fromkeys(row.image for row in records))

    def image_of(self, record: Any) -> Hashable:
        place: str = record.location
        return place

    def load(self, record: Any) -> tuple[Image, str]:
        with _unpacked(record, "image") as path:
            return super().load(replace(record, image=path))

    def target(self, record: Any, size: tuple[int, int]) -> Target:
        with _unpacked(record, "mask") as path:
            return super().target(replace(record, target=path), size)

    def _files(self, split: str) -> list[Path]:
        """The Arrow files of a split.

        Raises:
            ConfigError: there are none, or not all of them.
        """
        folder = self.subfolder(_FOLDERS[split])
        files = sorted(folder.glob("data-*.arrow"))
        parts = {match.group(1) for file in files if (match := _SHARD.search(file.name))}
        if not files or (parts and parts != {f"{len(files):0{len(min(parts))}}"}):
            expected = f"the {int(max(parts))} of them" if parts else "any"
            raise ConfigError(
                f"{folder}: found {len(files)} files data-*.arrow and not {expected}; download the split whole"
            )
        return files


def _table(path: Path) -> pyarrow.Table:
    """The table in a file, kept as long as the file is the same."""
    status = path.stat()
    return _opened(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=256)
def _opened(path: Path, _changed: int, _size: int) -> pyarrow.Table:
    return open_arrow(path, COLUMNS)


@contextmanager
def _unpacked(row: StoredRow, column: str) -> Iterator[Path]:
    """What a cell holds, as a file for as long as the body runs; errors about it are told without that file's folder.

    Raises:
        AnnotationError: the cell holds no file, or the body raises one.
    """
    data = stored_bytes(_table(row.image), column, row.number)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, column)
        path.write_bytes(data)
        try:
            yield path
        except AnnotationError as error:
            raise AnnotationError(str(error).replace(f"{folder}/", "")) from error
