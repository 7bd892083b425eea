"""Think2Seg-RS (arXiv 2512.19302): geo_reward_func_ultra.py of 1d35fa9.

The text between the first pair of answer tags, or all of it without tags; in it a ```json fence, and there what stands
from the first ``[`` to the last ``]``, mended by json-repair where it is no JSON. Every instance has a box or positive
points; what it has must be of the right length, and a list that the scheme does not ask for, even an empty one, is an
error.
"""

from __future__ import annotations

import json
from typing import Any

from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.prompts.coordinates import image_box, image_point
from grasp_rl.prompts.json_text import MAX_REPAIR_CHARS, ReadError, check_caps, mend
from grasp_rl.prompts.released.reading import Reading, between, fence_of, numbers
from grasp_rl.prompts.render import ANSWER_CLOSE, ANSWER_OPEN
from grasp_rl.types import ParseStatus, SpatialPrompt


def think2seg(text: str, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig) -> Reading:
    """See the module."""
    body = between(text, ANSWER_OPEN, ANSWER_CLOSE)
    fenced = fence_of(text if body is None else body)
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
    instances = tuple(_instance(item, prompt, frame, config) for item in value)
    return Reading(instances=instances, fenced=True, form=1.0)


def _instance(item: Any, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig) -> SpatialPrompt:
    if not isinstance(item, dict) or not (item.keys() & {prompt.box_key, prompt.positive_key}):
        raise ReadError(ParseStatus.BAD_SCHEMA)
    box = image_box(numbers(item[prompt.box_key], 4, config), frame) if prompt.box_key in item else None
    positive = _points(item, prompt.positive_key, prompt.positive_points, config)
    negative = _points(item, prompt.negative_key, prompt.negative_points, config)
    return SpatialPrompt(
        box=box,
        point_coords=tuple(image_point(point, frame) for point in positive + negative),
        point_labels=(1,) * len(positive) + (0,) * len(negative),
    )


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
    return [numbers(point, 2, config) for point in points]
