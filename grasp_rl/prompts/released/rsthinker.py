"""RSThinker: RS_Tester of minglangL/RSThinker@7c5c00c, visual grounding.

The first answer, or all of the text where an answer or a thought is missing; its numbers, four at a time, are boxes.
"""

from __future__ import annotations

import re

from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.prompts.json_text import ReadError
from grasp_rl.prompts.released.reading import Reading, between, numbers, prompt_as_said
from grasp_rl.prompts.render import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN
from grasp_rl.types import ParseStatus

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def rsthinker(text: str, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig) -> Reading:
    """See the module."""
    answer = between(text, ANSWER_OPEN, ANSWER_CLOSE)
    body = text if answer is None or between(text, THINK_OPEN, THINK_CLOSE) is None else answer
    said = [float(match[0]) for match in _NUMBER.finditer(body)]
    if len(said) % 4:
        raise ReadError(ParseStatus.BAD_SCHEMA)
    if len(said) > 4 * config.max_instances:
        raise ReadError(ParseStatus.TOO_LONG)
    if not said and "[]" not in body:
        raise ReadError(ParseStatus.NO_ANSWER)
    boxes = [numbers(said[place : place + 4], 4, config) for place in range(0, len(said), 4)]
    return Reading(instances=tuple(prompt_as_said(box, [], frame) for box in boxes), form=1.0)
