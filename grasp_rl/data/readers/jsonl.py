"""Your own images and questions as a dataset: a folder with images and one annotations.jsonl.

Lines are checked when the dataset is made, images are read when a sample is asked for. docs/datasets.md has the schema;
`grasp-rl data validate` lists everything that is wrong with a file at once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from grasp_rl.config.errors import ConfigError
from grasp_rl.data import annotation_table
from grasp_rl.data.annotations import AnnotationError, Row, annotations_path, read_lines
from grasp_rl.data.base import OnBad, RecordDataset, Split, forgive_all, usable
from grasp_rl.data.image_io import MAX_PIXELS

log = logging.getLogger(__name__)


class JsonlSource(RecordDataset):
    """What ``data=jsonl`` instantiates.

    Args:
        root: a folder with the annotations file, or that file itself.
        annotations: name of the file in ``root``; its images' paths are relative to where it is.
        name: see :class:`~grasp_rl.data.base.RecordDataset`.
        on_bad: see :class:`~grasp_rl.data.base.RecordDataset`; a line that cannot be read is left out.
        max_pixels: see :class:`~grasp_rl.data.base.RecordDataset`; as for the next five.
        bands: which bands are shown.
        stretch: how values become 8 bits.
        mask_foreground: which values of a mask mean the target.
        ignore_value: which values of a mask do not count.
        on_doubt: what to do about a mask whose values speak against how it is read.
        val_from: the split to validate on where the file has no ``val``. None for none: asking for it is an error.
        allow_outside: see :class:`~grasp_rl.data.base.RecordDataset`.

    Raises:
        ConfigError: there is no such file, no row in it, or a row cannot be used.
    """

    def __init__(
        self,
        root: str,
        annotations: str = "annotations.jsonl",
        name: str = "jsonl",
        on_bad: Literal["raise", "skip"] = "raise",
        max_pixels: int = MAX_PIXELS,
        bands: list[int] | None = None,
        stretch: Literal["auto", "none"] | list[float] = "auto",
        mask_foreground: int | list[int] | list[list[int]] | None = None,
        ignore_value: int | list[int] | list[list[int]] | None = None,
        on_doubt: Literal["raise", "warn"] = "warn",
        val_from: str | None = None,
        allow_outside: bool = False,
    ) -> None:
        super().__init__(
            name=name,
            on_bad=on_bad,
            max_pixels=max_pixels,
            bands=bands,
            stretch=stretch,
            mask_foreground=mask_foreground,
            ignore_value=ignore_value,
            on_doubt=on_doubt,
        )
        self.path, self.val_from = annotations_path(root, annotations), val_from
        self.inside, self.allow_outside = self.path.parent, allow_outside
        self.rows: Mapping[str, Sequence[Row]] = _rows_by_split(self.path, on_bad)
        """The rows of each split, in the file's order."""
        if not self.rows:
            raise ConfigError(f"{self.path}: no rows; write one JSON object a line (docs/datasets.md has an example)")
        if val_from is not None and val_from not in self.rows:
            raise ConfigError(f"data.val_from={val_from!r}: must be one of the splits in {self.path}, {self._found()}")

    def splits(self) -> Sequence[str]:
        return list(self.rows)

    def split(self, name: str) -> Split:
        """The split called ``name``; for ``val``, where the file has none, the split that ``val_from`` says."""
        borrowed = name == "val" and name not in self.rows and self.val_from is not None
        name = self.val_from if borrowed and self.val_from else name
        records = self.records(name)
        if isinstance(records, annotation_table.Rows):  # checked, ids included, when the table was made
            return Split(self, name, records[: self.limit])
        return super().split(name)

    def records(self, split: str) -> Sequence[Row]:
        if split not in self.rows:
            more = "data.val_from=SPLIT, evaluation.every=0 (no validation)" if split == "val" else "name another split"
            raise ConfigError(f"data split {split!r}: {self.path} has {self._found()}; add rows with it, or {more}")
        return self.rows[split]

    def files(self, records: Sequence[Row]) -> list[Path]:
        return [self.path, *super().files(records)]

    def _found(self) -> str:
        return ", ".join(f"{split} ({len(rows)} rows)" for split, rows in self.rows.items())


def _rows_by_split(path: Path, on_bad: OnBad) -> dict[str, Sequence[Row]]:
    """The rows of an annotations file by split; those of a large one stay on disk.

    Raises:
        AnnotationError: a line cannot be used, and is not to be skipped.
    """
    more = f": grasp-rl data validate {path}"
    if path.stat().st_size >= annotation_table.FROM_BYTES:
        try:
            rows, errors = annotation_table.read(path, read_lines(path))
        except OSError as error:
            log.warning("%s: no table can be kept of it (%s); it is read anew by every run", path, error)
        else:
            forgive_all(errors, sum(map(len, rows.values())) + len(errors), on_bad, more)
            return rows
    lines = [
        AnnotationError(f"{path}:{line.number}: {'; '.join(line.problems)}") if line.row is None else line.row
        for line in read_lines(path)
    ]
    by_split: dict[str, list[Row]] = {}
    for row in usable(lines, on_bad, more):
        by_split.setdefault(row.split, []).append(row)
    return dict(by_split)
