"""Geo-R1 (arXiv 2509.21976), segmentation: test_gres_eval.py of Geo-R1/geo-r1@2301bbf.

The first ```json fence anywhere, also in the thought; without one the first answer from its first bracket to its last.
An object needs ``bbox_2d``, ``keypoint1`` and ``keypoint2``, others are left out; None says that there is nothing.
"""

from __future__ import annotations

from typing import Any

from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.prompts.json_text import ReadError
from grasp_rl.prompts.released.reading import Reading, answer_of, fence_of, load_list, maybe_numbers, prompt_as_said
from grasp_rl.types import ParseStatus, SpatialPrompt

_POINTS = ("keypoint1", "keypoint2")


def gres(text: str, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig) -> Reading:
    """See the module."""
    body = fence_of(text)
    fenced = body is not None
    if body is None:
        answer = answer_of(text)
        if answer.strip(" .").lower() == "none":
            return Reading(form=1.0)
        body = answer[answer.find("[") : answer.rfind("]") + 1] if "[" in answer else ""
    items = load_list(body, config)
    if not all(isinstance(item, dict) for item in items):
        raise ReadError(ParseStatus.BAD_SCHEMA)
    read = [_instance(item, frame, config) for item in items]
    instances = tuple(item for item in read if item is not None)
    if items and not instances:
        raise ReadError(ParseStatus.BAD_SCHEMA)
    return Reading(instances=instances, fenced=fenced, form=1.0, listed=len(items))


def _instance(item: dict[str, Any], frame: CoordinateFrame, config: ParsingConfig) -> SpatialPrompt | None:
    box = maybe_numbers(item.get("bbox_2d"), 4, config)
    points = [point for key in _POINTS if (point := maybe_numbers(item.get(key), 2, config)) is not None]
    if box is None or len(points) < len(_POINTS):
        return None
    return prompt_as_said(box, points, frame)
