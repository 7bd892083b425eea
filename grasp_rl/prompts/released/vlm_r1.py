"""VLM-R1 (arXiv 2504.07615) and what was built on it, Geo-R1 among it.

Read from miznchimaki/VLM-R1@1c95491, a copy of om-ai-lab/VLM-R1: ``iou_reward`` and ``format_reward_rec`` of
qwen_module.py; ``odLength_reward``, ``detection_score`` and ``mcq_reward`` of grpo_jsonl.py.
"""

from __future__ import annotations

import re
from typing import Any

from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.prompts.json_text import ReadError
from grasp_rl.prompts.released.reading import (
    Reading,
    after_thought,
    all_between,
    answer_of,
    between,
    fence_of,
    load,
    maybe_numbers,
    prompt_as_said,
)
from grasp_rl.prompts.render import ANSWER_CLOSE, ANSWER_OPEN, THINK_OPEN
from grasp_rl.types import ParseStatus, SpatialPrompt

_WHOLE_BOX = re.compile(r"\[(\d+),\s*(\d+),\s*(\d+),\s*(\d+)\]")
_LETTER = re.compile(r"(?<![A-Z])[A-Z](?=[.,?!:;]|$)")
_KEYWORDS = (
    *("答案", "选择", "正确", "是", "对", "认为", "应该", "觉得"),
    *("ANSWER", "CORRECT", "CHOOSE", "SELECT", "RIGHT", "THINK", "BELIEVE", "SHOULD"),
)
_STOPS = ("。", ".", "!", "\uff01", "\uff0c", ",")


def rec(text: str, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig) -> Reading:
    """The first list of four whole numbers in the first answer; the format value asks for braces around it, too."""
    form = float(_has_object(text))
    body = between(text, ANSWER_OPEN, ANSWER_CLOSE)
    match = None if body is None else _WHOLE_BOX.search(body)
    if match is None:
        return Reading(status=ParseStatus.NO_ANSWER if body is None else ParseStatus.BAD_SCHEMA, form=form)
    box = maybe_numbers([float(number) for number in match.groups()], 4, config)
    if box is None:
        return Reading(status=ParseStatus.BAD_NUMBER, form=form)
    return Reading(instances=(prompt_as_said(box, [], frame),), form=form)


def _has_object(text: str) -> bool:
    """Whether a thought is followed by an answer with a box of whole numbers in braces, whatever stands around it."""
    start = text.find(THINK_OPEN)
    place = after_thought(text, start) if start >= 0 else None
    place = -1 if place is None else text.find("{", place)
    box = _WHOLE_BOX.search(text, place) if place >= 0 else None
    place = -1 if box is None else text.find("}", box.end())
    return place >= 0 and text.find(ANSWER_CLOSE, place) >= 0


def od(text: str, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig) -> Reading:
    """The last ```json fence of the last answer. An answer without a fence that can be read is an empty one."""
    body = next(iter(reversed(list(all_between(text, ANSWER_OPEN, ANSWER_CLOSE)))), None)
    if body is None:
        raise ReadError(ParseStatus.NO_ANSWER)
    return _detections(fence_of(body, last=True), frame, config)


def detection(text: str, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig) -> Reading:
    """The first fence of the last answer, or of all the text, in lower case; "none" says that there is nothing."""
    answers = list(all_between(text, ANSWER_OPEN, ANSWER_CLOSE))
    body = (answers[-1] if answers else text).strip().rstrip(".").lower()
    if body == "none":
        return Reading()
    reading = _detections(fence_of(body), frame, config)
    if not reading.listed:
        raise ReadError(ParseStatus.BAD_SCHEMA)  # an empty list is not the word
    return reading


def _detections(body: str | None, frame: CoordinateFrame, config: ParsingConfig) -> Reading:
    """The objects of a list with a box and a label, the list's length beside them."""
    try:
        value = load(body or "", config)
    except ReadError as error:
        if error.status is ParseStatus.TOO_LONG:
            raise
        value = []
    items: list[Any] = list(value) if isinstance(value, list | dict | str) else []
    read = [_detected(item, frame, config) for item in items[: config.max_instances]]
    instances = tuple(item for item in read if item is not None)
    status = ParseStatus.BAD_SCHEMA if items and not instances else ParseStatus.OK
    return Reading(instances=instances, status=status, listed=len(items), fenced=body is not None)


def _detected(item: Any, frame: CoordinateFrame, config: ParsingConfig) -> SpatialPrompt | None:
    entry = item if isinstance(item, dict) else {}
    box, label = maybe_numbers(entry.get("bbox_2d"), 4, config), entry.get("label")
    if box is None or not isinstance(label, str):
        return None
    return prompt_as_said(box, [], frame, label)


def choice(text: str, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig) -> Reading:
    """The letter that the first answer, or all of the text, names: a capital by itself before punctuation or the end.

    Of several the most likely by the words around it, its place, and what follows it; the first of equal ones.
    """
    try:
        body = answer_of(text)
    except ReadError:
        body = text.strip()
    plain = re.sub(r"\s+", " ", body.upper())
    letters = dict.fromkeys(_LETTER.findall(plain))
    if not letters:
        return Reading(status=ParseStatus.BAD_SCHEMA)
    return Reading(choice=max(letters, key=lambda letter: _likelihood(letter, plain)), form=1.0)


def _likelihood(letter: str, text: str) -> int:
    place = text.find(letter)
    around = text[max(0, place - 20) : place + 20]
    late = 2 * (place > 0.7 * len(text))
    return sum(word in around for word in _KEYWORDS) + late + (text[place + 1 : place + 2] in _STOPS)
