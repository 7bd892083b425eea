"""Text in: what a policy wrote, read strictly, in time linear in its length, and never with an exception.

The status says how far the reading came; every status but OK and REPAIRED leaves ``prompts`` empty. Bad text is data:
the rewards look at the status. The rules, in order:

1. Over ``max_chars`` nothing is looked at: TOO_LONG.
2. The answer is what stands between the last ``</answer>`` and the ``<answer>`` before it: else NO_ANSWER.
3. It is JSON and nothing else, bare or in one ```json fence; with ``require_fence`` bare JSON is BAD_JSON.
4. Nesting, instances, and brackets beyond what so many instances need are capped before the JSON is decoded: TOO_LONG.
5. A list of objects (one object or null, ``single_object``; bare boxes, ``answer=boxes``; the scheme's word for
   nothing) with exactly the scheme's fields and counts, no field twice: else BAD_SCHEMA. Booleans and strings
   are not numbers. Of clicks there are one to the scheme's number, labelled 0 or 1, the first of them 1.
6. A number of more than 32 characters, not finite, or beyond ``max_abs_coordinate`` is BAD_NUMBER.
7. Box corners are put in order and everything is clipped to the image. A box of no area after that is BAD_NUMBER and
   fails the whole answer, since an answer that loses its bad boxes for free would pay for guessing.
8. Boxes that repeat a larger one are dropped (``nms_iou``), as are point-only instances that repeat an earlier one.

With another ``reader``, rules 2 to 5 are those of a released system, see :mod:`grasp_rl.prompts.released`.
With ``repair``, what these rules refuse is read once more, by :mod:`grasp_rl.prompts.lenient`: REPAIRED where that
succeeds.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.geometry import nms
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.prompts import lenient, released
from grasp_rl.prompts.coordinates import image_box, image_point
from grasp_rl.prompts.json_text import ReadError, check_caps, decode
from grasp_rl.prompts.render import ANSWER_CLOSE, ANSWER_OPEN, FENCE_CLOSE, FENCE_OPEN, THINK_CLOSE, THINK_OPEN
from grasp_rl.types import Answer, ParseStatus, SpatialPrompt

_NO_THOUGHT = f"{THINK_OPEN}.{THINK_CLOSE}\n"
"""Stands before an answer that was asked for alone: the readers of released systems look for a thought."""


def parse(text: str, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig) -> Answer:
    """Read one completion. Never raises, whatever ``text`` is.

    Args:
        text: The decoded completion without special tokens.
        prompt: The scheme: which fields each instance must have.
        frame: The frame that the policy speaks. A box edge e stands for the line e, a point p for the centre of the
            unit cell p, that is p + 0.5; both are then scaled to the image.
        config: Caps and options.

    Returns:
        The answer in original-image pixels, boxes XYXY with x0 < x1 and y0 < y1, points strictly inside the image.
    """
    if len(text) > config.max_chars:
        return Answer(prompts=(), status=ParseStatus.TOO_LONG)
    thinking, layout = _read_thinking(text) if prompt.thinking else (None, _answer_alone(text))
    repeated = repeated_sentences(text)
    if prompt.answer in ("labels", "choice") and not released.reads(config.reader, prompt):
        answer = _read_bare(text, prompt, config)
        return replace(answer, thinking=thinking, think_layout=layout, repeated_sentences=repeated)
    if released.reads(config.reader, prompt):
        if prompt.thinking:
            layout, reading = released.layout(text), _read_as_released(text, prompt, frame, config)
        else:
            reading = _read_as_released(_NO_THOUGHT + text, prompt, frame, config)
            reading = reading if layout else replace(reading, form=0.0)
        prompts, status, fenced = _distinct(list(reading.instances), config.nms_iou), reading.status, reading.fenced
    else:
        prompts, status, fenced = _read_strictly(text, prompt, frame, config)
        reading = released.Reading(form=float(status is ParseStatus.OK))
    if config.repair and status is not ParseStatus.OK:
        prompts, status, fenced = _read_leniently(text, prompt, frame, config)
    if prompt.center_point:
        prompts = tuple(_with_center(item) for item in prompts)
    if frame.left or frame.top:
        prompts = tuple(_moved(item, frame.left, frame.top) for item in prompts)
    return Answer(
        prompts=prompts,
        status=status,
        thinking=thinking,
        think_layout=layout,
        fenced=fenced,
        form=reading.form,
        repeated_sentences=repeated,
        listed=reading.listed,
        point_labels=reading.point_labels,
        choice=reading.choice,
        relations=reading.relations if len(prompts) == len(reading.instances) else (),
    )


_Reading = tuple[tuple[SpatialPrompt, ...], ParseStatus, bool]


def repeated_sentences(text: str) -> int:
    """Sentences of ``text``, split at full stops, that are the same as an earlier one."""
    sentences = [sentence for part in text.split(".") if (sentence := part.strip())]
    return len(sentences) - len(set(sentences))


def _read_bare(text: str, prompt: PromptConfig, config: ParsingConfig) -> Answer:
    """An answer that names no place: labels of candidate points, or the letter of an image."""
    labels: tuple[int, ...] = ()
    choice, status, fenced = None, ParseStatus.OK, False
    try:
        body, fenced = _strip_fence(_answer_body(text))
        if prompt.answer == "choice":
            choice = body.strip(" .()\n\t")
            if len(choice) != 1 or not ("A" <= choice <= "Z"):
                raise ReadError(ParseStatus.BAD_SCHEMA)
        else:
            check_caps(body, config)
            labels = _read_labels(decode(body), config)
    except json.JSONDecodeError:
        status = ParseStatus.BAD_JSON
    except ReadError as error:
        status, choice = error.status, None
    form = float(status is ParseStatus.OK)
    return Answer(prompts=(), status=status, fenced=fenced, form=form, point_labels=labels, choice=choice)


def _with_center(item: SpatialPrompt) -> SpatialPrompt:
    """``item`` with its box's centre as a foreground point."""
    if item.box is None:
        return item
    center = ((item.box[0] + item.box[2]) / 2, (item.box[1] + item.box[3]) / 2)
    return replace(item, point_coords=(center,), point_labels=(1,))


def _moved(item: SpatialPrompt, left: int, top: int) -> SpatialPrompt:
    """``item`` of a window of the image, in pixels of the image."""
    box = None if item.box is None else (item.box[0] + left, item.box[1] + top, item.box[2] + left, item.box[3] + top)
    return replace(item, box=box, point_coords=tuple((x + left, y + top) for x, y in item.point_coords))


def _answer_alone(text: str) -> bool:
    """Whether the completion is one answer and white space, without a thought."""
    once = all(text.count(tag) == 1 for tag in (ANSWER_OPEN, ANSWER_CLOSE))
    body = text.strip()
    return once and body.startswith(ANSWER_OPEN) and body.endswith(ANSWER_CLOSE) and THINK_OPEN not in text


def _read_as_released(
    text: str, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig
) -> released.Reading:
    """What the reader of a released system makes of ``text``."""
    try:
        return released.READERS[config.reader](text, prompt, frame, config)
    except ReadError as error:
        return released.Reading(status=error.status)


def _read_strictly(text: str, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig) -> _Reading:
    """The instances, the status, and whether a fence was there."""
    fenced = False
    try:
        body, fenced = _strip_fence(_answer_body(text))
        if prompt.none and body == prompt.none:
            return (), ParseStatus.OK, fenced
        if config.require_fence and not fenced:
            raise ReadError(ParseStatus.BAD_JSON)
        check_caps(body, config)
        value = decode(body)
        return _distinct(_read_instances(value, prompt, frame, config), config.nms_iou), ParseStatus.OK, fenced
    except json.JSONDecodeError:
        return (), ParseStatus.BAD_JSON, fenced
    except ReadError as error:
        return (), error.status, fenced


def _read_leniently(text: str, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig) -> _Reading:
    """The same of what only :mod:`grasp_rl.prompts.lenient` can read."""
    fenced = False
    try:
        items, fenced = lenient.read(text, prompt, config)
        instances = _read_instances(items, replace(prompt, single_object=False), frame, config)
        if prompt.single_object and len(instances) > 1:
            raise ReadError(ParseStatus.BAD_SCHEMA)
        return _distinct(instances, config.nms_iou), ParseStatus.REPAIRED, fenced
    except ReadError as error:
        return (), error.status, fenced


def _read_thinking(text: str) -> tuple[str | None, bool]:
    """The first thought, or None, and whether the completion is one thought, one answer and white space alone."""
    start, end = text.find(THINK_OPEN), text.find(THINK_CLOSE)
    if not 0 <= start < end:
        return None, False
    thinking = text[start + len(THINK_OPEN) : end]
    once = all(text.count(tag) == 1 for tag in (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE))
    rest = text[end + len(THINK_CLOSE) :].strip()
    layout = once and not text[:start].strip() and rest.startswith(ANSWER_OPEN) and rest.endswith(ANSWER_CLOSE)
    return thinking, layout


def _answer_body(text: str) -> str:
    """What stands in the last answer block."""
    end = text.rfind(ANSWER_CLOSE)
    start = text.rfind(ANSWER_OPEN, 0, end) if end >= 0 else -1
    if start < 0:
        raise ReadError(ParseStatus.NO_ANSWER)
    return text[start + len(ANSWER_OPEN) : end].strip()


def _strip_fence(body: str) -> tuple[str, bool]:
    """The JSON text, and whether it stood in a ```json fence that is opened and closed."""
    if body.startswith(FENCE_OPEN) and body.endswith(FENCE_CLOSE) and len(body) >= len(FENCE_OPEN) + len(FENCE_CLOSE):
        return body[len(FENCE_OPEN) : -len(FENCE_CLOSE)].strip(), True
    return body, False


def _read_instances(
    value: object, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig
) -> list[SpatialPrompt]:
    """The instances of decoded JSON, in original-image pixels."""
    if prompt.single_object:
        value = [] if value is None else [value]
    if not isinstance(value, list):
        raise ReadError(ParseStatus.BAD_SCHEMA)
    limit = min(config.max_abs_coordinate, sys.float_info.max)
    if prompt.answer == "boxes":
        boxes = [value] if prompt.flat_single and value and not isinstance(value[0], list) else value
        if len(boxes) > config.max_instances:
            raise ReadError(ParseStatus.TOO_LONG)
        return [SpatialPrompt(box=image_box(_read_numbers(box, 4, limit), frame)) for box in boxes]
    if len(value) > config.max_instances:
        raise ReadError(ParseStatus.TOO_LONG)
    keys = set(prompt.fields)
    instances = []
    for item in value:
        if not isinstance(item, dict) or item.keys() != keys:
            raise ReadError(ParseStatus.BAD_SCHEMA)
        box = image_box(_read_numbers(item[prompt.box_key], 4, limit), frame) if prompt.box else None
        positive = _read_points(item, prompt.positive_fields, prompt.positive_points, prompt.flat_points, limit)
        negative = _read_points(item, prompt.negative_fields, prompt.negative_points, prompt.flat_points, limit)
        clicks = _read_clicks(item[prompt.clicks_key], prompt.clicks, limit) if prompt.clicks else []
        points = tuple(image_point(point[:2], frame) for point in positive + negative + clicks)
        labels = (1,) * len(positive) + (0,) * len(negative) + tuple(int(click[2]) for click in clicks)
        category = _read_category(item[prompt.category_key]) if prompt.category_key else None
        instances.append(SpatialPrompt(box=box, point_coords=points, point_labels=labels, category=category))
    return instances


def _read_category(value: object) -> str:
    if not isinstance(value, str):
        raise ReadError(ParseStatus.BAD_SCHEMA)
    return value.strip()


def _read_labels(value: object, config: ParsingConfig) -> tuple[int, ...]:
    """The labels of a decoded list of zeros and ones."""
    if not isinstance(value, list) or any(isinstance(item, bool) or item not in (0, 1) for item in value):
        raise ReadError(ParseStatus.BAD_SCHEMA)
    if len(value) > config.max_instances:
        raise ReadError(ParseStatus.TOO_LONG)
    return tuple(int(item) for item in value)


def _read_points(item: dict[str, Any], names: list[str], count: int, flat: bool, limit: float) -> list[list[float]]:
    """``count`` points of two numbers each, from one list of them or, ``flat``, from a field each."""
    points = [item[name] for name in names]
    if names and not flat:
        points = points[0]
    if not isinstance(points, list) or len(points) != count:
        raise ReadError(ParseStatus.BAD_SCHEMA)
    return [_read_numbers(point, 2, limit) for point in points]


def _read_clicks(value: object, most: int, limit: float) -> list[list[float]]:
    """One to ``most`` clicks [x, y, label], the first one on the instance."""
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        raise ReadError(ParseStatus.BAD_SCHEMA)
    clicks = [_read_numbers(click, 3, limit) for click in value]
    if any(click[2] not in (0, 1) for click in clicks) or clicks[0][2] != 1:
        raise ReadError(ParseStatus.BAD_SCHEMA)
    return clicks


def _read_numbers(value: object, count: int, limit: float) -> list[float]:
    """``count`` numbers within ``limit``."""
    if not isinstance(value, list) or len(value) != count:
        raise ReadError(ParseStatus.BAD_SCHEMA)
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in value):
        raise ReadError(ParseStatus.BAD_SCHEMA)
    if not all(-limit <= number <= limit for number in value):  # False for NaN, too
        raise ReadError(ParseStatus.BAD_NUMBER)
    return [float(number) for number in value]


def _distinct(instances: list[SpatialPrompt], nms_iou: float) -> tuple[SpatialPrompt, ...]:
    """The instances without repetitions, in their order."""
    if nms_iou >= 1 or len(instances) < 2:
        return tuple(instances)
    boxed = [index for index, item in enumerate(instances) if item.box is not None]
    if boxed:
        boxes = [item.box for item in instances if item.box is not None]
        kept = {boxed[i] for i in nms(boxes, nms_iou)}
        return tuple(item for index, item in enumerate(instances) if item.box is None or index in kept)
    seen: dict[object, SpatialPrompt] = {}
    for item in instances:
        seen.setdefault((frozenset(item.positive_points), frozenset(item.negative_points)), item)
    return tuple(seen.values())
