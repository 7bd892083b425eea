"""VisionReasoner (arXiv 2505.12081): vision_reasoner.py of dvlab-research/Seg-Zero.

The first pair of answer tags holds a JSON list; each field of each object counts by itself for the format value. One
malformed field voids the boxes and points of all objects.
"""

from __future__ import annotations

from typing import Any

from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.prompts.coordinates import scaled
from grasp_rl.prompts.json_text import ReadError
from grasp_rl.prompts.released.reading import Reading, answer_of, box_as_said, load, maybe_numbers
from grasp_rl.types import ParseStatus, SpatialPrompt


def visionreasoner(text: str, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig) -> Reading:
    """See the module."""
    value = load(answer_of(text), config, instances=False)
    if not isinstance(value, list):
        raise ReadError(ParseStatus.BAD_SCHEMA)
    read = [_fields(item, prompt, config) for item in value[: config.max_instances]]
    total = len(read) * len(prompt.fields)
    well = sum(value is not None for fields in read for value in fields.values())
    if well < total:
        return Reading(status=ParseStatus.BAD_SCHEMA, form=well / total)
    return Reading(instances=tuple(_instance(fields, prompt, frame) for fields in read), form=float(bool(read)))


def _instance(fields: dict[str, list[float] | None], prompt: PromptConfig, frame: CoordinateFrame) -> SpatialPrompt:
    box = fields.get(prompt.box_key)
    points = {name: point for name, point in fields.items() if name != prompt.box_key and point is not None}
    return SpatialPrompt(
        box=None if box is None else box_as_said(box, frame),
        point_coords=tuple((x, y) for x, y in (scaled(point, frame) for point in points.values())),
        point_labels=tuple(int(name not in prompt.negative_fields) for name in points),
    )


def _fields(item: Any, prompt: PromptConfig, config: ParsingConfig) -> dict[str, list[float] | None]:
    """The scheme's fields of one object, None where one is malformed."""
    entry = item if isinstance(item, dict) else {}
    return {name: maybe_numbers(entry.get(name), 4 if name == prompt.box_key else 2, config) for name in prompt.fields}
