"""Everything that is wrong with a dataset, at once: each row that training would stumble over, and what to do.

What is allowed and yet unlikely to be meant (:mod:`grasp_rl.data.plausibility`) is a warning.

Every image is decoded once, every mask, run length and polygon is laid over it. No model, no torch.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from grasp_rl.config.errors import ConfigError
from grasp_rl.data import plausibility
from grasp_rl.data.annotations import AnnotationError, Row, read_lines
from grasp_rl.data.base import RecordDataset, distinct
from grasp_rl.data.image_io import AS_STORED, ImageReading
from grasp_rl.data.masks import ALL_BUT_ZERO, MaskReading
from grasp_rl.data.plausibility import USUAL_SPLITS
from grasp_rl.types import Image
from grasp_rl.utils.files import Record

Level = Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something wrong with one line or record."""

    line: int
    """Number of the line, or of the record, from 1; 0 for the file or the split as a whole."""
    problem: str
    """Key or image, what was found, remedy."""
    level: Level = "error"
    place: str | None = None
    """Where the record stands; "" where ``problem`` says so itself, None where ``line`` does."""


@dataclass(kw_only=True)
class Report:
    """What a dataset holds and what is wrong with it."""

    path: Path
    """Of the annotations file, or of what holds the records."""
    rows: int = 0
    """Lines that are not blank, or records."""
    splits: Counter[str] = field(default_factory=Counter)
    """Good rows by split."""
    no_target: Counter[str] = field(default_factory=Counter)
    """Good rows that nothing in the image answers, by split."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Good rows by what they give: mask, rle, polygons or boxes; sample for a reader that makes its samples itself."""
    shared: int = 0
    """Images that are in more than one split."""
    conversions: Counter[str] = field(default_factory=Counter)
    """Images by what was done to their values to show them."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def bad(self) -> int:
        """How many rows have an error."""
        return len({finding.line for finding in self.findings if finding.line and finding.level == "error"})

    @property
    def warnings(self) -> int:
        """How many findings are warnings."""
        return sum(finding.level == "warning" for finding in self.findings)

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return self.warnings == len(self.findings)

    @property
    def no_target_share(self) -> float:
        """Share of the good rows that nothing answers."""
        return self.no_target.total() / max(1, self.splits.total())

    def as_record(self) -> Record:
        """The report as one JSON object."""
        splits = {name: {"rows": count, "no_target": self.no_target[name]} for name, count in self.splits.items()}
        return {
            "file": str(self.path),
            "ok": self.ok,
            "rows": self.rows,
            "bad": self.bad,
            "warnings": self.warnings,
            "splits": splits,
            "kinds": dict(self.kinds),
            "no_target_share": self.no_target_share,
            "images_in_several_splits": self.shared,
            "conversions": dict(self.conversions),
            "findings": [
                {"line": f.line, "level": f.level, "problem": f.problem} | ({"place": f.place} if f.place else {})
                for f in self.findings
            ],
        }


def validate(
    path: Path,
    max_pixels: int,
    images: ImageReading = AS_STORED,
    masks: MaskReading = ALL_BUT_ZERO,
    *,
    strict: bool = False,
) -> Report:
    """Check every row of the annotations file ``path`` and everything that it names.

    Args:
        path: see :func:`grasp_rl.data.annotations.annotations_path`.
        max_pixels: largest image, width times height, that is decoded.
        images: how images become 8-bit RGB.
        masks: which values of a mask file mean what.
        strict: warnings are errors.
    """
    entries = (
        _Entry(number=line.number, split=line.row.split if line.row else "", record=line.row, problems=line.problems)
        for line in read_lines(path)
    )
    reader = RecordDataset(name=str(path), max_pixels=max_pixels)
    reader.image_reading, reader.mask_reading = images, masks
    report = _report(path, entries, reader, strict=strict)
    if not report.rows:
        report.findings.append(Finding(line=0, problem="no rows; write one JSON object a line"))
    return report


def validate_dataset(dataset: RecordDataset, path: Path, *, strict: bool = False) -> Report:
    """Check every record of every split of ``dataset`` and everything that it names.

    What ``dataset`` was told of images, masks and questions holds; ``limit`` and ``on_bad`` do not. A reader that
    makes its samples otherwise than from image files has each sample made, and the picture of it checked.

    Args:
        dataset: of any reader.
        path: where it lies, for the report.
        strict: warnings are errors.
    """
    return _report(path, _entries(dataset), dataset, strict=strict)


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One line of a file, or one record of a reader."""

    number: int
    split: str
    record: Any
    """What was read; None where it cannot be used."""
    problems: tuple[str, ...] = ()
    place: str | None = None
    """As :attr:`Finding.place`."""


def _entries(dataset: RecordDataset) -> Iterator[_Entry]:
    """Every record of every split; a split that cannot be read is one entry with the number 0."""
    number = 0
    for split in dataset.splits():
        records = distinct(dataset.records(split))
        while True:
            try:
                record = next(records, None)
            except ConfigError as error:  # of the split as a whole: its reader stops
                yield _Entry(number=0, split=split, record=None, problems=(str(error),), place="")
                break
            if record is None:
                break
            if getattr(record, "copy", 1) > 1:  # of a mixture, drawn again in the same epoch
                continue
            number += 1
            if isinstance(record, AnnotationError):
                yield _Entry(number=number, split=split, record=None, problems=(str(record),), place="")
            else:
                yield _Entry(number=number, split=split, record=record, place=dataset.place_of(record))


def _report(path: Path, entries: Iterable[_Entry], dataset: RecordDataset, *, strict: bool) -> Report:
    """What is wrong with ``entries``, which are records of ``dataset``."""
    images = _Pictures()
    report, names = Report(path=path, conversions=images.conversions), set[str]()
    for entry in entries:
        report.rows += entry.number > 0
        errors, odd = list(entry.problems), list[str]()
        if entry.record is not None:
            source, row = dataset.origin(entry.record)
            if isinstance(row, Row) and _is_plain(source):
                errors, odd = _check(source, row, images, report)
                image, shown = images.of(source, row), str(row.image)
            else:
                errors, odd, image = _check_made(dataset, entry.record, entry.split, report)
                shown = str(source.image_of(row))
            odd += images.leaks(image, entry.split, entry.place or f"line {entry.number}", shown)
            slip = plausibility.alias(entry.split) if entry.split not in names else None
            odd += [slip] if slip else []
            names.add(entry.split)
        levels: list[tuple[str, Level]] = [(problem, "error") for problem in errors]
        levels += [(problem, "error" if strict else "warning") for problem in odd]
        report.findings += [
            Finding(line=entry.number, problem=problem, level=level, place=entry.place) for problem, level in levels
        ]
    report.shared = images.shared()
    return report


def _is_plain(source: RecordDataset) -> bool:
    """Whether ``source`` makes its samples as the base does, so that image and target can be judged each by itself."""
    made = (type(source).decode, type(source)._image)
    return made == (RecordDataset.decode, RecordDataset._image)


def _check_made(
    dataset: RecordDataset, record: Any, split: str, report: Report
) -> tuple[list[str], list[str], _Picture]:
    """As :func:`_check` for a record whose sample ``dataset`` makes, and the picture of it."""
    try:
        sample = dataset.decode(record, split)
    except AnnotationError as error:
        return [str(error)], [], _Picture(error=str(error))
    image = _Picture.of(sample.image)
    target = sample.weak_labels if sample.target_mask is None else sample.target_mask.any()
    report.no_target[split] += not target
    report.splits[split] += 1
    report.kinds["sample"] += 1
    return [], [f"{sample.sample_id}: {said}" for said in image.odd], image


def _check(source: RecordDataset, row: Row, images: _Pictures, report: Report) -> tuple[list[str], list[str]]:
    """What is wrong with a row beside its keys, and what is unlikely; a row with nothing wrong is counted."""
    split, image = _odd_split(row.split), images.of(source, row)
    errors, odd = [split] if split else [], list[str]()
    if image.error is not None:
        errors.append(image.error)
    else:
        odd += [f"{row.image}: {said}" for said in image.odd]
        frame = plausibility.coordinates(row, image.size, turned=image.turned)
        frame = f"{row.image}: {frame}" if frame else None
        try:
            target = source.target(row, image.size)
        except AnnotationError as error:
            turned = plausibility.mask_before_rotation(row, image.size) if image.turned else None
            errors += [frame or turned or str(error)]
        else:
            errors += [said for said in (frame, target.doubt and f"mask: {target.doubt}") if said]
            if not errors:
                unlikely = plausibility.target(row, target.mask, target.weak_labels or (), image.size)
                odd += [f"{row.image}: {said}" for said in unlikely]
            empty = not (target.weak_labels if target.mask is None else target.mask.any())
            report.no_target[row.split] += empty and not errors
    if not errors:
        report.splits[row.split] += 1
        report.kinds[row.kind] += 1
    return errors, odd


@dataclass(frozen=True, kw_only=True)
class _Picture:
    """What is kept of a decoded image."""

    size: tuple[int, int] = (0, 0)
    """(height, width)"""
    turned: bool = False
    """Whether its EXIF tag swaps them."""
    digest: bytes = b""
    """Of its pixels."""
    odd: tuple[str, ...] = ()
    error: str | None = None
    """Why it cannot be read."""

    @classmethod
    def of(cls, image: Image, *odd: str | None, turned: bool = False) -> _Picture:
        """Of ``image`` [H, W, 3] uint8 RGB; ``odd`` is what is unlikely about its file."""
        said = (plausibility.picture(image), *odd)
        digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16, key=str(image.shape).encode())
        return cls(
            size=(image.shape[0], image.shape[1]),
            turned=turned,
            digest=digest.digest(),
            odd=tuple(text for text in said if text),
        )


class _Pictures:
    """The images met so far, each decoded once."""

    def __init__(self) -> None:
        self.conversions = Counter[str]()
        """Images by what was done to their values to show them."""
        self._known: dict[tuple[int, Hashable], _Picture] = {}
        self._seen: dict[bytes, dict[str, tuple[str, str]]] = {}
        """By the digest of a picture: its first record in each split, as (place, image)."""

    def of(self, source: RecordDataset, row: Row) -> _Picture:
        """The image of ``row``, a record of ``source``."""
        key = (id(source), source.image_of(row))
        if key not in self._known:
            self._known[key] = self._read(source, row)
        return self._known[key]

    def _read(self, source: RecordDataset, row: Row) -> _Picture:
        try:
            image, conversion = source.load(row)
        except AnnotationError as error:
            return _Picture(error=str(error))
        if conversion:
            self.conversions[conversion] += 1
        return _Picture.of(image, plausibility.transparency(row.image), turned=plausibility.is_turned(row.image))

    def leaks(self, image: _Picture, split: str, place: str, shown: str) -> list[str]:
        """The other split that ``image``, or an equal one, is in; said once for each image and split.

        Args:
            image: of a record.
            split: that the record is in.
            place: where the record stands.
            shown: the path or name of the image.
        """
        seen = self._seen.setdefault(image.digest, {}) if image.error is None else {}
        first = next(iter(seen.items()), None)
        known = split in seen
        seen.setdefault(split, (place, shown))
        if known or first is None:
            return []
        other, (where, name) = first
        same = "the same picture" if name == shown else f"the same picture as {name}"
        return [
            f"{shown}: {same} is in the split {other} ({where}) and in {split}, so scores flatter; keep "
            "every picture in one split"
        ]

    def shared(self) -> int:
        """How many pictures are in more than one split."""
        return sum(len(splits) > 1 for splits in self._seen.values())


def _odd_split(name: str) -> str | None:
    """A split's name that is a usual one mistyped."""
    near = [] if name in USUAL_SPLITS else difflib.get_close_matches(name.lower(), USUAL_SPLITS, n=1, cutoff=0.75)
    if not near or len(near[0]) < len(name):
        return None
    return f"split={name!r}: did you mean {near[0]}? Usual: {', '.join(USUAL_SPLITS)}; rename it if it is meant"
