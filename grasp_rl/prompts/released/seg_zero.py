"""Seg-Zero (arXiv 2503.06520): seg.py of dvlab-research/Seg-Zero, as ysj9909/StAR@5499659 keeps it.

The first ``{...}`` without a ``}`` inside counts, wherever it stands: also one in the thought. Its format value asks
for a key with "bbox" and two others with "point"; only keys with "points" give points, which are cut to whole numbers.
"""

from __future__ import annotations

import math
from typing import Any

from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.prompts.json_text import ReadError
from grasp_rl.prompts.released.reading import Reading, load, maybe_numbers, prompt_as_said
from grasp_rl.types import ParseStatus


def seg_zero(text: str, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig) -> Reading:
    """See the module."""
    item = load(_first_object(text), config)
    if not isinstance(item, dict):
        raise ReadError(ParseStatus.BAD_SCHEMA)
    box_key = next((key for key in item if "bbox" in key.lower()), None)
    box = None if box_key is None else maybe_numbers(item[box_key], 4, config)
    form = box_key is not None and _has(item[box_key], 4) and _two_points(item, box_key)
    if box is None:
        return Reading(status=ParseStatus.BAD_SCHEMA, form=float(form))
    points = [maybe_numbers(item[key], 2, config) for key in item if "points" in key.lower()][:2]
    whole = [[math.trunc(x) for x in point] for point in points if point is not None]
    return Reading(instances=(prompt_as_said(box, whole if len(whole) == 2 else [], frame),), form=float(form))


def _first_object(text: str) -> str:
    start = text.find("{")
    while start >= 0:
        end = text.find("}", start)
        if end < 0:
            break
        if end > start + 1:
            return text[start : end + 1]
        start = text.find("{", end)
    raise ReadError(ParseStatus.NO_ANSWER)


def _two_points(item: dict[str, Any], box_key: str) -> bool:
    """Whether the first two keys with "point", beside the box's, hold two of something each."""
    keys = [key for key in item if "point" in key.lower() and key != box_key][:2]
    return len(keys) == 2 and all(_has(item[key], 2) for key in keys)


def _has(value: Any, count: int) -> bool:
    """Whether ``value`` is ``count`` long; nobody asks what it is."""
    return isinstance(value, list | str | dict) and len(value) == count
