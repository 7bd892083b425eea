"""SocioReasoner (arXiv 2601.10477): socioseg_rule_reward_worker.py of AMAP-ML/SocioReasoner@588ad34, both turns.

The first pair of answer tags holds a JSON list. The format value of the first turn is the share of objects with
``bbox_2d`` and no other key; that of the second turn is a term of the reward, since it compares with the first.
"""

from __future__ import annotations

from typing import Any

from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.prompts.json_text import ReadError
from grasp_rl.prompts.released.reading import Reading, answer_of, load_list, maybe_numbers, numbers, prompt_as_said
from grasp_rl.types import ParseStatus, SpatialPrompt


def turn1(text: str, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig) -> Reading:
    """Boxes. One object without a box of four numbers makes none of them count, though all were listed."""
    items = load_list(answer_of(text), config)
    well = [isinstance(item, dict) and item.keys() == {"bbox_2d"} and _is_four(item["bbox_2d"]) for item in items]
    form = sum(well) / len(well) if well else 0.0
    boxes = [maybe_numbers(item.get("bbox_2d"), 4, config) if isinstance(item, dict) else None for item in items]
    instances = tuple(prompt_as_said(box, [], frame) for box in boxes if box is not None)
    if len(instances) < len(items):
        return Reading(status=ParseStatus.BAD_SCHEMA, form=form, listed=len(items))
    return Reading(instances=instances, form=form)


def turn2(text: str, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig) -> Reading:
    """Boxes with any number of points each, also none."""
    instances = tuple(_instance(item, frame, config) for item in load_list(answer_of(text), config))
    return Reading(instances=instances, form=float(bool(instances)))


def _instance(item: Any, frame: CoordinateFrame, config: ParsingConfig) -> SpatialPrompt:
    if not isinstance(item, dict) or not isinstance(item.get("points"), list):
        raise ReadError(ParseStatus.BAD_SCHEMA)
    points = [numbers(point, 2, config) for point in item["points"]]
    return prompt_as_said(numbers(item.get("bbox_2d"), 4, config), points, frame)


def _is_four(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4
