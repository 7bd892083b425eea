"""RS-EoT (arXiv 2511.22396): oursIOU_k0.py of xyfan1112/Asking_like_Socrates-main@13c31a2.

After the first ``</think>``, and after "Answer:" where that follows, the first ``bbox: [...]``, the key quoted or not,
gives its first four numbers, each within the frame; else the first bracket that begins with four such numbers does.
Corners are put in order. The format value is the mean of two: there is a ``</think>``, and a bbox behind it; half of
that where a bbox stands before it alone, and half again where it was the bracket that was read.
"""

from __future__ import annotations

import re

from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.prompts.json_text import ReadError
from grasp_rl.prompts.released.reading import Reading, prompt_as_said
from grasp_rl.prompts.render import THINK_CLOSE
from grasp_rl.types import ParseStatus

_AROUND = re.compile(r"(?:(?<!\s)\s+)?([<>/])\s*")  # a run of white space is looked at once
_BBOX = re.compile(r"""["']?bbox["']?\s*:\s*\[([^\[\]]*)\]""")
_PLAIN_BBOX = re.compile(r"bbox\s*:\s*\[")
_BRACKET = re.compile(r"\[([^\[\]]*)\]")
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")


def rs_eot(text: str, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig) -> Reading:
    """See the module."""
    thought, closed, tail = _AROUND.sub(r"\1", text).partition(THINK_CLOSE)
    if not closed:
        raise ReadError(ParseStatus.NO_ANSWER)
    _, _, answer = tail.partition("Answer:")
    body = answer or tail
    said = _BBOX.search(body)
    box = None if said is None else _box(said[1], frame)
    form = (1.0 + (box is not None)) / 2
    if box is None:
        if _PLAIN_BBOX.search(thought):
            form /= 2
        box = next((candidate for match in _BRACKET.finditer(body) if (candidate := _box(match[1], frame))), None)
        if box is None:
            return Reading(status=ParseStatus.BAD_SCHEMA, form=form)
        form /= 2
    ordered = [*sorted(box[::2]), *sorted(box[1::2])]
    return Reading(instances=(prompt_as_said([ordered[i] for i in (0, 2, 1, 3)], [], frame),), form=form)


def _box(text: str, frame: CoordinateFrame) -> list[float] | None:
    """The first four numbers of ``text``, None where there are fewer or one is beyond the frame."""
    numbers = []
    for match in _NUMBER.finditer(text):
        numbers.append(float(match[0]))
        if len(numbers) == 4:
            inside = all(0 <= x <= side for x, side in zip(numbers, (frame.width, frame.height) * 2, strict=True))
            return numbers if inside else None
    return None
