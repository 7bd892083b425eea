"""The base of dataset readers: a reader says which records a split has, everything else is here.

Indexing, decoding, records that cannot be used, questions about one image and drawing come from :class:`RecordDataset`
and
:class:`Split`. A reader of image files yields :class:`~grasp_rl.data.annotations.Row`; one that makes its samples
otherwise overrides :meth:`RecordDataset.decode`.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from grasp_rl.config.errors import ConfigError, require
from grasp_rl.data.annotations import AnnotationError, Row, problem_of
from grasp_rl.data.few_shot import few_shot
from grasp_rl.data.image_io import AS_STORED, MAX_PIXELS, ImageError, ImageReading, read_described
from grasp_rl.data.masks import ALL_BUT_ZERO, MaskReading, inspect_mask
from grasp_rl.data.rasterize import ShapeError, decode_rle, parts, ring_masks
from grasp_rl.data.visualization import draw_sample
from grasp_rl.data.weak_labels import weak_labels_from_masks
from grasp_rl.types import BoolMask, Box, Image, Sample, SpatialPrompt

log = logging.getLogger(__name__)

OnBad = Literal["raise", "skip"]
OnDoubt = Literal["raise", "warn"]
Question = Literal["first", "all", "seeded"]
T = TypeVar("T")


class RecordDataset:
    """A dataset of named splits, each a sequence of records.

    Args:
        name: of the dataset, in predictions and reports.
        on_bad: what to do about a record that cannot be used: ``raise``, or ``skip`` it with a warning; the next one
            stands in for it. More than 1 % of a split's records (but one is always forgiven) is an error either way.
        max_pixels: largest image, width times height, that is decoded.
        bands: the bands, from 1, shown as red, green and blue; None for what a file says, else the first three.
        stretch: how values become 8 bits: ``auto``, ``none``, or [low, high], the stored values that become 0 and 255.
        mask_foreground: value, values or colours of a mask file that mean the target; None for all that is not 0.
        ignore_value: value, values or colours of a mask file whose pixels count in no metric and no reward.
        on_doubt: what to do about a mask whose values speak against how it is read: ``raise`` or ``warn``.
        question: which of several questions about one target is asked: ``first``, ``all``, or a drawn one, ``seeded``.
        seed: of that draw, which depends on it and on the record's id alone.
        limit: records of a split that are used, the first ones; None for all.
        shots: samples a category of ``train``, drawn by ``seed`` (:mod:`grasp_rl.data.few_shot`); None for all.

    Raises:
        ConfigError: an argument is out of range.
    """

    val_from: str | None = None
    """The split that stands in for ``val`` where there is none."""
    inside: Path | None = None
    """Where the files of the dataset lie; None for a reader that names no files, or does not say."""
    allow_outside: bool = False
    """Whether images and masks may lie elsewhere, reached by ``..`` or a link."""

    def __init__(
        self,
        *,
        name: str,
        on_bad: OnBad = "raise",
        max_pixels: int = MAX_PIXELS,
        bands: list[int] | None = None,
        stretch: Literal["auto", "none"] | list[float] = "auto",
        mask_foreground: int | list[int] | list[list[int]] | None = None,
        ignore_value: int | list[int] | list[list[int]] | None = None,
        on_doubt: OnDoubt = "warn",
        question: Question = "first",
        seed: int = 0,
        limit: int | None = None,
        shots: int | None = None,
    ) -> None:
        require(shots is None or shots >= 1, "data.shots", shots, ">= 1, or null for all")
        require(question in ("first", "all", "seeded"), "data.question", question, "first, all or seeded")
        require(limit is None or limit >= 1, "data.limit", limit, ">= 1, or null for all")
        require(on_bad in ("raise", "skip"), "data.on_bad", on_bad, "raise or skip")
        require(on_doubt in ("raise", "warn"), "data.on_doubt", on_doubt, "raise or warn")
        require(max_pixels >= 1, "data.max_pixels", max_pixels, ">= 1")
        self.name, self.on_bad, self.max_pixels, self.on_doubt = name, on_bad, max_pixels, on_doubt
        self.image_reading = ImageReading(bands=bands, stretch=stretch)
        self.mask_reading = MaskReading(foreground=mask_foreground, ignore=ignore_value)
        self.question, self.seed, self.limit, self.shots = question, seed, limit, shots
        self._converted: dict[str, set[Hashable]] = {}
        self._doubts: set[str] = set()

    def records(self, split: str) -> Iterable[Any]:
        """The records of ``split`` in a fixed order, the same on every machine.

        In place of one that cannot be used stands the AnnotationError that says why.

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
            ConfigError: there is no such split, or nothing in it.
            ConfigError: ``shots`` is given and a record of ``train`` has no category.
            AnnotationError: a record cannot be used, or has the id of another, and is not to be skipped.
        """
        records = usable(distinct(self.records(name)), self.on_bad)
        if not records:
            raise ConfigError(f"data split {name!r}: {self.name} has no record of it; see that the download is whole")
        if self.shots is not None and name == "train":
            records = few_shot(records, self.shots, self.seed, self.name)
        return Split(self, name, records[: self.limit])

    def ask(
        self, row: Row, questions: Sequence[Any], details: Sequence[Mapping[str, Any]] = ()
    ) -> Iterator[Row | AnnotationError]:
        """``row`` with each of ``questions`` that ``question`` selects; of one that cannot be asked, why.

        Of ``details``, as many as there are questions or none, each question's row gets its fields.

        The id with question k > 0 is that of ``row`` followed by ``#k``, so that an id means the same question under
        every selection.
        """
        if not questions:
            yield AnnotationError(f"{row.location}: no question; write one, or take the image out")
            return
        chosen: Sequence[int] = range(len(questions)) if self.question == "all" else [0]
        if self.question == "seeded":
            drawn = hashlib.sha256(f"{self.seed}/{row.sample_id}".encode()).digest()
            chosen = [int.from_bytes(drawn) % len(questions)]
        for index in chosen:
            problem = problem_of("query", questions[index])
            if problem is not None:
                yield AnnotationError(f"{row.location}: question {index}: {problem}")
                continue
            number = f"#{index}" if index else ""
            more = details[index] if details else {}
            yield replace(row, sample_id=f"{row.sample_id}{number}", query=questions[index], **more)

    def decode(self, record: Any, split: str, image: Image | None = None) -> Sample:
        """The sample of ``record``.

        Args:
            record: one of :meth:`records`; here a :class:`~grasp_rl.data.annotations.Row`.
            split: the split it is in.
            image: [H, W, 3] uint8 RGB of the record where it has been read already, else None.

        Raises:
            AnnotationError: its image or target cannot be used.
        """
        image = self._image(record) if image is None else image
        target = self.target(record, (image.shape[0], image.shape[1]))
        if target.doubt is not None:
            self._question(target.doubt)
        weak_labels = target.weak_labels
        if record.category is not None and weak_labels is not None:
            weak_labels = tuple(replace(label, category=record.category) for label in weak_labels)
        return Sample(
            sample_id=record.sample_id,
            image=image,
            query=record.query,
            target_mask=target.mask,
            ignore_mask=target.ignored,
            weak_labels=weak_labels,
            dataset=self.name,
            split=record.split,
            reasoning=record.reasoning,
            attributes=record.attributes,
            instance_masks=target.instance_masks,
        )

    def target(self, record: Any, size: tuple[int, int]) -> Target:
        """What ``record`` asks for in its image of ``size`` (height, width), as :func:`target_of`.

        Raises:
            AnnotationError: the target does not fit the image.
        """
        if isinstance(record, Row) and record.kind == "mask":
            self._demand_inside(record.target, "mask")
        return target_of(record, size, self.max_pixels, self.mask_reading)

    def files(self, records: Sequence[Any]) -> list[Path]:
        """The files that ``records`` are read from, so that a run can tell whether its data are still the same."""
        rows = [record for record in records if isinstance(record, Row)]
        sources = dict.fromkeys(source for row in rows for source in row.sources)
        return [*sources, *(row.image for row in rows), *(row.target for row in rows if row.kind == "mask")]

    @property
    def conversions(self) -> Mapping[str, int]:
        """What was done to stored values to show them, in words, and to how many of the images read so far."""
        return {conversion: len(images) for conversion, images in self._converted.items()}

    def load(self, record: Any) -> tuple[Image, str]:
        """The image of ``record`` and what was done to its values, as :func:`load_image`.

        Raises:
            AnnotationError: it cannot be read.
        """
        self._demand_inside(record.image, "image")
        return load_image(record, self.max_pixels, self.image_reading)

    def _demand_inside(self, path: Any, kind: str) -> None:
        """Demand that a file lies in the dataset's folder.

        Raises:
            AnnotationError: it leads out of it, and that was not allowed.
        """
        if self.inside is None or self.allow_outside or not isinstance(path, Path):
            return
        if not os.path.realpath(path).startswith(os.path.realpath(self.inside) + os.sep):
            raise AnnotationError(
                f"{kind}: {path} leads out of {self.inside}; data.allow_outside=true reads it all the same (with a + "
                "in front where the option does not list it)"
            )

    def _image(self, record: Any) -> Image:
        """The image of ``record``; what was done to its values is noted, and said when it is first met."""
        image, conversion = self.load(record)
        if conversion and conversion not in self._converted:
            log.info("%s: %s (said of the first such image only)", record.image, conversion)
        if conversion:
            self._converted.setdefault(conversion, set()).add(self.image_of(record))
        return image

    def _question(self, doubt: str) -> None:
        """Refuse a mask in doubt, or warn of it once.

        Raises:
            AnnotationError: it is to be refused.
        """
        if self.on_doubt == "raise":
            raise AnnotationError(f"mask: {doubt}; data.on_doubt=warn takes it as it is")
        if doubt not in self._doubts:
            self._doubts.add(doubt)
            log.warning("data.on_doubt=warn: %s", doubt)

    def image_of(self, record: Any) -> Hashable:
        """What is equal for records about one image."""
        image: Hashable = record.image
        return image

    def place_of(self, record: Any) -> str:
        """Where ``record`` stands, for messages: file and line."""
        return str(record.location)

    def origin(self, record: Any) -> tuple[RecordDataset, Any]:
        """The dataset whose reader yielded ``record``, and the record as that one knows it."""
        return self, record


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

    def usable_samples(self, count: int | None = None) -> Iterator[tuple[Hashable, Sample]]:
        """Each usable sample of ``count`` evenly spaced records, once, and what is equal for those of one image.

        Raises:
            AnnotationError: a record cannot be used, and is not to be skipped.
        """
        total = len(self.records)
        taken = total if count is None else min(count, total)
        for number in range(taken):
            index = number * total // taken
            sample = self._try(index)
            if sample is not None:
                yield self.dataset.image_of(self.records[index]), sample

    def files(self, count: int | None = None) -> list[Path]:
        """The files that the first ``count`` samples are read from, annotations included."""
        return self.dataset.files(self.records[:count])

    def plot(self, sample: Sample) -> Image:
        """The sample drawn with its question, mask and weak labels: [h, w, 3] uint8 RGB."""
        return draw_sample(sample)

    def check_truth(self, count: int | None = None) -> None:
        """See that the first ``count`` records can be scored, before any is answered.

        Raises:
            ConfigError: one of them has neither a mask nor boxes.
        """
        if getattr(self.records, "queries", None) is not None:
            return  # lines of an annotations file each have a target
        for record in self.records[:count]:
            if getattr(record, "kind", None) == "none":
                raise ConfigError(
                    f"data split {self.split!r}: {self.dataset.place_of(record)} has neither a mask nor boxes to score "
                    f"an answer by; score another split of {self.name} (evaluation.test_split), or use grasp-rl predict"
                )

    def check_questions(self, refusal: Callable[[str, Callable[[], Image]], str | None]) -> None:
        """Find every record whose question cannot be asked, before the first sample is wanted.

        Args:
            refusal: why a question cannot be asked, or None; of its text and a function that reads its image.

        Raises:
            AnnotationError: there is one, and it is not to be skipped.
        """
        stored = getattr(self.records, "queries", None)
        queries = stored() if stored else (getattr(record, "query", None) for record in self.records)
        for index, query in enumerate(queries):
            if query is None or index in self.skipped:
                continue
            try:
                reason = refusal(query, partial(self._image, index))
            except AnnotationError as error:
                reason = str(error)
            if reason is not None:
                self._leave_out(index, AnnotationError(f"{self.dataset.place_of(self.records[index])}: {reason}"))

    def _image(self, index: int) -> Image:
        return self.dataset.decode(self.records[index], self.split).image

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


def usable(records: Iterable[T | AnnotationError], on_bad: OnBad, more: str = "") -> list[T]:
    """Those of ``records`` that are no errors; to skip an error is to warn of it, within :func:`forgive`'s limit.

    Args:
        records: each usable, or what is wrong with it.
        on_bad: see :class:`RecordDataset`.
        more: command that lists all errors, for the message.

    Raises:
        AnnotationError: there is an error, and it is not to be skipped.
    """
    records = list(records)
    errors = [record for record in records if isinstance(record, AnnotationError)]
    forgive_all(errors, len(records), on_bad, more)
    return [record for record in records if not isinstance(record, AnnotationError)]


def forgive_all(errors: Sequence[AnnotationError], rows: int, on_bad: OnBad, more: str = "") -> None:
    """:func:`forgive` each of ``errors`` among so many rows, or raise the first; see :func:`usable`."""
    for count, error in enumerate(errors, 1):
        if on_bad == "raise":
            others = f" (and {len(errors) - 1} more{more})" if len(errors) > 1 else ""
            raise AnnotationError(f"{error}{others}")
        forgive(error, count, rows)


def distinct(records: Iterable[Any]) -> Iterator[Any]:
    """``records``, and an error in place of a row whose id another one before it has."""
    places: dict[str, str] = {}
    for record in records:
        if isinstance(record, Row) and record.sample_id in places:
            first = places[record.sample_id]
            yield AnnotationError(
                f"{record.location}: the id {record.sample_id!r} is also that of {first}; every record needs its own"
            )
            continue
        if isinstance(record, Row):
            places[record.sample_id] = record.location
        yield record


def forgive(error: AnnotationError, skipped: int, rows: int) -> None:
    """Warn of a skipped record.

    Raises:
        AnnotationError: it is one too many.
    """
    allowed = max(1, rows // 100)
    if skipped > allowed:
        raise AnnotationError(f"{error} (one more than the {allowed} of {rows} rows that data.on_bad=skip leaves out)")
    log.warning("data.on_bad=skip: %s", error)


def load_image(row: Row, max_pixels: int, reading: ImageReading = AS_STORED) -> tuple[Image, str]:
    """The image of ``row``, [H, W, 3] uint8 RGB, and what was done to its values in words.

    Raises:
        AnnotationError: it cannot be read.
    """
    try:
        return read_described(row.image, max_pixels, reading)
    except ImageError as error:
        raise AnnotationError(f"image: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a row says of its image."""

    mask: BoolMask | None
    """[H, W] True for the target; None where only boxes are given."""
    weak_labels: tuple[SpatialPrompt, ...] | None
    """Of the instances, left to right; () where nothing answers, None where that is not known."""
    ignored: BoolMask | None = None
    """[H, W] True where a pixel does not count; None where all do."""
    doubt: str | None = None
    """Why the mask may not be what is meant: file, what was found, remedy."""
    instance_masks: Callable[[], list[BoolMask]] | None = None
    """Draws the masks of the instances in the row's order; None where it names none."""


def target_of(row: Row, size: tuple[int, int], max_pixels: int, reading: MaskReading = ALL_BUT_ZERO) -> Target:
    """What ``row`` asks for in an image of ``size`` (height, width).

    A ring of ``polygons`` is an instance, or a hole of one where the row has ``holes``; in a ``mask`` or ``rle`` every
    connected part is one. ``boxes`` are weak labels, with points where the row has them, and there is no mask.
    ``none``: nothing is known.

    Raises:
        AnnotationError: the target does not fit the image.
    """
    try:
        if row.kind == "none":
            return Target(mask=None, weak_labels=None)
        if row.kind == "boxes":
            points = row.points or [()] * len(row.target)
            boxes = [_box_label(*label, size, row.extent) for label in zip(row.target, points, strict=True)]
            return Target(mask=None, weak_labels=tuple(sorted(boxes, key=lambda weak_label: weak_label.box or ())))
        if row.kind == "polygons":
            mask = np.zeros(size, dtype=np.bool_)
            weak_labels = weak_labels_from_masks(_rings_into(mask, row))
            return Target(mask=mask, weak_labels=weak_labels, instance_masks=_instance_masks(row, size))
        if row.kind == "rle":
            mask = np.zeros(size, dtype=np.bool_)
            for rle in row.target if isinstance(row.target, list) else [row.target]:
                mask |= decode_rle(rle, size)
            weak_labels = weak_labels_from_masks(parts(mask))
            return Target(mask=mask, weak_labels=weak_labels, instance_masks=_instance_masks(row, size))
        read = inspect_mask(row.target, size, max_pixels, reading)
        weak_labels = weak_labels_from_masks(parts(read.target), read.ignored)
        return Target(mask=read.target, weak_labels=weak_labels, ignored=read.ignored, doubt=read.doubt)
    except (ShapeError, ImageError) as error:
        raise AnnotationError(f"{row.kind}: {error}") from error


def _instance_masks(row: Row, size: tuple[int, int]) -> Callable[[], list[BoolMask]] | None:
    """Draws the masks of a row's instances in its own order; None where it names none."""
    if row.kind == "polygons":
        return partial(_listed, partial(ring_masks, row.target, size, holes=row.holes))
    if row.kind == "rle" and isinstance(row.target, list):
        return partial(_listed, partial(_decoded, row.target, size))
    return None


def _listed(masks: Callable[[], Iterator[BoolMask]]) -> list[BoolMask]:
    return list(masks())


def _decoded(encoded: Sequence[Any], size: tuple[int, int]) -> Iterator[BoolMask]:
    return (decode_rle(rle, size) for rle in encoded)


def _rings_into(mask: BoolMask, row: Row) -> Iterator[BoolMask]:
    """The mask of every instance, each added to ``mask`` in passing."""
    for instance in ring_masks(row.target, (mask.shape[0], mask.shape[1]), holes=row.holes):
        mask |= instance
        yield instance


def _box_label(
    box: Sequence[float], points: Sequence[Sequence[float]], size: tuple[int, int], extent: tuple[float, float] | None
) -> SpatialPrompt:
    """The weak label of a box [x0, y0, x1, y1] and of points [x, y, 1 or 0], cut off at the image's border.

    Raises:
        ShapeError: the box or a point is outside the image.
    """
    height, width = size
    corners, coords = [(box[0], box[1]), (box[2], box[3])], [(x, y) for x, y, _ in points]
    if extent is not None:
        across, down = extent
        corners = [(x * width / across, y * height / down) for x, y in corners]
        coords = [(x * width / across, y * height / down) for x, y in coords]
    x0, x1 = (float(min(max(x, 0), width)) for x, _ in corners)
    y0, y1 = (float(min(max(y, 0), height)) for _, y in corners)
    if x0 >= x1 or y0 >= y1:
        raise ShapeError(f"{list(box)} is outside the image of {width} x {height}; give it in pixels of this image")
    beyond = next(((x, y) for x, y in coords if not (0 <= x <= width and 0 <= y <= height)), None)
    if beyond is not None:
        raise ShapeError(f"point {list(beyond)} is outside the image of {width} x {height}; give it in its pixels")
    clipped: Box = (x0, y0, x1, y1)
    labels = tuple(int(label) for *_, label in points)
    return SpatialPrompt(box=clipped, point_coords=tuple(coords), point_labels=labels)
