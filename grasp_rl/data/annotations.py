"""The lines of an annotations file: one JSON object each, checked key by key. docs/datasets.md has the schema.

No image is opened here. A line that cannot be used comes back with everything that is wrong with it, so that one
reader serves those who stop at the first such line and those who list them all.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from grasp_rl.config.errors import ConfigError
from grasp_rl.data import formats
from grasp_rl.types import Attribute
from grasp_rl.utils.files import Record
from grasp_rl.utils.text import control_token, printable

REQUIRED = ("id", "image", "query", "split")
TARGETS = ("mask", "rle", "polygons", "boxes")
"""Of these a row has exactly one."""
KEYS = (*REQUIRED, *TARGETS, "holes", "reasoning")
MAX_ABS = 1e6
"""Largest coordinate, in pixels."""
MAX_NAME = 255
"""Bytes of a file's or folder's name, the limit of common file systems."""


class AnnotationError(ConfigError):
    """A row that cannot be used. The message names the file, the line, the key, what was found and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))  # it quotes the file, and ends on a terminal


@dataclass(frozen=True, kw_only=True)
class Row:
    """One question about one image, as written down."""

    location: str
    """File and line, for messages."""
    sample_id: str
    image: Path
    query: str
    split: str
    reasoning: str | None
    kind: str
    """Which one of :data:`TARGETS` the row has; ``none`` where a published set keeps its truth to itself."""
    target: Any
    """Its value; a path for ``mask``. For ``rle`` perhaps a list of them, the union of which is meant."""
    holes: bool = False
    """Whether a ring of ``polygons`` that lies within another one is cut out of it."""
    extent: tuple[float, float] | None = None
    """(width, height) of the frame that ``boxes`` and :attr:`points` are in, such as (100, 100) for percent of
    the image; None for pixels of the image."""
    points: Sequence[Sequence[Sequence[float]]] | None = None
    """Of ``boxes``: for each the points [x, y, label], label 1 on the instance and 0 beside it."""
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    """See :attr:`grasp_rl.types.Sample.attributes`."""
    category: str | None = None
    """The class of all its instances, where the question asks for the instances of one class; else None."""
    sources: tuple[Path, ...] = ()
    """The annotation files that it was read from, where the dataset does not name them itself."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line that was read."""

    number: int
    row: Row | None
    """None where the line cannot be used."""
    problems: tuple[str, ...]
    """What is wrong with it: key, what was found, remedy."""
    record: Record | None = None
    """What it says, where it can be used."""


def annotations_path(root: str | Path, name: str = "annotations.jsonl") -> Path:
    """The annotations file that ``root`` means: itself, or ``name`` in it.

    Raises:
        ConfigError: there is none.
    """
    path = Path(root)
    folder = path if path.is_dir() else None
    path = path / name if folder else path
    if not path.is_file():
        other = formats.of_folder(folder) if folder else None
        raise ConfigError(
            f"{path}: no such file; name a folder that holds {name}, or the annotations file itself"
            + (f"; the folder looks like {other}" if other else "")
        )
    return path


def read_lines(path: Path) -> Iterator[Line]:
    """Every line of an annotations file that is not blank, in order; of several with one id the first counts.

    A file in another format is one line that cannot be used.
    """
    other = formats.of_file(path)
    if other is not None:
        yield Line(number=1, row=None, problems=(f"the whole file is {other}",))
        return
    seen: dict[str, int] = {}
    with path.open("rb") as file:
        for number, data in enumerate(file, 1):
            if not data.strip():
                continue
            record, result = decode_line(data)
            result = result or problems_of(record)
            if not result and record["id"] in seen:
                result = [f"id={record['id']!r}: also the id of line {seen[record['id']]}; every row needs its own"]
            if result:
                yield Line(number=number, row=None, problems=tuple(result))
                continue
            seen[record["id"]] = number
            yield Line(number=number, row=row_of(record, number, path), problems=(), record=record)


def problems_of(record: Any) -> list[str]:
    """What is wrong with a row's keys and values, as far as that can be told without its image."""
    if not isinstance(record, dict):
        return [f"found {_kind(record)}; a line is one JSON object, {{...}}"]
    given = {key: value for key, value in record.items() if value is not None}
    result = [f"{key}: no such key{_near(key)}; valid: {', '.join(KEYS)}" for key in given if key not in KEYS]
    missing = [key for key in REQUIRED if key not in given]
    result += [f"{', '.join(missing)}: missing; every row needs {', '.join(REQUIRED)}"] if missing else []
    targets = [key for key in TARGETS if key in given]
    if len(targets) != 1:
        kwargs = " and ".join(targets) or "none"
        result.append(f"found {kwargs} of {', '.join(TARGETS)}; give exactly one (polygons: [] where nothing answers)")
    if "holes" in given and "polygons" not in given:
        result.append("holes: found without polygons; leave it out")
    problems = [problem_of(key, given[key]) for key in _CHECKS if key in given]
    return result + [problem for problem in problems if problem]


def problem_of(key: str, value: Any) -> str | None:
    """What is wrong with ``value`` as the ``key`` of a row: what was found, what it must be; None where it is sound."""
    complaint = _CHECKS[key](value)
    return f"{key}={_short(value)}: {complaint}" if complaint else None


def decode_line(data: bytes) -> tuple[Any, list[str]]:
    """The JSON value of a line, or what is wrong with it and the remedy."""
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object), []
    except UnicodeDecodeError as error:
        return None, [f"not UTF-8 at byte {error.start}; save the file as UTF-8"]
    except (ValueError, RecursionError) as error:
        if re.search(rb"\d{4301}", data):  # Python's own words would ask the reader to change its settings
            return None, ["a number of more than 4300 digits; write numbers of pixels"]
        return None, [f"not JSON ({error}); write one JSON object on this line"]


def _object(pairs: list[tuple[str, Any]]) -> Record:
    repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if repeated:
        raise ValueError(f"the key {repeated[0]!r} occurs twice")
    return dict(pairs)


def row_of(record: Record, number: int, path: Path) -> Row:
    """The row that line ``number`` of ``path`` says, which has no problems."""
    folder = path.parent
    kind = next(key for key in TARGETS if record.get(key) is not None)
    return Row(
        location=f"{path}:{number}",
        sample_id=record["id"],
        image=_located(folder, record["image"]),
        query=record["query"],
        split=record["split"],
        reasoning=record.get("reasoning"),
        kind=kind,
        target=_located(folder, record["mask"]) if kind == "mask" else record[kind],
        holes=bool(record.get("holes")),
    )


def _located(folder: Path, name: str) -> Path:
    """The file called ``name`` in ``folder``; backslashes and the other Unicode form of a name are understood."""
    if name.isascii() and "\\" not in name:
        return folder / name
    return _looked_up(folder, name)


@lru_cache(maxsize=65536)
def _looked_up(folder: Path, name: str) -> Path:
    if os.path.exists(folder / name):
        return folder / name
    path = folder
    for part in PurePosixPath(name.replace("\\", "/")).parts:
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        path /= next((form for form in forms if os.path.exists(path / form)), part)
    return path


def _text(value: Any) -> str | None:
    if not (isinstance(value, str) and value.strip()):
        return "must be text that is not empty"
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        return "holds half a character (a lone surrogate); write the whole character, or leave it out"
    return None


def _question(value: Any) -> str | None:
    complaint = _text(value)
    token = control_token(value) if complaint is None else None
    return f"holds {token!r}, a control token of chat templates; reword it" if token else complaint


def _path(value: Any) -> str | None:
    complaint = _text(value)
    if complaint is not None or "\0" in value:
        return complaint if complaint and "surrogate" in complaint else "must be the path of a file"
    name = value.replace("\\", "/")
    if name.startswith("/") or PureWindowsPath(name).is_absolute():
        return "must be relative to the annotations file"
    if max(len(part.encode()) for part in name.split("/")) > MAX_NAME or len(name.encode()) > 4000:
        return f"must be the path of a file; a name has at most {MAX_NAME} bytes"
    return None


def _split(value: Any) -> str | None:
    valid = isinstance(value, str) and re.fullmatch(r"\w[\w.-]*", value)
    return None if valid else "must be a word, such as train, val or test"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -MAX_ABS <= value <= MAX_ABS


def _numbers(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(map(_number, value))


def _polygons(value: Any) -> str | None:
    if not isinstance(value, list):
        return "must be a list of rings, [] where nothing answers"
    for index, ring in enumerate(value):
        if not isinstance(ring, list) or len(ring) < 3 or not all(_numbers(point, 2) for point in ring):
            return f"ring {index} must be a list of three or more points [x, y], finite and in pixels of the image"
    return None


def _boxes(value: Any) -> str | None:
    if not isinstance(value, list):
        return "must be a list of boxes [x0, y0, x1, y1], [] where nothing answers"
    for index, box in enumerate(value):
        if not _numbers(box, 4) or not (box[0] < box[2] and box[1] < box[3]):
            sides = _numbers(box, 4) and min(box) >= 0 < min(box[2:])
            hint = "; of x, y, width and height write x, y, x + width, y + height" if sides else ""
            return f"box {index} must be [x0, y0, x1, y1] with x0 < x1 and y0 < y1, in pixels of the image{hint}"
    return None


def _rle(value: Any) -> str | None:
    if not isinstance(value, dict) or set(value) != {"size", "counts"}:
        return 'must be {"size": [height, width], "counts": ...}'
    size, counts = value["size"], value["counts"]
    if not (isinstance(size, list) and len(size) == 2 and all(_count(n) and n > 0 for n in size)):
        return "size must be [height, width]"
    if not (isinstance(counts, str) or (isinstance(counts, list) and all(map(_count, counts)))):
        return f"counts must be COCO's compressed text or a list of whole numbers, at most {MAX_ABS**2:.0e} each"
    return None


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ABS**2


_CHECKS: dict[str, Callable[[Any], str | None]] = {
    "id": _text,
    "image": _path,
    "query": _question,
    "split": _split,
    "mask": _path,
    "rle": _rle,
    "polygons": _polygons,
    "boxes": _boxes,
    "holes": lambda value: None if isinstance(value, bool) else "must be true or false",
    "reasoning": _question,
}


def _near(key: str) -> str:
    near = difflib.get_close_matches(key, KEYS, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _kind(value: Any) -> str:
    return {list: "a list", str: "text", type(None): "null"}.get(type(value), type(value).__name__)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
