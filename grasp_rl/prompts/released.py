"""Answers read as the released code of two systems reads them, so that their checkpoints score as published.

``think2seg``: the text between the first pair of answer tags, or all of it without tags; in it a ```json fence, and
there what stands from the first ``[`` to the last ``]``, mended by json-repair where it is no JSON. Every instance has
a box or positive points; what it has must be of the right length, and a list that the scheme does not ask for, even an
empty one, is an error.

``visionreasoner``: the first pair of answer tags holds a JSON list; each field of each object counts by itself for the
format term (``Answer.form``), and objects whose fields are all well-formed are matched.

Both ask for the layout in the same words: a thought from the first character on, white space, an answer to the last
character. Two thoughts in a row are one to them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import Any

from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.prompts.coordinates import image_box, image_point, scaled
from grasp_rl.prompts.json_text import MAX_REPAIR_CHARS, ReadError, check_caps, mend
from grasp_rl.prompts.render import ANSWER_CLOSE, ANSWER_OPEN, FENCE_CLOSE, FENCE_OPEN, THINK_CLOSE, THINK_OPEN
from grasp_rl.types import ParseStatus, SpatialPrompt

_BETWEEN = re.compile(rf"{THINK_CLOSE}\s*{ANSWER_OPEN}")
Reader = Callable[[str, PromptConfig, CoordinateFrame, ParsingConfig], tuple[list[SpatialPrompt], bool, float]]
"""Gives the instances, whether they stood in a fence, and the share of well-formed fields; raises ReadError."""


def layout(text: str) -> bool:
    """Whether ``text`` is one thought, white space and one answer from its first character to its last."""
    if not (text.startswith(THINK_OPEN) and text.endswith(ANSWER_CLOSE)):
        return False
    between = _BETWEEN.search(text, len(THINK_OPEN))
    return between is not None and between.end() <= len(text) - len(ANSWER_CLOSE)


def think2seg(
    text: str, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig
) -> tuple[list[SpatialPrompt], bool, float]:
    """See the module and :data:`Reader`."""
    body = _between(text, ANSWER_OPEN, ANSWER_CLOSE)
    fenced = _between(text if body is None else body, FENCE_OPEN, FENCE_CLOSE)
    if fenced is None:
        raise ReadError(ParseStatus.NO_ANSWER if body is None else ParseStatus.BAD_JSON)
    start, end = fenced.find("["), fenced.rfind("]")
    if start < 0:
        raise ReadError(ParseStatus.BAD_JSON)
    value = _decode(fenced[start : end + 1] if end > start else fenced[start:], config)
    if not isinstance(value, list):
        raise ReadError(ParseStatus.BAD_SCHEMA)
    if len(value) > config.max_instances:
        raise ReadError(ParseStatus.TOO_LONG)
    return [_think2seg_instance(item, prompt, frame, config) for item in value], True, 1.0


def _think2seg_instance(
    item: Any, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig
) -> SpatialPrompt:
    if not isinstance(item, dict) or not (item.keys() & {prompt.box_key, prompt.positive_key}):
        raise ReadError(ParseStatus.BAD_SCHEMA)
    box = image_box(_numbers(item[prompt.box_key], 4, config), frame) if prompt.box_key in item else None
    positive = _points(item, prompt.positive_key, prompt.positive_points, config)
    negative = _points(item, prompt.negative_key, prompt.negative_points, config)
    return SpatialPrompt(
        box=box,
        point_coords=tuple(image_point(point, frame) for point in positive + negative),
        point_labels=(1,) * len(positive) + (0,) * len(negative),
    )


def visionreasoner(
    text: str, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig
) -> tuple[list[SpatialPrompt], bool, float]:
    """See the module and :data:`Reader`."""
    body = _between(text, ANSWER_OPEN, ANSWER_CLOSE)
    if body is None:
        raise ReadError(ParseStatus.NO_ANSWER)
    check_caps(body, config, instances=False)
    try:
        value = json.loads(body)
    except ValueError:
        raise ReadError(ParseStatus.BAD_JSON) from None
    if not isinstance(value, list):
        raise ReadError(ParseStatus.BAD_SCHEMA)
    listed = value[: config.max_instances]
    read = [_fields(item, prompt, config) for item in listed]
    instances = []
    for fields in read:
        if None not in fields.values():
            box = fields.get(prompt.box_key)
            points = [point for name, point in fields.items() if name != prompt.box_key and point is not None]
            instances.append(
                SpatialPrompt(
                    box=None if box is None else scaled(box, frame),  # type: ignore[arg-type]
                    point_coords=tuple(scaled(point, frame) for point in points),  # type: ignore[misc]
                    point_labels=tuple(
                        int(name not in prompt.negative_fields) for name in fields if name != prompt.box_key
                    ),
                )
            )
    total = len(read) * len(prompt.fields)
    form = sum(value is not None for fields in read for value in fields.values()) / total if total else 0.0
    return instances, False, form


def _fields(item: Any, prompt: PromptConfig, config: ParsingConfig) -> dict[str, list[float] | None]:
    """The scheme's fields of one object, None where one is malformed."""
    result: dict[str, list[float] | None] = {}
    for name in prompt.fields:
        try:
            value = item[name] if isinstance(item, dict) and name in item else None
            result[name] = _numbers(value, 4 if name == prompt.box_key else 2, config)
        except ReadError:
            result[name] = None
    return result


READERS: dict[str, Reader] = {"think2seg": think2seg, "visionreasoner": visionreasoner}


def reads(reader: str, prompt: PromptConfig) -> bool:
    """Whether ``reader`` knows the fields of a scheme; those of another system are read by the scheme's own rules."""
    if reader == "think2seg":
        return not (prompt.flat_points or prompt.single_object)
    few = prompt.flat_points or prompt.positive_points + prompt.negative_points == 0
    return reader == "visionreasoner" and few and not prompt.single_object


def _between(text: str, begin: str, end: str) -> str | None:
    """What stands between the first ``begin`` and the first ``end`` behind it."""
    start = text.find(begin)
    stop = text.find(end, start + len(begin)) if start >= 0 else -1
    return text[start + len(begin) : stop].strip() if stop >= 0 else None


def _decode(body: str, config: ParsingConfig) -> Any:
    check_caps(body, config)
    try:
        return json.loads(body)
    except ValueError:
        if len(body) > MAX_REPAIR_CHARS:
            raise ReadError(ParseStatus.BAD_JSON) from None
    return mend(body)


def _points(item: dict[str, Any], key: str, count: int, config: ParsingConfig) -> list[list[float]]:
    """``count`` points of a list that may be left out, but not be there for nothing."""
    if key not in item:
        return []
    points = item[key]
    if not isinstance(points, list) or len(points) != count or not count:
        raise ReadError(ParseStatus.BAD_SCHEMA)
    return [_numbers(point, 2, config) for point in points]


def _numbers(value: Any, count: int, config: ParsingConfig) -> list[float]:
    if not isinstance(value, list) or len(value) != count:
        raise ReadError(ParseStatus.BAD_SCHEMA)
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in value):
        raise ReadError(ParseStatus.BAD_SCHEMA)
    limit = min(config.max_abs_coordinate, sys.float_info.max)
    if not all(-limit <= number <= limit for number in value):  # False for NaN, too
        raise ReadError(ParseStatus.BAD_NUMBER)
    return [float(number) for number in value]
