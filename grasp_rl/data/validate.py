"""Everything that is wrong with a dataset, at once: each row that training would stumble over, and what to do.

Every image is decoded once, every mask, run length and polygon is laid over it. No model, no torch.
"""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from grasp_rl.data.annotations import AnnotationError, Row, read_lines
from grasp_rl.data.base import load_image, target_of
from grasp_rl.data.image_io import AS_STORED, ImageReading
from grasp_rl.data.masks import ALL_BUT_ZERO, MaskReading
from grasp_rl.utils.files import Record

USUAL_SPLITS = ("train", "val", "test", "test_ood")
_BEYOND = 0.01
"""How far an annotation may reach beyond the image, as hand-drawn ones do, in shares of its longer side."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something wrong with one line."""

    line: int
    """From 1; 0 for the file as a whole."""
    problem: str
    """Key, what was found, remedy."""


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
        """How many rows are bad."""
        return len({finding.line for finding in self.findings if finding.line})

    @property
    def no_target_share(self) -> float:
        """Share of the good rows that nothing answers."""
        return self.no_target.total() / max(1, self.splits.total())

    def as_record(self) -> Record:
        """The report as one JSON object."""
        splits = {name: {"rows": count, "no_target": self.no_target[name]} for name, count in self.splits.items()}
        return {
            "file": str(self.path),
            "ok": not self.findings,
            "rows": self.rows,
            "bad": self.bad,
            "splits": splits,
            "kinds": dict(self.kinds),
            "no_target_share": self.no_target_share,
            "images_in_several_splits": self.shared,
            "conversions": dict(self.conversions),
            "findings": [{"line": f.line, "problem": f.problem} for f in self.findings],
        }


def validate(
    path: Path, max_pixels: int, images: ImageReading = AS_STORED, masks: MaskReading = ALL_BUT_ZERO
) -> Report:
    """Check every row of the annotations file ``path`` and everything that it names.

    Args:
        path: see :func:`grasp_rl.data.annotations.annotations_path`.
        max_pixels: largest image, width times height, that is decoded.
        images: how images become 8-bit RGB.
        masks: which values of a mask file mean what.
    """
    report = Report(path=path)
    cache = _ImageCache(max_pixels, images, report.conversions)
    for line in read_lines(path):
        report.rows += 1
        problems = list(line.problems) if line.row is None else _check(line.row, cache, masks, report)
        report.findings += [Finding(line=line.number, problem=problem) for problem in problems]
    if not report.rows:
        report.findings.append(Finding(line=0, problem="no rows; write one JSON object a line"))
    report.shared = cache.shared()
    return report


def _check(row: Row, images: _ImageCache, masks: MaskReading, report: Report) -> list[str]:
    """What is wrong with a row beside its keys; a row with nothing wrong is counted."""
    problems = [_odd_split(row.split)]
    size = images.size(row)
    if isinstance(size, str):
        problems.append(size)
    else:
        problems.append(_beyond(row, size))
        try:
            target = target_of(row, size, images.max_pixels, masks)
        except AnnotationError as error:
            problems.append(str(error))
        else:
            problems.append(target.doubt and f"mask: {target.doubt}")
            empty = not (target.weak_labels if target.mask is None else target.mask.any())
            report.no_target[row.split] += empty and not any(problems)
    result = [problem for problem in problems if problem]
    if not result:
        report.splits[row.split] += 1
        report.kinds[row.kind] += 1
    return result


class _ImageCache:
    """The images met so far, each decoded once."""

    def __init__(self, max_pixels: int, reading: ImageReading, conversions: Counter[str]) -> None:
        self.max_pixels, self.reading, self.conversions = max_pixels, reading, conversions
        self._known: dict[Path, tuple[int, int] | str] = {}
        self._splits: dict[Path, set[str]] = {}

    def size(self, row: Row) -> tuple[int, int] | str:
        """(height, width) of the row's image, or why it cannot be read."""
        self._splits.setdefault(row.image, set()).add(row.split)
        if row.image not in self._known:
            try:
                image, told = load_image(row, self.max_pixels, self.reading)
                self._known[row.image] = (image.shape[0], image.shape[1])
                if told:
                    self.conversions[told] += 1
            except AnnotationError as error:
                self._known[row.image] = str(error)
        return self._known[row.image]

    def shared(self) -> int:
        return sum(len(splits) > 1 for splits in self._splits.values())


def _odd_split(name: str) -> str | None:
    """A split's name that is a usual one mistyped."""
    near = [] if name in USUAL_SPLITS else difflib.get_close_matches(name.lower(), USUAL_SPLITS, n=1, cutoff=0.75)
    if not near or len(near[0]) < len(name):
        return None
    return f"split={name!r}: did you mean {near[0]}? Usual: {', '.join(USUAL_SPLITS)}; rename it if it is meant"


def _beyond(row: Row, size: tuple[int, int]) -> str | None:
    """Coordinates outside the image: most often those of an image of another size."""
    if row.kind not in ("polygons", "boxes") or not row.target:
        return None
    flat = [np.asarray(item, dtype=np.float64).reshape(-1, 2) for item in row.target]
    points = np.concatenate(flat)
    low, high = points.min(axis=0), points.max(axis=0)
    slack = _BEYOND * max(size)
    if (low >= -slack).all() and (high <= np.array([size[1], size[0]]) + slack).all():
        return None
    return (
        f"{row.kind}: reaches from ({low[0]:g}, {low[1]:g}) to ({high[0]:g}, {high[1]:g}) in an image of {size[1]} x "
        f"{size[0]} (width x height); training cuts it off: give it in pixels of this image, or clip it yourself"
    )
