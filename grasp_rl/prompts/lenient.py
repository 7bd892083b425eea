"""Lenient reading, where ``parsing.repair`` allows it: what untrained grounding models write instead of the scheme.

Beside what json-repair mends: a fence or JSON without answer tags, a missing closing tag, further keys (``label``), one
object instead of a list, numbers as text, a list too many, full-width punctuation, several JSON values one after
another (all count). Of an answer that the cap on its length cut off, the closed instances count: nothing says how many
digits the number at the cut would have had. Nothing inside a thought is ever read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.prompts.json_text import MAX_REPAIR_CHARS, ReadError, check_caps, decode, mend, structure
from grasp_rl.prompts.render import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN
from grasp_rl.types import ParseStatus

_FENCE = "```"
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3001: ",", 0x201C: '"', 0x201D: '"'}
_PERCENT = re.compile(r"\d\s*%")
_NUMBER = re.compile(r"\s*[-+]?\d{1,16}(?:\.\d{1,16})?\s*")


def read(text: str, prompt: PromptConfig, config: ParsingConfig) -> tuple[list[dict[str, Any]], bool]:
    """The instances of a completion, each with the scheme's fields as far as they are there.

    Args:
        text: the decoded completion.
        prompt: the scheme.
        config: caps; ``require_fence`` holds here, too.

    Returns:
        The instances, and whether they stood in a fence.

    Raises:
        ReadError: there is no answer, or nothing in it can be read.
    """
    answer, is_open, is_tagged = _answer(text)
    bodies = _fenced(answer)
    fenced = bool(bodies)
    if not fenced:
        if config.require_fence and is_tagged:
            raise ReadError(ParseStatus.BAD_JSON)
        bodies = [(answer, is_open)]
    items: list[dict[str, Any]] = []
    for body, open_body in bodies:
        plain = body.strip().translate(_FULL_WIDTH)
        if not (fenced or is_tagged or plain.startswith(("[", "{"))):
            raise ReadError(ParseStatus.NO_ANSWER)
        values = _values(plain, config, is_open and open_body)
        items += [item for value in values if value is not None for item in _instances(value, prompt)]
    return items, fenced


def _answer(text: str) -> tuple[str, bool, bool]:
    """The text of the answer, whether the end of the completion may have cut it off, whether it had a tag."""
    thought = text.rfind(THINK_CLOSE)
    if thought < text.rfind(THINK_OPEN):
        raise ReadError(ParseStatus.NO_ANSWER)  # the last thought never ended
    begin = thought + len(THINK_CLOSE) if thought >= 0 else 0
    end = text.rfind(ANSWER_CLOSE, begin)
    start = text.rfind(ANSWER_OPEN, begin, end if end >= 0 else len(text))
    first = start + len(ANSWER_OPEN) if start >= 0 else begin
    return text[first : end if end >= 0 else len(text)], end < 0, start >= 0 or end >= 0


def _fenced(text: str) -> list[tuple[str, bool]]:
    """What stands in the fences of ``text``, and whether the fence is left open."""
    pieces = text.split(_FENCE)
    inside = [(piece, index == len(pieces) - 1) for index, piece in enumerate(pieces) if index % 2]
    bodies = [(re.sub(r"\A\s*json\b", "", piece, flags=re.IGNORECASE), is_open) for piece, is_open in inside]
    return [(body, is_open) for body, is_open in bodies if body.strip()]


def _values(body: str, config: ParsingConfig, is_open: bool) -> list[Any]:
    """All JSON values in ``body``; of one that ends with the completion, what was closed before."""
    check_caps(body, config)
    try:
        return [decode(body)]
    except json.JSONDecodeError:
        if len(body) > MAX_REPAIR_CHARS:
            raise ReadError(ParseStatus.BAD_JSON) from None
    values: list[Any] = []
    for piece in _pieces(body, is_open):
        try:
            values.append(decode(piece))
        except json.JSONDecodeError:
            values.append(_mended(piece))
    if not values:
        raise ReadError(ParseStatus.BAD_JSON)
    return values


def _mended(piece: str) -> Any:
    """What json-repair makes of ``piece``, where it loses no list on the way and reads no share as a coordinate."""
    value = mend(piece)
    if _PERCENT.search(piece):
        raise ReadError(ParseStatus.BAD_NUMBER)
    if _lists(value) < piece.count("["):
        raise ReadError(ParseStatus.BAD_JSON)
    return value


def _lists(value: Any) -> int:
    """How many lists there are in ``value``."""
    if isinstance(value, dict):
        return sum(map(_lists, value.values()))
    return 1 + sum(map(_lists, value)) if isinstance(value, list) else 0


def _pieces(body: str, is_open: bool) -> Iterator[str]:
    """The outermost lists and objects of ``body``; one left open goes to the end, or to what is closed in it."""
    depth, start = 0, 0
    closed: dict[str, int] = {}
    for char, position in structure(body):
        if char in "[{":
            start = start if depth else position
            depth += 1
        elif char in "]}" and depth:
            depth -= 1
            closed[char] = position + 1
            if not depth:
                yield body[start : position + 1]
                closed.clear()
    if depth and not is_open:
        yield body[start:]
    elif end := closed.get("}" if "{" in body[start:] else "]"):
        yield body[start:end]


def _instances(value: Any, prompt: PromptConfig) -> list[dict[str, Any]]:
    """The instances in a decoded value, whatever lists stand around them."""
    only_boxes = prompt.fields == [prompt.box_key]
    if isinstance(value, list):
        if only_boxes and len(value) == 4 and all(_is_number(number) for number in value):
            return [{prompt.box_key: _numbers(value)}]
        if any(item == [] for item in value):
            raise ReadError(ParseStatus.BAD_SCHEMA)  # "nothing" is the empty list itself
        return [instance for item in value for instance in _instances(item, prompt)]
    if not isinstance(value, dict):
        raise ReadError(ParseStatus.BAD_SCHEMA)
    fields = {name: _unwrapped(_numbers(value[name])) for name in prompt.fields if name in value}
    box = fields.get(prompt.box_key)
    if only_boxes and isinstance(box, list) and box and all(isinstance(item, list) for item in box):
        return [{prompt.box_key: item} for item in box]
    return [fields]


def _unwrapped(value: Any) -> Any:
    """``value`` without lists that hold nothing but a list of coordinates or of points."""
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        inner = value[0]
        if len(inner) in (2, 3) and all(_is_number(number) for number in inner):  # a single point or click in its list
            break
        value = inner
    return value


def _numbers(value: Any) -> Any:
    """``value`` with the numbers in it that are written as text."""
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return bool(_NUMBER.fullmatch(value))
    return isinstance(value, int | float) and not isinstance(value, bool)
