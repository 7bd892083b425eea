"""JSON of an answer: decoded under caps, strictly, or by json-repair."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

import json_repair

from grasp_rl.config.schema import ParsingConfig
from grasp_rl.types import ParseStatus

_MAX_NUMBER_CHARS = 32
_MAX_BRACKETS = 20  # of one instance: the object, its box, two lists of points and eight points in each
MAX_REPAIR_CHARS = 4096
"""json-repair takes quadratic time on some texts: 0.3 s at this length, 5 s at 16384."""
_STRUCTURE = re.compile(r'["\\\[\]{},]')  # one character a match: nothing to backtrack over


class ReadError(Exception):
    """Reading ends here, with this status."""

    def __init__(self, status: ParseStatus) -> None:
        super().__init__(status)
        self.status = status


def decode(body: str) -> Any:
    """Python values of a JSON text; every number is a float.

    Raises:
        json.JSONDecodeError: it is no JSON.
        ReadError: a key occurs twice, or a number is too long or not finite.
    """
    return json.loads(
        body,
        object_pairs_hook=_unique_keys,
        parse_int=_read_number,
        parse_float=_read_number,
        parse_constant=_reject_constant,
    )


def mend(body: str) -> Any:
    """Python values of a text that is nearly JSON, by json-repair.

    Raises:
        ReadError: it cannot be mended, or nothing is left of it: "nothing is there" must be said.
    """
    try:
        value = json_repair.loads(body, skip_json_loads=True)
    except (RecursionError, ValueError, IndexError):  # nesting that only json-repair sees, and faults of its own
        raise ReadError(ParseStatus.BAD_JSON) from None
    if not value:
        raise ReadError(ParseStatus.BAD_JSON)
    return value


def check_caps(body: str, config: ParsingConfig, *, instances: bool = True) -> None:
    """Reject nesting deeper than ``max_depth`` and, with ``instances``, more of them than ``max_instances`` allows."""
    depth = commas = brackets = 0
    for char, _ in structure(body):
        if char in "[{":
            depth += 1
            brackets += 1
        elif char in "]}":
            depth = max(depth - 1, 0)
        elif depth == 1:
            commas += 1
        too_many = instances and (commas >= config.max_instances or brackets > 1 + _MAX_BRACKETS * config.max_instances)
        if too_many or depth > config.max_depth:
            raise ReadError(ParseStatus.TOO_LONG)


def structure(body: str) -> Iterator[tuple[str, int]]:
    """The brackets, braces and commas of a JSON text that stand outside its strings, and where."""
    in_string, escaped = False, -1
    for result in _STRUCTURE.finditer(body):
        char, position = result[0], result.start()
        if position == escaped:
            continue
        if char == '"':
            in_string = not in_string
        elif char == "\\":
            escaped = position + 1 if in_string else -1
        elif not in_string:
            yield char, position


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ReadError(ParseStatus.BAD_SCHEMA)
    return fields


def _read_number(text: str) -> float:
    if len(text) > _MAX_NUMBER_CHARS:
        raise ReadError(ParseStatus.BAD_NUMBER)
    return float(text)


def _reject_constant(_: str) -> NoReturn:
    """NaN, Infinity and -Infinity are no JSON, though json.loads reads them."""
    raise ReadError(ParseStatus.BAD_NUMBER)
