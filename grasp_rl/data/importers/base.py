"""What importers share: shapes, their target in one row, splits, and the folder that is written.

Shapes are in pixels of the upright image, x to the right, y down, (0, 0) at the outer corner of its top-left pixel.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image as Pillow

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.annotations import problems_of
from grasp_rl.data.image_io import MAX_PIXELS, read_image
from grasp_rl.data.plausibility import BEYOND
from grasp_rl.data.rasterize import ShapeError, ring_mask
from grasp_rl.types import BoolMask, Box
from grasp_rl.utils.files import Record, write_text

QUESTION = "Segment every {category}."
"""What asks for a category, unless the user says otherwise."""
Ring = list[list[float]]


class SourceError(ConfigError):
    """A source that cannot be read as its format. The message names the file, what was found and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One annotated thing: a box, rings or a mask."""

    box: Box | None = None
    rings: tuple[Ring, ...] = ()
    mask: BoolMask | None = None
    """[H, W]"""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One row to be written."""

    sample_id: str
    image: Path
    """The file to copy."""
    name: str
    """Its path in the new folder's images/, without "..", "/" between folders."""
    query: str
    target: Record
    """One of polygons, boxes, rle; or of mask with a file to copy."""
    mask_name: str = ""
    """Of a mask: its path in the new folder's masks/."""
    split: str | None = None
    """What the source says."""
    reasoning: str | None = None
    place: str = ""
    """File and line, for messages, where the source is read in place."""


@dataclass(kw_only=True)
class Source:
    """What was read from a dataset in another format."""

    items: list[Item] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Shapes that cannot be a target: where, and why."""


@dataclass(frozen=True, kw_only=True)
class Splitting:
    """Which split a row is in: the same for all rows about one image."""

    name: str | None = None
    """Of the only split; None for what the source says, or train."""
    fractions: Mapping[str, float] | None = None
    """Share of the images in each split; they sum to 1."""
    seed: int = 0
    """Of the draw of images."""

    def of(self, items: Sequence[Item]) -> list[str]:
        """The split of each item."""
        if self.fractions is None:
            return [self.name or item.split or "train" for item in items]
        names = sorted({item.name for item in items}, key=self._key)
        ends = np.cumsum(list(self.fractions.values())) / sum(self.fractions.values()) * len(names)
        split_of = {
            name: list(self.fractions)[int(np.searchsorted(np.rint(ends), place, side="right"))]
            for place, name in enumerate(names)
        }
        return [split_of[item.name] for item in items]

    def _key(self, name: str) -> bytes:
        return hashlib.sha256(f"{self.seed}:{name}".encode("utf-8", "surrogatepass")).digest()


def question_of(template: str, category: str) -> str:
    """The question that ``template`` asks for ``category``.

    Raises:
        SourceError: the template has no place for it.
    """
    if "{category}" not in template:
        raise SourceError(f"--question {template!r}: must hold {{category}}, such as {QUESTION!r}")
    return template.replace("{category}", category.replace("_", " ").strip())


def target_of(shapes: Sequence[Shape], size: tuple[int, int], place: str, left_out: list[str]) -> Record | None:
    """The one target that ``shapes`` in an image of ``size`` (height, width) make; None where nothing is left of them.

    All boxes: ``boxes``. All rings within the image, or beyond it by as little as a hand slips: ``polygons``, a box
    among them as a ring. Otherwise ``rle`` of their union, whose connected parts are the instances. What holds no pixel
    of the image is left out.

    Args:
        shapes: of one question.
        size: of the upright image.
        place: where they stand, for messages.
        left_out: gets what is left out, and why.
    """
    kept = [shape for shape in shapes if _has_pixels(shape, size)]
    lost = len(shapes) - len(kept)
    left_out += [f"{place}: {lost} of {len(shapes)} shapes hold no pixel of the image"] if lost else []
    if not kept:
        return None
    if all(shape.box is not None for shape in kept):
        return {"boxes": [list(_clipped(shape.box, size)) for shape in kept if shape.box is not None]}
    rings = [ring for shape in kept for ring in _rings_of(shape) if _ring_has_pixels(ring, size)]
    slack = BEYOND * max(size)
    within = all(-slack <= x <= size[1] + slack and -slack <= y <= size[0] + slack for r in rings for x, y in r)
    if within and all(shape.mask is None for shape in kept):
        return {"polygons": rings}
    masks = [shape.mask for shape in kept if shape.mask is not None] + [ring_mask(ring, size) for ring in rings]
    return {"rle": run_lengths(np.logical_or.reduce(masks))}


def run_lengths(mask: BoolMask) -> Record:
    """COCO's run lengths of a mask [H, W], not compressed."""
    flat = np.concatenate([[False], mask.T.ravel(), [not mask[-1, -1]]])  # runs begin with one of zeros, perhaps empty
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return {"size": [int(n) for n in mask.shape], "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def inside(root: Path, name: Any, place: str) -> Path:
    """The file that a source calls ``name``, below ``root``.

    Raises:
        SourceError: it is no relative path, or leads out of ``root``.
    """
    path = PurePosixPath(name.replace("\\", "/")) if isinstance(name, str) and name and "\0" not in name else None
    if path is None or path.is_absolute() or PureWindowsPath(str(name)).is_absolute() or ".." in path.parts:
        raise SourceError(f"{place}={name!r}: must be a file's path within {root}, without a leading / and without ..")
    return root / path


def size_of(path: Path) -> tuple[int, int]:
    """(height, width) of the upright image in ``path``.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow about size and EXIF: validation judges both
            with Pillow.open(path) as image:
                turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
                return (image.width, image.height) if turned else (image.height, image.width)
    except (OSError, ValueError, SyntaxError, TypeError, Pillow.DecompressionBombError):
        height, width = read_image(path, MAX_PIXELS).shape[:2]  # which says what is wrong with it
        return height, width


def number(value: Any, place: str) -> float:
    """``value`` as a finite number.

    Raises:
        SourceError: it is none.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9:
        return float(value)
    raise SourceError(f"{place}: found {str(value)[:40]!r}, must be a number of pixels")


def write_dataset(out: Path, source: Source, splitting: Splitting) -> Counter[str]:
    """Write ``source`` as a folder with annotations.jsonl and images/, whole or not at all; returns rows by split.

    Raises:
        ConfigError: ``out`` is not empty, nothing is to be written, or a row would not be valid.
        OSError: a file cannot be copied.
    """
    demand_empty(out)
    if not source.items:
        raise SourceError("nothing to import: no image has a shape; see what was left out, or name another folder")
    splits = splitting.of(source.items)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        lines, ids = [], set[str]()
        for item, split in zip(source.items, splits, strict=True):
            record = _record(item, split, ids)
            if "mask" in record:
                _copy(item.target["mask"], part / record["mask"])
            problems = problems_of(record)
            if problems:
                raise SourceError(f"{item.image}: {'; '.join(problems)}")
            _copy(item.image, part / record["image"])
            lines.append(json.dumps(record) + "\n")
        write_text(part / "annotations.jsonl", "".join(lines))
        part.chmod(0o755)
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Counter(splits)


def _record(item: Item, split: str, ids: set[str]) -> Record:
    """The row of ``item``, with an id that is not in ``ids`` yet; it is added."""
    more = (f"{item.sample_id}-{n}" for n in count(2))
    sample_id = item.sample_id if item.sample_id not in ids else next(name for name in more if name not in ids)
    ids.add(sample_id)
    record: Record = {"id": sample_id, "image": f"images/{item.name}", "query": item.query, **item.target}
    if "mask" in record:
        record["mask"] = f"masks/{item.mask_name}"
    record["split"] = split
    return record | ({"reasoning": item.reasoning} if item.reasoning else {})


def demand_empty(out: Path) -> None:
    """Demand a folder that is empty or not there.

    Raises:
        SourceError: it holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SourceError(f"--out {out}: is there already and not empty; name a new folder, or remove it first")


def _copy(source: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _rings_of(shape: Shape) -> Sequence[Ring]:
    if shape.box is None:
        return shape.rings
    x0, y0, x1, y1 = shape.box
    return ([[x0, y0], [x1, y0], [x1, y1], [x0, y1]],)


def _clipped(box: Box, size: tuple[int, int]) -> Box:
    x0, x1 = (float(min(max(v, 0), size[1])) for v in (box[0], box[2]))
    y0, y1 = (float(min(max(v, 0), size[0])) for v in (box[1], box[3]))
    return x0, y0, x1, y1


def _has_pixels(shape: Shape, size: tuple[int, int]) -> bool:
    if shape.mask is not None:
        return bool(shape.mask.any())
    if shape.box is not None:
        x0, y0, x1, y1 = _clipped(shape.box, size)
        return x0 < x1 and y0 < y1
    return any(_ring_has_pixels(ring, size) for ring in shape.rings)


def _ring_has_pixels(ring: Ring, size: tuple[int, int]) -> bool:
    try:
        return len(ring) > 2 and bool(ring_mask(ring, size).any())
    except ShapeError:
        return False
