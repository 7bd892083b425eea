"""Everything that is wrong with a dataset, at once: each row that training would stumble over, and what to do.

What is allowed and yet unlikely to be meant (:mod:`grasp_rl.data.plausibility`) is a warning.

Every image is decoded once, every mask, run length and polygon is laid over it. No model, no torch.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from grasp_rl.data import plausibility
from grasp_rl.data.annotations import AnnotationError, Row, read_lines
from grasp_rl.data.base import load_image, target_of
from grasp_rl.data.image_io import AS_STORED, ImageReading
from grasp_rl.data.masks import ALL_BUT_ZERO, MaskReading
from grasp_rl.data.plausibility import USUAL_SPLITS
from grasp_rl.utils.files import Record

Level = Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something wrong with one line."""

    line: int
    """From 1; 0 for the file as a whole."""
    problem: str
    """Key or image, what was found, remedy."""
    level: Level = "error"


@dataclass(kw_only=True)
class Report:
    """What a dataset holds and what is wrong with it."""

    path: Path
    rows: int = 0
    """Lines that are not blank."""
    splits: Counter[str] = field(default_factory=Counter)
    """Good rows by split."""
    no_target: Counter[str] = field(default_factory=Counter)
    """Good rows that nothing in the image answers, by split."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Good rows by what they give: mask, rle, polygons or boxes."""
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
            "findings": [{"line": f.line, "level": f.level, "problem": f.problem} for f in self.findings],
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
    report, names = Report(path=path), set[str]()
    pictures = _Pictures(max_pixels, images, report.conversions)
    for line in read_lines(path):
        report.rows += 1
        errors, odd = list(line.problems), list[str]()
        if line.row is not None:
            errors, odd = _check(line.row, pictures, masks, report)
            odd += pictures.leaks(line.row, line.number)
            slip = plausibility.alias(line.row.split) if line.row.split not in names else None
            odd += [slip] if slip else []
            names.add(line.row.split)
        report.findings += [Finding(line=line.number, problem=problem) for problem in errors]
        level: Level = "error" if strict else "warning"
        report.findings += [Finding(line=line.number, problem=problem, level=level) for problem in odd]
    if not report.rows:
        report.findings.append(Finding(line=0, problem="no rows; write one JSON object a line"))
    report.shared = pictures.shared()
    return report


def _check(row: Row, pictures: _Pictures, masks: MaskReading, report: Report) -> tuple[list[str], list[str]]:
    """What is wrong with a row beside its keys, and what is unlikely; a row with nothing wrong is counted."""
    split, picture = _odd_split(row.split), pictures.of(row)
    errors, odd = [split] if split else [], list[str]()
    if picture.error is not None:
        errors.append(picture.error)
    else:
        odd += [f"{row.image}: {said}" for said in picture.odd]
        frame = plausibility.coordinates(row, picture.size, turned=picture.turned)
        frame = f"{row.image}: {frame}" if frame else None
        try:
            target = target_of(row, picture.size, pictures.max_pixels, masks)
        except AnnotationError as error:
            turned = plausibility.mask_before_rotation(row, picture.size) if picture.turned else None
            errors += [frame or turned or str(error)]
        else:
            errors += [said for said in (frame, target.doubt and f"mask: {target.doubt}") if said]
            if not errors:
                unlikely = plausibility.target(row, target.mask, target.weak_labels or (), picture.size)
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


class _Pictures:
    """The images met so far, each decoded once."""

    def __init__(self, max_pixels: int, reading: ImageReading, conversions: Counter[str]) -> None:
        self.max_pixels, self.reading, self.conversions = max_pixels, reading, conversions
        self._known: dict[Path, _Picture] = {}
        self._seen: dict[bytes, dict[str, tuple[int, Path]]] = {}
        """By the digest of a picture: its first row in each split, as (line, path)."""

    def of(self, row: Row) -> _Picture:
        """The row's image."""
        if row.image not in self._known:
            self._known[row.image] = self._read(row)
        return self._known[row.image]

    def _read(self, row: Row) -> _Picture:
        try:
            image, told = load_image(row, self.max_pixels, self.reading)
        except AnnotationError as error:
            return _Picture(error=str(error))
        if told:
            self.conversions[told] += 1
        odd = (plausibility.picture(image), plausibility.transparency(row.image))
        return _Picture(
            size=(image.shape[0], image.shape[1]),
            turned=plausibility.is_turned(row.image),
            digest=hashlib.blake2b(
                np.ascontiguousarray(image).data, digest_size=16, key=str(image.shape).encode()
            ).digest(),
            odd=tuple(said for said in odd if said),
        )

    def leaks(self, row: Row, line: int) -> list[str]:
        """The other split that the row's picture, or an equal one, is in; said once for each picture and split."""
        picture = self.of(row)
        seen = self._seen.setdefault(picture.digest, {}) if picture.error is None else {}
        first = next(iter(seen.items()), None)
        known = row.split in seen
        seen.setdefault(row.split, (line, row.image))
        if known or first is None:
            return []
        split, (number, path) = first
        same = "the same picture" if path == row.image else f"the same picture as {path}"
        return [
            f"{row.image}: {same} is in the split {split} (line {number}) and in {row.split}, so scores flatter; keep "
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
