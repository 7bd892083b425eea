"""Your own pictures and questions as a dataset: a folder with pictures and one annotations.jsonl.

Lines are checked when the source is made, pictures are read when a sample is asked for. docs/datasets.md has the
schema; `grasp-rl data validate` lists everything that is wrong with a file at once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.annotations import AnnotationError, Row, annotations_path, read_lines
from grasp_rl.data.image_io import MAX_PIXELS
from grasp_rl.data.targets import read_picture, target_of
from grasp_rl.types import Image, Sample
from grasp_rl.utils.visualization import draw_sample

log = logging.getLogger(__name__)

OnBad = Literal["raise", "skip"]


class JsonlSource:
    """What ``data=jsonl`` instantiates.

    Args:
        root: a folder with the annotations file, or that file itself.
        annotations: name of the file in ``root``; its pictures' paths are relative to where it is.
        name: of the dataset, in predictions and reports.
        on_bad: what to do about a row that cannot be used: ``raise``, or ``skip`` it with a warning. A skipped line is
            left out, and the next row stands in for one whose picture fails. More than 1 % of the rows (but one is
            always forgiven) is an error either way.
        max_pixels: largest picture, width times height, that is decoded.
        val_from: the split to validate on where the file has no ``val``. None for none: asking for it is an error.

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
        val_from: str | None = None,
    ) -> None:
        if on_bad not in ("raise", "skip"):
            raise ConfigError(f"data.on_bad={on_bad!r}: must be raise or skip")
        if max_pixels < 1:
            raise ConfigError(f"data.max_pixels={max_pixels!r}: must be >= 1")
        self.path = annotations_path(root, annotations)
        self.name, self.on_bad, self.max_pixels, self.val_from = name, on_bad, max_pixels, val_from
        self.rows: dict[str, list[Row]] = {}
        """The rows of each split, in the file's order."""
        for row in _usable_rows(self.path, on_bad):
            self.rows.setdefault(row.split, []).append(row)
        if not self.rows:
            raise ConfigError(f"{self.path}: no rows; write one JSON object a line (docs/datasets.md has an example)")
        if val_from is not None and val_from not in self.rows:
            raise ConfigError(f"data.val_from={val_from!r}: must be one of the splits in {self.path}, {self._found()}")

    def split(self, name: str) -> JsonlDataset:
        """The split called ``name``; for ``val``, where the file has none, the split that ``val_from`` says.

        Raises:
            ConfigError: there is no such split.
        """
        if name not in self.rows and name == "val" and self.val_from is not None:
            name = self.val_from
        if name not in self.rows:
            more = "data.val_from=SPLIT, evaluation.every=0 (no validation)" if name == "val" else "name another split"
            raise ConfigError(f"data split {name!r}: {self.path} has {self._found()}; add rows with it, or {more}")
        rows = self.rows[name]
        return JsonlDataset(rows, self.path, name=self.name, on_bad=self.on_bad, max_pixels=self.max_pixels)

    def _found(self) -> str:
        return ", ".join(f"{split} ({len(rows)} rows)" for split, rows in self.rows.items())


class JsonlDataset:
    """One split; see :class:`JsonlSource`.

    Args:
        rows: at least one, all of one split.
        path: the annotations file, for messages.
        name: of the dataset.
        on_bad: raise or skip.
        max_pixels: largest picture that is decoded.
    """

    def __init__(self, rows: Sequence[Row], path: Path, *, name: str, on_bad: OnBad, max_pixels: int) -> None:
        self.rows, self.path, self.name, self.split = rows, path, name, rows[0].split
        self.on_bad, self.max_pixels = on_bad, max_pixels
        self.skipped: set[int] = set()
        """Places of the rows found unusable so far."""
        self._about: dict[Path, list[int]] = {}
        for place, row in enumerate(rows):
            self._about.setdefault(row.image, []).append(place)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        return self._first_usable(index)[1]

    def same_picture(self, index: int, count: int) -> list[Sample]:
        """Up to ``count`` samples with the picture of sample ``index``, itself first, then those after it in turn."""
        place, first = self._first_usable(index)
        siblings = self._about[self.rows[place].image]
        start = siblings.index(place) + 1
        samples = [first]
        for other in siblings[start:] + siblings[: start - 1]:
            sample = self._try(other, first.image) if len(samples) < count else None
            samples += [sample] if sample is not None else []
        return samples

    def plot(self, sample: Sample) -> Image:
        """The sample drawn with its question, mask and cues: [h, w, 3] uint8 RGB."""
        return draw_sample(sample)

    def _first_usable(self, index: int) -> tuple[int, Sample]:
        """The sample at ``index`` and its place; behind a row that is skipped, the next."""
        if not 0 <= index < len(self.rows):
            raise IndexError(f"{self.name}/{self.split} has {len(self.rows)} samples, asked for number {index}")
        for step in range(len(self.rows)):
            place = (index + step) % len(self.rows)
            sample = self._try(place)
            if sample is not None:
                return place, sample
        raise ConfigError(f"{self.path}: no row of the split {self.split} can be used; see the log for each")

    def _try(self, place: int, image: Image | None = None) -> Sample | None:
        """The sample at ``place``, its picture read unless it is given; None where it is skipped."""
        if place in self.skipped:
            return None
        row = self.rows[place]
        try:
            image = read_picture(row, self.max_pixels) if image is None else image
            mask, cues = target_of(row, (image.shape[0], image.shape[1]), self.max_pixels)
        except AnnotationError as error:
            located = AnnotationError(f"{self.path}:{row.line}: {error}")
            if self.on_bad == "raise":
                raise located from error
            self.skipped.add(place)
            _forgive(located, len(self.skipped), len(self.rows))
            return None
        return Sample(
            sample_id=row.sample_id,
            image=image,
            query=row.query,
            target_mask=mask,
            cues=cues,
            dataset=self.name,
            split=row.split,
            reasoning=row.reasoning,
        )


def _usable_rows(path: Path, on_bad: OnBad) -> list[Row]:
    """The rows of an annotations file.

    Raises:
        AnnotationError: a line cannot be used, and is not to be skipped.
    """
    lines = list(read_lines(path))
    bad = [line for line in lines if line.row is None]
    for count, line in enumerate(bad, 1):
        error = AnnotationError(f"{path}:{line.number}: {'; '.join(line.problems)}")
        if on_bad == "raise":
            more = f" (and {len(bad) - 1} more: grasp-rl data validate {path})" if len(bad) > 1 else ""
            raise AnnotationError(f"{error}{more}")
        _forgive(error, count, len(lines))
    return [line.row for line in lines if line.row is not None]


def _forgive(error: AnnotationError, skipped: int, rows: int) -> None:
    """Warn of a skipped row.

    Raises:
        AnnotationError: it is one too many.
    """
    allowed = max(1, rows // 100)
    if skipped > allowed:
        raise AnnotationError(f"{error} (one more than the {allowed} of {rows} rows that data.on_bad=skip leaves out)")
    log.warning("data.on_bad=skip: %s", error)
