"""RS-HyRe-R1 (arXiv 2604.17504): HyRe_score.py of GeoX-Lab/RS-HyRe-R1@7bed88f, grounding and detection.

The format value asks for a thought that is not empty and for both answer tags, wherever they stand. Grounding takes
four numbers, an object with ``bbox_2d`` or ``bbox``, or the first of a list of such objects; what is no JSON, the first
bracket with four plain numbers. Detection takes a list of objects with ``bbox`` and ``label`` and leaves others out;
what cannot be read is an empty answer to it. Case counts for no tag.
"""

from __future__ import annotations

import re
from typing import Any

from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.prompts.json_text import ReadError
from grasp_rl.prompts.released.reading import Reading, load, maybe_numbers, prompt_as_said
from grasp_rl.prompts.render import ANSWER_CLOSE, ANSWER_OPEN, FENCE_OPEN
from grasp_rl.types import ParseStatus, SpatialPrompt

_THINK = (re.compile("<think>", re.IGNORECASE), re.compile("</think>", re.IGNORECASE))
_ANSWER = (re.compile("<answer>", re.IGNORECASE), re.compile("</answer>", re.IGNORECASE))
_FOUR = re.compile(r"\[([\d.\s,]+)\]")
_SPACES = re.compile(r"[\s,]+")


def grounding(text: str, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig) -> Reading:
    """One box, see the module."""
    form = _form(text)
    body = _unfenced(_first(text, _ANSWER) or "")
    try:
        value = load(body, config)
        numbers = maybe_numbers(_grounded(value), 4, config)
    except ReadError:
        numbers = next((candidate for m in _FOUR.finditer(body) if (candidate := _four(m[1], config))), None)
    if numbers is None:
        return Reading(status=ParseStatus.BAD_SCHEMA, form=form)
    return Reading(instances=(prompt_as_said(numbers, [], frame),), form=form)


def detection(text: str, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig) -> Reading:
    """Boxes with labels, see the module."""
    try:
        value = load(_unfenced(_first(text, _ANSWER) or ""), config)
    except ReadError as error:
        if error.status is ParseStatus.TOO_LONG:
            return Reading(status=error.status, form=_form(text))
        value = []
    items = value if isinstance(value, list) else []
    read = [_detected(item, frame, config) for item in items]
    return Reading(instances=tuple(item for item in read if item is not None), form=_form(text))


def _form(text: str) -> float:
    return float(bool(_first(text, _THINK)) and ANSWER_OPEN in text and ANSWER_CLOSE in text)


def _first(text: str, tags: tuple[re.Pattern[str], re.Pattern[str]]) -> str | None:
    """What stands in the first pair of tags, whatever their case."""
    begin = tags[0].search(text)
    end = tags[1].search(text, begin.end()) if begin else None
    return text[begin.end() : end.start()].strip() if begin and end else None


def _unfenced(body: str) -> str:
    return body.replace(FENCE_OPEN, "").replace("```", "").strip()


def _grounded(value: Any) -> Any:
    """The box of a decoded value, of whatever form."""
    item = value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else value
    return item.get("bbox_2d", item.get("bbox")) if isinstance(item, dict) else item


def _four(text: str, config: ParsingConfig) -> list[float] | None:
    parts = [part for part in _SPACES.split(text) if part]
    try:
        return maybe_numbers([float(part) for part in parts], 4, config)
    except ValueError:  # two stops in a number
        return None


def _detected(item: Any, frame: CoordinateFrame, config: ParsingConfig) -> SpatialPrompt | None:
    entry = item if isinstance(item, dict) else {}
    box, label = maybe_numbers(entry.get("bbox"), 4, config), entry.get("label")
    if box is None or not isinstance(label, str):
        return None
    x0, x1, y0, y1 = *sorted(box[::2]), *sorted(box[1::2])
    return prompt_as_said([x0, y0, x1, y1], [], frame, label)
