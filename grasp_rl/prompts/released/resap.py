"""ReSaP: grpo_ref_split.py of gray114514/ReSaP@e0aa33e, the task of boxes and that of labels for given points.

An answer tag, in whatever case and with whatever attributes, counts where it holds a bracketed list and nothing else.
The first such list is the answer, unless a later one cannot be read. Of several boxes the first counts, cut to the
frame and rounded; a label is 0 or 1, also as a boolean or as text, and no other number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.prompts.json_text import ReadError
from grasp_rl.prompts.released.reading import Reading, load_literal, numbers, prompt_as_said
from grasp_rl.types import ParseStatus

_OPEN = re.compile(r"<answer[^<>]*>", re.IGNORECASE)
_CLOSE = re.compile("</answer>", re.IGNORECASE)
_LABELS = {"0": 0, "1": 1}


def boxes(text: str, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig) -> Reading:
    """The first box, see the module."""
    value = _first_list(text, config)
    if not value:
        return Reading(form=1.0)
    edges, *_ = [numbers(item, 4, config) for item in (value if isinstance(value[0], list) else [value])]
    sides = (frame.width, frame.height) * 2
    cut = [float(round(min(max(x, 0.0), side - 1))) for x, side in zip(edges, sides, strict=True)]
    x0, x1, y0, y1 = *sorted(cut[::2]), *sorted(cut[1::2])
    return Reading(instances=(prompt_as_said([x0, y0, x1, y1], [], frame),), form=1.0)


def labels(text: str, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig) -> Reading:
    """A label for each candidate point, see the module."""
    return Reading(point_labels=tuple(map(_label, _first_list(text, config))), form=1.0)


def _label(value: Any) -> int:
    if isinstance(value, float) or (isinstance(value, int) and value not in (0, 1)) or isinstance(value, list | dict):
        raise ReadError(ParseStatus.BAD_NUMBER)
    if isinstance(value, int):
        return int(value)
    if value not in _LABELS:
        raise ReadError(ParseStatus.BAD_NUMBER)
    return _LABELS[value]


def _first_list(text: str, config: ParsingConfig) -> list[Any]:
    lists = [load_literal(body, config) for body in _groups(text) if body.startswith("[") and body.endswith("]")]
    if not lists:
        raise ReadError(ParseStatus.NO_ANSWER)
    return lists[0]


def _groups(text: str) -> Iterator[str]:
    """What stands in each pair of answer tags."""
    position = 0
    while (begin := _OPEN.search(text, position)) and (end := _CLOSE.search(text, begin.end())):
        yield text[begin.end() : end.start()].strip()
        position = end.end()
