"""The base of dataset readers: a reader says which records a split has, everything else is here.

Indexing, decoding, records that cannot be used, questions about one image and drawing come from :class:`RecordDataset`
and
:class:`Split`. A reader of image files yields :class:`~grasp_rl.data.annotations.Row`; one that makes its samples
otherwise overrides :meth:`RecordDataset.decode`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.annotations import AnnotationError, Row
from grasp_rl.data.image_io import MAX_PIXELS, ImageError, read_image, read_mask
from grasp_rl.data.rasterize import ShapeError, decode_rle, parts, ring_masks
from grasp_rl.data.weak_labels import weak_labels_from_masks
from grasp_rl.types import BoolMask, Box, Image, Sample, SpatialPrompt
from grasp_rl.utils.visualization import draw_sample

log = logging.getLogger(__name__)

OnBad = Literal["raise", "skip"]


class RecordDataset:
    """A dataset of named splits, each a sequence of records.

    Args:
        name: of the dataset, in predictions and reports.
        on_bad: what to do about a record that cannot be used: ``raise``, or ``skip`` it with a warning; the next one
            stands in for it. More than 1 % of a split's records (but one is always forgiven) is an error either way.
        max_pixels: largest image, width times height, that is decoded.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(self, *, name: str, on_bad: OnBad = "raise", max_pixels: int = MAX_PIXELS) -> None:
        if on_bad not in ("raise", "skip"):
            raise ConfigError(f"data.on_bad={on_bad!r}: must be raise or skip")
        if max_pixels < 1:
            raise ConfigError(f"data.max_pixels={max_pixels!r}: must be >= 1")
        self.name, self.on_bad, self.max_pixels = name, on_bad, max_pixels

    def records(self, split: str) -> Iterable[Any]:
        """The records of ``split`` in a fixed order, the same on every machine.

        Raises:
            ConfigError: there is no such split.
        """
        raise NotImplementedError

    def splits(self) -> Sequence[str]:
        """Names of the splits there are."""
        raise NotImplementedError

    def split(self, name: str) -> Split:
        """The split called ``name``.

        Raises:
            ConfigError: there is no such split.
        """
        records = self.records(name)
        return Split(self, name, records if isinstance(records, Sequence) else list(records))

    def decode(self, record: Any, split: str, image: Image | None = None) -> Sample:
        """The sample of ``record``.

        Args:
            record: one of :meth:`records`; here a :class:`~grasp_rl.data.annotations.Row`.
            split: the split it is in.
            image: [H, W, 3] uint8 RGB of the record where it has been read already, else None.

        Raises:
            AnnotationError: its image or target cannot be used.
        """
        image = load_image(record, self.max_pixels) if image is None else image
        mask, weak_labels = target_of(record, (image.shape[0], image.shape[1]), self.max_pixels)
        return Sample(
            sample_id=record.sample_id,
            image=image,
            query=record.query,
            target_mask=mask,
            weak_labels=weak_labels,
            dataset=self.name,
            split=record.split,
            reasoning=record.reasoning,
        )

    def image_of(self, record: Any) -> Hashable:
        """What is equal for records about one image."""
        image: Hashable = record.image
        return image

    def place_of(self, record: Any) -> str:
        """Where ``record`` stands, for messages: file and line."""
        return str(record.location)


class Split:
    """One split of a :class:`RecordDataset`: a sequence of samples, decoded when they are asked for.

    Args:
        dataset: which decodes.
        name: of the split.
        records: one or more.
    """

    def __init__(self, dataset: RecordDataset, name: str, records: Sequence[Any]) -> None:
        self.dataset, self.records, self.name, self.split = dataset, records, dataset.name, name
        self.skipped: set[int] = set()
        """Indices of the records found unusable so far."""
        self._siblings: dict[Hashable, list[int]] | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        return self._first_usable(index)[1]

    def same_image(self, index: int, count: int) -> list[Sample]:
        """Up to ``count`` samples about the image of sample ``index``, itself first, then those after it in turn."""
        first_index, first = self._first_usable(index)
        siblings = self._about(self.dataset.image_of(self.records[first_index]))
        start = siblings.index(first_index) + 1
        samples = [first]
        for other in siblings[start:] + siblings[: start - 1]:
            sample = self._try(other, first.image) if len(samples) < count else None
            samples += [sample] if sample is not None else []
        return samples

    def plot(self, sample: Sample) -> Image:
        """The sample drawn with its question, mask and weak labels: [h, w, 3] uint8 RGB."""
        return draw_sample(sample)

    def check_questions(self, refusal: Callable[[str, Callable[[], Image]], str | None]) -> None:
        """Find every record whose question cannot be asked, before the first sample is wanted.

        Args:
            refusal: why a question cannot be asked, or None; of its text and a function that reads its image.

        Raises:
            AnnotationError: there is one, and it is not to be skipped.
        """
        for index, record in enumerate(self.records):
            query = getattr(record, "query", None)
            if query is None or index in self.skipped:
                continue
            try:
                reason = refusal(query, partial(self._image, record))
            except AnnotationError as error:
                reason = str(error)
            if reason is not None:
                self._leave_out(index, AnnotationError(f"{self.dataset.place_of(record)}: {reason}"))

    def _image(self, record: Any) -> Image:
        return self.dataset.decode(record, self.split).image

    def _about(self, image: Hashable) -> list[int]:
        if self._siblings is None:
            self._siblings = {}
            for index, record in enumerate(self.records):
                self._siblings.setdefault(self.dataset.image_of(record), []).append(index)
        return self._siblings[image]

    def _first_usable(self, index: int) -> tuple[int, Sample]:
        """The sample at ``index`` and its index; behind a record that is skipped, the next."""
        if not 0 <= index < len(self.records):
            raise IndexError(f"{self.name}/{self.split} has {len(self.records)} samples, asked for number {index}")
        for step in range(len(self.records)):
            tried = (index + step) % len(self.records)
            sample = self._try(tried)
            if sample is not None:
                return tried, sample
        raise ConfigError(f"{self.name}: no record of the split {self.split} can be used; see the log for each")

    def _try(self, index: int, image: Image | None = None) -> Sample | None:
        """The sample at ``index``, its image read unless it is given; None where it is skipped."""
        if index in self.skipped:
            return None
        record = self.records[index]
        try:
            return self.dataset.decode(record, self.split, image)
        except AnnotationError as error:
            self._leave_out(index, AnnotationError(f"{self.dataset.place_of(record)}: {error}"))
            return None

    def _leave_out(self, index: int, error: AnnotationError) -> None:
        if self.dataset.on_bad == "raise":
            raise error
        self.skipped.add(index)
        forgive(error, len(self.skipped), len(self.records))


def forgive(error: AnnotationError, skipped: int, rows: int) -> None:
    """Warn of a skipped record.

    Raises:
        AnnotationError: it is one too many.
    """
    allowed = max(1, rows // 100)
    if skipped > allowed:
        raise AnnotationError(f"{error} (one more than the {allowed} of {rows} rows that data.on_bad=skip leaves out)")
    log.warning("data.on_bad=skip: %s", error)


def load_image(row: Row, max_pixels: int) -> Image:
    """The image of ``row``, [H, W, 3] uint8 RGB.

    Raises:
        AnnotationError: it cannot be read.
    """
    try:
        return read_image(row.image, max_pixels)
    except ImageError as error:
        raise AnnotationError(f"image: {error}") from error


def target_of(row: Row, size: tuple[int, int], max_pixels: int) -> tuple[BoolMask | None, tuple[SpatialPrompt, ...]]:
    """The mask [H, W] and the weak labels of ``row`` in an image of ``size`` (height, width).

    A ring of ``polygons`` is an instance, or a hole of one where the row has ``holes``; in a ``mask`` or ``rle`` every
    connected part is one. ``boxes`` are weak labels without points, and there is no mask.

    Raises:
        AnnotationError: the target does not fit the image.
    """
    try:
        if row.kind == "boxes":
            return None, tuple(
                sorted((_box_label(box, size) for box in row.target), key=lambda weak_label: weak_label.box or ())
            )
        if row.kind == "polygons":
            mask = np.zeros(size, dtype=np.bool_)
            weak_labels = weak_labels_from_masks(_rings_into(mask, row))
            return mask, weak_labels
        mask = read_mask(row.target, size, max_pixels) if row.kind == "mask" else decode_rle(row.target, size)
        return mask, weak_labels_from_masks(parts(mask))
    except (ShapeError, ImageError) as error:
        raise AnnotationError(f"{row.kind}: {error}") from error


def _rings_into(mask: BoolMask, row: Row) -> Iterator[BoolMask]:
    """The mask of every instance, each added to ``mask`` in passing."""
    for instance in ring_masks(row.target, (mask.shape[0], mask.shape[1]), holes=row.holes):
        mask |= instance
        yield instance


def _box_label(box: Sequence[float], size: tuple[int, int]) -> SpatialPrompt:
    height, width = size
    x0, x1 = (float(min(max(v, 0), width)) for v in (box[0], box[2]))
    y0, y1 = (float(min(max(v, 0), height)) for v in (box[1], box[3]))
    if x0 >= x1 or y0 >= y1:
        raise ShapeError(f"{list(box)} is outside the image of {width} x {height}; give it in pixels of this image")
    clipped: Box = (x0, y0, x1, y1)
    return SpatialPrompt(box=clipped)
