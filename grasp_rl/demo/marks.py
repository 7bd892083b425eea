"""What a person points at, as text that both a mouse and a keyboard write.

A line is a thing: ``box LEFT TOP RIGHT BOTTOM``, then any number of ``on X Y``, a point on the thing, and ``off X Y``,
one beside it; a thing may have points alone. Numbers are in pixels of the image, (0, 0) at the outer corner of the
top-left one; a point of whole numbers is the middle of that pixel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from grasp_rl.config.errors import ConfigError
from grasp_rl.types import Answer, ParseStatus, Point, SpatialPrompt

MAX_TEXT, MAX_THINGS = 4000, 50
_COUNTS = {"box": 4, "on": 2, "off": 2}
_FORM = "write box LEFT TOP RIGHT BOTTOM, on X Y or off X Y in pixels, a line for each thing"


def read_marks(text: str, size: tuple[int, int]) -> Answer:
    """What ``text`` points at, as an answer that was read in full.

    Args:
        text: see the module docstring.
        size: (height, width) of the image; what lies outside is refused.

    Raises:
        ConfigError: a line cannot be read or names pixels that are not there; the message names it.
    """
    if len(text) > MAX_TEXT:
        raise ConfigError(
            f"your boxes and points: {len(text)} characters, of which {MAX_TEXT} are read; name fewer things"
        )
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ConfigError("your boxes and points: there are none; drag a box on the image, click a point, or write one")
    if len(lines) > MAX_THINGS:
        raise ConfigError(
            f"your boxes and points: {len(lines)} things, of which {MAX_THINGS} are read; name fewer things"
        )
    prompts = tuple(_thing(line, size) for line in lines)
    return Answer(prompts=prompts, status=ParseStatus.OK, think_layout=True, fenced=True, form=1.0)


def with_mark(text: str, mark: Mapping[str, Any], size: tuple[int, int]) -> str:
    """``text`` with one more mark: a box as a thing of its own, a point with the last thing whose box it lies in.

    A point in no box goes to the last thing if that has no box either, else it is a thing of its own; a point beside a
    thing (``off``) goes to the last thing. ``text`` that cannot be read is written anew.

    Args:
        text: so far.
        mark: from the browser: ``box`` [left, top, right, bottom], or ``point`` [x, y] and perhaps ``off`` true.
        size: (height, width) of the image; the mark is moved to within it.

    Raises:
        ConfigError: the mark is none.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    try:
        things = [_thing(line, size) for line in lines]
    except ConfigError:
        lines, things = [], []
    height, width = size
    if "box" in mark:
        x0, y0, x1, y1 = _finite(mark["box"], 4)
        left, right = (min(max(round(x), 0), width) for x in sorted((x0, x1)))
        top, bottom = (min(max(round(y), 0), height) for y in sorted((y0, y1)))
        left, top = min(left, width - 1), min(top, height - 1)
        return "\n".join([*lines, f"box {left} {top} {max(right, left + 1)} {max(bottom, top + 1)}"])
    x, y = _finite(mark.get("point"), 2)
    x, y = min(max(int(x), 0), width - 1), min(max(int(y), 0), height - 1)
    place = _owner(things, (x, y), beside=bool(mark.get("off")))
    word = f"{'off' if mark.get('off') else 'on'} {x} {y}"
    if place is None:
        return "\n".join([*lines, word])
    lines[place] += f" {word}"
    return "\n".join(lines)


def _owner(things: list[SpatialPrompt], point: Point, *, beside: bool) -> int | None:
    """Index of the thing that a point belongs to; None for one of its own."""
    last = len(things) - 1
    if beside and things:
        return last
    for place in range(last, -1, -1):
        box = things[place].box
        if box is not None and box[0] <= point[0] < box[2] and box[1] <= point[1] < box[3]:
            return place
    return last if things and things[last].box is None else None


def _thing(line: str, size: tuple[int, int]) -> SpatialPrompt:
    height, width = size
    box, points, labels = None, list[Point](), list[int]()
    fields = line.replace(",", " ").split()
    while fields:
        kind = fields[0].lower()
        count = _COUNTS.get(kind)
        if count is None:
            raise ConfigError(f"your boxes and points: {line[:80]!r}: {fields[0][:20]!r} is no box, on or off; {_FORM}")
        values = _numbers(fields[1 : count + 1], count, line)
        fields = fields[count + 1 :]
        if kind != "box":
            x, y = values
            if not (0 <= x < width and 0 <= y < height):
                raise ConfigError(f"your boxes and points: {line[:80]!r}: a point outside the {width} x {height} image")
            points.append((x + 0.5 * (x == int(x)), y + 0.5 * (y == int(y))))
            labels.append(int(kind == "on"))
            continue
        x0, y0, x1, y1 = values
        if box is not None:
            raise ConfigError(f"your boxes and points: {line[:80]!r}: two boxes in a line; {_FORM}")
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ConfigError(
                f"your boxes and points: {line[:80]!r}: must have 0 <= left < right <= {width} and "
                f"0 <= top < bottom <= {height}"
            )
        box = (x0, y0, x1, y1)
    if box is None and 1 not in labels:
        raise ConfigError(f"your boxes and points: {line[:80]!r}: needs a box or a point that is on the thing; {_FORM}")
    return SpatialPrompt(box=box, point_coords=tuple(points), point_labels=tuple(labels))


def _numbers(fields: list[str], count: int, line: str) -> list[float]:
    try:
        values = [float(word) for word in fields]
    except ValueError:
        values = []
    if len(values) != count or not all(map(math.isfinite, values)):
        raise ConfigError(f"your boxes and points: {line[:80]!r}: needs {count} numbers here; {_FORM}")
    return values


def _finite(values: Any, count: int) -> list[float]:
    """``count`` finite numbers that a browser sent.

    Raises:
        ConfigError: they are none.
    """
    whole = isinstance(values, list) and len(values) == count
    if not whole or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
        raise ConfigError("the mark on the image could not be read; draw it again")
    return [float(v) for v in values]
