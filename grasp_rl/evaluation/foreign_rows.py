"""Another system's answers as they are written down: COCO results, or JSON lines. docs/evaluation.md has the formats.

They come from a stranger: every value is checked before it is used, and what cannot be meant is an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.annotations import problem_of
from grasp_rl.types import Box
from grasp_rl.utils.files import Record, read_text_whole

KEYS = ("rle", "mask", "boxes", "text", "status")
STATUSES = ("ok", "unreadable")
INVERTED = 0.05
"""Share of the boxes with x1 <= x0 or y1 <= y0 from which on they cannot be corners."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """One answer."""

    place: str
    """File and line, for messages."""
    drawn: tuple[Any, ...] | None = None
    """Masks of the instances in order, each COCO run lengths or a list of rings; None where none is drawn."""
    file: Path | None = None
    """A PNG with the mask of all instances."""
    whole: bool = False
    """Whether what is drawn is all instances together, so that they cannot be told apart."""
    boxes: tuple[Box, ...] | None = None
    """(x0, y0, x1, y1) in pixels of the image, one an instance."""
    text: str | None = None
    """An answer still to be read."""
    frame: tuple[float, float] | None = None
    """(width, height) that the numbers in the text are in; None for pixels of the image."""
    read: bool = True
    """Whether the system's answer could be read."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The answers of a file by sample id."""

    rows: Mapping[str, Given]
    absent_is_empty: bool = False
    """Whether a sample without an answer is one with nothing found: COCO results list nothing else."""
    notes: tuple[str, ...] = ()


def read_answers(path: Path) -> Answers:
    """The answers in a file of COCO results (a JSON list) or JSON lines.

    Raises:
        ConfigError: the file cannot be read, a row cannot be used, an id stands twice, or boxes are not corners.
    """
    try:
        text = read_text_whole(path)
        results = json.loads(text) if text.lstrip()[:1] == "[" else None
        lines = [] if results is not None else text.split("\n")
        parsed = [(number, json.loads(line)) for number, line in enumerate(lines, 1) if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path}: no answers there ({error}); must be a folder of PNG files, COCO results, or JSON lines"
        ) from error
    answers = _lines(path, parsed) if results is None else _coco(path, results)
    boxes = [box for row in answers.rows.values() for box in row.boxes or ()]
    inverted = sum(box[2] <= box[0] or box[3] <= box[1] for box in boxes)
    if boxes and inverted > INVERTED * len(boxes):
        raise ConfigError(
            f"{path}: {inverted} of {len(boxes)} boxes have x1 <= x0 or y1 <= y0; corners [x0, y0, x1, y1] in pixels "
            "are wanted, not [x, y, width, height]"
        )
    return answers


def _lines(path: Path, lines: list[tuple[int, Any]]) -> Answers:
    rows: dict[str, Given] = {}
    for number, line in lines:
        given = {key: value for key, value in line.items() if value is not None} if isinstance(line, Mapping) else {}
        problem = _problem(given)
        sample_id = str(given.get("id"))
        if problem is None and sample_id in rows:
            problem = f"id={sample_id!r}: stands twice"
        if problem is not None:
            raise ConfigError(f"{path}:{number}: {problem}; correct the row")
        rows[sample_id] = _given(path, number, given)
    return Answers(rows=rows)


def _given(path: Path, number: int, row: Record) -> Given:
    drawn, boxes, frame = row.get("rle"), row.get("boxes"), row.get("frame")
    masks = None if drawn is None else tuple(drawn) if isinstance(drawn, list) else (drawn,)
    return Given(
        place=f"{path}:{number}",
        drawn=masks,
        file=path.parent / row["mask"] if "mask" in row else None,
        whole="mask" in row or isinstance(drawn, Mapping),
        boxes=None if boxes is None else tuple(_box(box) for box in boxes),
        text=row.get("text"),
        frame=None if frame is None else (float(frame[0]), float(frame[1])),
        read=row.get("status", "ok") == "ok",
    )


def _problem(row: Record) -> str | None:
    """What is wrong with a row of JSON lines without its nulls, or None."""
    if not isinstance(row.get("id"), str | int):
        return "must be a JSON object with the sample's id"
    if not any(key in row for key in KEYS):
        return f"has none of {', '.join(KEYS)}"
    problems = [_unusable(key, row[key]) for key in (*KEYS, "frame") if key in row]
    problem = next((problem for problem in problems if problem), None)
    return problem or _contradiction(row)


def _unusable(key: str, value: Any) -> str | None:
    """What is wrong with one value of a row, or None."""
    if key == "status":
        return None if value in STATUSES else f"status={value!r}: must be one of {', '.join(STATUSES)}"
    if key == "rle":
        masks = value if isinstance(value, list) else [value]
        return next((problem for mask in masks if (problem := problem_of("rle", mask))), None)
    if key == "mask":
        path = Path(value) if isinstance(value, str) else None
        inside = path is not None and not path.is_absolute() and ".." not in path.parts
        return None if inside else f"mask={value!r}: must be the path of a PNG below this folder"
    if key == "boxes":
        boxes = isinstance(value, list) and all(_is_box(box) for box in value)
        return None if boxes else "boxes: must be a list of [x0, y0, x1, y1] in pixels of the image"
    if key == "frame":
        sides = isinstance(value, list) and len(value) == 2 and all(_is_number(v) and v > 0 for v in value)
        return None if sides else f"frame={value!r}: must be [width, height] that the text's numbers are in"
    return None if isinstance(value, str) else f"text={value!r}: must be text"


def _contradiction(row: Record) -> str | None:
    """Values that cannot be meant together, or None."""
    drawn, boxes = row.get("rle"), row.get("boxes")
    if row.get("status") == "unreadable" and any(key in row for key in ("rle", "mask", "boxes")):
        return "status=unreadable: goes without rle, mask and boxes"
    if "mask" in row and drawn is not None:
        return "mask and rle: give one of them"
    count = len(drawn) if isinstance(drawn, list) else 1 if drawn is not None or "mask" in row else None
    if boxes is not None and count is not None and len(boxes) != count:
        return f"boxes: {len(boxes)} of them and {count} masks; give one a mask, or leave them out"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 1e6


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))


def _box(values: Any) -> Box:
    x0, y0, x1, y1 = (float(value) for value in values)
    return x0, y0, x1, y1


def _coco(path: Path, results: Any) -> Answers:
    """COCO results: {image_id, segmentation or bbox [x, y, width, height]}, any number an image."""
    instances: dict[str, list[tuple[Any, Box | None]]] = {}
    scores: set[Any] = set()
    for number, result in enumerate(results):
        place = f"{path}: result {number}"
        if not (isinstance(result, Mapping) and isinstance(result.get("image_id"), str | int)):
            raise ConfigError(f"{place} has no image_id; COCO results are wanted, image_id the sample's id")
        scores.add(str(result.get("score")))
        entries = instances.setdefault(str(result["image_id"]), [])
        drawn, box = _segmentation(place, result.get("segmentation")), result.get("bbox")
        if box is not None and not _is_box(box):
            raise ConfigError(f"{place}: bbox={box!r}: must be [x, y, width, height]")
        corners = None if box is None else _box([box[0], box[1], box[0] + box[2], box[1] + box[3]])
        if drawn is None and corners is None and not result.get("segmentation") == []:
            raise ConfigError(f"{place} has neither a segmentation nor a bbox of four numbers")
        if drawn is not None or (corners is not None and corners[2] > corners[0] and corners[3] > corners[1]):
            entries.append((drawn, corners))
    rows = {}
    for sample_id, entries in instances.items():
        masks, boxes = [drawn for drawn, _ in entries], [box for _, box in entries if box is not None]
        if any(mask is not None for mask in masks) and any(mask is None for mask in masks):
            raise ConfigError(f"{path}: image_id={sample_id!r}: some results have a segmentation and some have none")
        rows[sample_id] = Given(
            place=f"{path}: image_id={sample_id!r}",
            drawn=tuple(masks) if not entries or masks[0] is not None else None,
            boxes=tuple(boxes) if entries and len(boxes) == len(entries) else None,
        )
    ranked = (f"{path.name}: scores are not used, every result counts; leave out those that are not meant",)
    return Answers(rows=rows, absent_is_empty=True, notes=ranked if len(scores) > 1 else ())


def _segmentation(place: str, value: Any) -> Any:
    """Run lengths, or rings of [x, y]; None where nothing is drawn.

    Raises:
        ConfigError: it is neither.
    """
    if value is None or value == []:
        return None
    if isinstance(value, Mapping):
        problem = problem_of("rle", value)
        if problem is not None:
            raise ConfigError(f"{place}: segmentation: {problem}")
        return value
    rings = value if isinstance(value, list) else []
    for ring in rings:
        flat = isinstance(ring, list) and len(ring) >= 6 and len(ring) % 2 == 0 and all(map(_is_number, ring))
        if not flat:
            raise ConfigError(f"{place}: segmentation: a polygon must be [x, y, x, y, ...] of three points or more")
    if not rings:
        raise ConfigError(f"{place}: segmentation={value!r}: must be run lengths or a list of polygons")
    return [[[ring[n], ring[n + 1]] for n in range(0, len(ring), 2)] for ring in rings]
