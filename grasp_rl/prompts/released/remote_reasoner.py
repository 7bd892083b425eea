"""RemoteReasoner: infer.py of 1e12Leon/RemoteReasoner@cdd1bd5.

A completion that begins with a thought and an answer, the closing tag at the end of a line, is read by its answer; any
other one as a whole. It is one box, or a list of boxes of which those of four numbers count.
"""

from __future__ import annotations

from typing import Any

from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.prompts.released.reading import Reading, after_thought, load_literal, maybe_numbers, prompt_as_said
from grasp_rl.prompts.render import ANSWER_CLOSE, THINK_OPEN


def remote_reasoner(text: str, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig) -> Reading:
    """See the module."""
    answer = _answer(text)
    value: list[Any] = load_literal((text if answer is None else answer).strip(), config)
    listed = value if value and isinstance(value[0], list) else [value] if value else []
    boxes = [box for item in listed if (box := maybe_numbers(item, 4, config)) is not None]
    instances = tuple(prompt_as_said(box, [], frame) for box in boxes)
    return Reading(instances=instances, form=float(answer is not None))


def _answer(text: str) -> str | None:
    """The answer of a completion of the layout asked for; text behind the line that ends it is allowed."""
    start = after_thought(text, len(THINK_OPEN)) if text.startswith(THINK_OPEN) else None
    end = -1 if start is None else text.find(ANSWER_CLOSE, start)
    while end >= 0:
        if text[end + len(ANSWER_CLOSE) : end + len(ANSWER_CLOSE) + 1] in ("", "\n"):
            return text[start:end]
        end = text.find(ANSWER_CLOSE, end + 1)
    return None
