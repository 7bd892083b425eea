"""What the readers of released systems share: what they return, and how they find tags, fences and numbers.

Everything here takes time linear in the length of the text.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.prompts.coordinates import scaled
from grasp_rl.prompts.json_text import ReadError, check_caps
from grasp_rl.prompts.render import ANSWER_CLOSE, ANSWER_OPEN, FENCE_CLOSE, FENCE_OPEN, THINK_CLOSE, THINK_OPEN
from grasp_rl.types import Box, ParseStatus, Relation, SpatialPrompt

_JOINT = re.compile(rf"{THINK_CLOSE}\s*{ANSWER_OPEN}")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a reader made of a completion."""

    instances: tuple[SpatialPrompt, ...] = ()
    """In original-image pixels; none where ``status`` is not OK."""
    status: ParseStatus = ParseStatus.OK
    fenced: bool = False
    """Whether the answer stood in a fence."""
    form: float = 0.0
    """The system's own format value in [0, 1]; it may be paid where no instance was read."""
    listed: int | None = None
    """Objects that the answer lists, also those that cannot be used; None for as many as ``instances``."""
    point_labels: tuple[int, ...] = ()
    """Labels of the question's candidate points."""
    choice: str | None = None
    """Which of several images is named."""
    relations: tuple[Relation, ...] = ()
    """Of a scene graph, between ``instances`` by their index."""


Reader = Callable[[str, PromptConfig, CoordinateFrame, ParsingConfig], Reading]
"""Reads a completion; raises ReadError where nothing of it is worth keeping, not even its format value."""


def layout(text: str) -> bool:
    """Whether ``text`` is one thought, white space and one answer from its first character to its last."""
    if not (text.startswith(THINK_OPEN) and text.endswith(ANSWER_CLOSE)):
        return False
    joint = after_thought(text, len(THINK_OPEN))
    return joint is not None and joint <= len(text) - len(ANSWER_CLOSE)


def after_thought(text: str, start: int) -> int | None:
    """Where the first answer begins that follows the end of a thought, white space between them; None for nowhere."""
    joint = _JOINT.search(text, start)
    return None if joint is None else joint.end()


def between(text: str, begin: str, end: str) -> str | None:
    """What stands between the first ``begin`` and the first ``end`` behind it."""
    return next(all_between(text, begin, end), None)


def all_between(text: str, begin: str, end: str) -> Iterator[str]:
    """What stands between each ``begin`` and the first ``end`` behind it, without overlap."""
    position = 0
    while (start := text.find(begin, position)) >= 0:
        stop = text.find(end, start + len(begin))
        if stop < 0:
            return
        yield text[start + len(begin) : stop].strip()
        position = stop + len(end)


def answer_of(text: str) -> str:
    """What stands in the first pair of answer tags.

    Raises:
        ReadError: there is none.
    """
    body = between(text, ANSWER_OPEN, ANSWER_CLOSE)
    if body is None:
        raise ReadError(ParseStatus.NO_ANSWER)
    return body


def fence_of(text: str, *, last: bool = False) -> str | None:
    """What stands in the first ```json fence, or the last one."""
    bodies = all_between(text, FENCE_OPEN, FENCE_CLOSE)
    return next(iter(reversed(list(bodies))), None) if last else next(bodies, None)


def load(body: str, config: ParsingConfig, *, instances: bool = True) -> Any:
    """Python values of JSON text as ``json.loads`` gives them, under the caps.

    Raises:
        ReadError: it is no JSON, or beyond the caps.
    """
    check_caps(body, config, instances=instances)
    try:
        return json.loads(body)
    except ValueError:  # JSONDecodeError, and numbers of too many digits
        raise ReadError(ParseStatus.BAD_JSON) from None


def load_list(body: str, config: ParsingConfig) -> list[Any]:
    """The same of a list.

    Raises:
        ReadError: it is no JSON list, or beyond the caps.
    """
    value = load(body, config)
    if not isinstance(value, list):
        raise ReadError(ParseStatus.BAD_SCHEMA)
    if len(value) > config.max_instances:
        raise ReadError(ParseStatus.TOO_LONG)
    return value


def load_literal(body: str, config: ParsingConfig) -> list[Any]:
    """A Python list of numbers, strings and booleans, as far as it differs from JSON in quotes and capitals alone.

    Raises:
        ReadError: it is none.
    """
    text = body.replace("'", '"').replace("True", "true").replace("False", "false")
    return load_list(text, config)


def numbers(value: Any, count: int, config: ParsingConfig) -> list[float]:
    """``count`` finite numbers within the limit; a boolean or a string is none.

    Raises:
        ReadError: it is something else.
    """
    if not isinstance(value, list) or len(value) != count:
        raise ReadError(ParseStatus.BAD_SCHEMA)
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in value):
        raise ReadError(ParseStatus.BAD_SCHEMA)
    limit = min(config.max_abs_coordinate, sys.float_info.max)
    if not all(-limit <= number <= limit for number in value):  # False for NaN, too
        raise ReadError(ParseStatus.BAD_NUMBER)
    return [float(number) for number in value]


def maybe_numbers(value: Any, count: int, config: ParsingConfig) -> list[float] | None:
    """The same, None for what is something else."""
    try:
        return numbers(value, count, config)
    except ReadError:
        return None


def box_as_said(edges: Sequence[float], frame: CoordinateFrame) -> Box:
    """The box in image pixels, its corners neither put in order nor clipped."""
    x0, y0, x1, y1 = scaled(edges, frame)
    return x0, y0, x1, y1


def prompt_as_said(
    box: Sequence[float] | None,
    points: Sequence[Sequence[float]],
    frame: CoordinateFrame,
    category: str | None = None,
) -> SpatialPrompt:
    """An instance whose numbers are scaled to the image and nothing else; the points are positive."""
    return SpatialPrompt(
        box=None if box is None else box_as_said(box, frame),
        point_coords=tuple((x, y) for x, y in (scaled(point, frame) for point in points)),
        point_labels=(1,) * len(points),
        category=category,
    )
