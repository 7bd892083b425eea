"""Text out: the question as chat messages, and instances as the canonical completion that answers it.

The instruction, its worked example and the parser all read their field names and counts from one
:class:`~grasp_rl.config.schema.PromptConfig`, so that what is asked for is what is accepted.

A template is a Jinja file. Its block ``system``, if any, is the system turn and its block ``user`` the text of the user
turn; a file without blocks is the text of the user turn. Variables: ``query``, ``width`` and ``height`` (of the
policy's frame), ``box``, ``positive_points``, ``negative_points``, ``box_key``, ``positive_key``, ``negative_key``,
``positive_fields``, ``negative_fields`` (the fields' names), ``clicks``, ``clicks_key``, ``flat_points``,
``single_object``, ``category_key``, ``answer``, ``flat_single``, ``nothing_word``, ``fence``, ``thinking``, ``images``
(how many are shown), ``letters`` (A for the second image, B for the third, ...), ``feedback`` (in a later turn what the
image shows: overlay, crop or zoom; else empty), ``candidates`` (points that the question lists, as JSON) and
``example`` (a worked completion with two instances, or with one where the scheme says one).
"""

from __future__ import annotations

import json
import math
import string
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Template

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import PromptConfig
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.prompts.sandbox import Sandbox, compiled, rendered
from grasp_rl.types import Box, Point, SpatialPrompt
from grasp_rl.utils.files import MOST_TEMPLATE, read_text

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
FENCE_OPEN, FENCE_CLOSE = "```json", "```"

_PACKAGED = Path(__file__).parent / "templates"
_OWN = Path(__file__).resolve().parents[1]
"""This package, which has templates elsewhere, too."""
_EXAMPLE_THOUGHT = "Two places in the image fit the question: one on the upper left, one on the lower right."
_EXAMPLE_LABELS = "The first and the last two points lie on what was asked for, the second beside it."
_EXAMPLE_CHOICE = "The streets and the roof of image B are those of the first image."
_EXAMPLE_SINGLE = "One place in the image fits the question, on the upper left."
_EXAMPLE_CATEGORY = "vehicle"
_EXAMPLE_BOXES: tuple[Box, ...] = ((0.1, 0.15, 0.35, 0.4), (0.55, 0.6, 0.85, 0.9))


def build_messages(
    query: str,
    frame: CoordinateFrame,
    prompt: PromptConfig,
    images: int = 1,
    feedback: str = "",
    candidates: Sequence[Point] = (),
) -> list[dict[str, Any]]:
    """Chat messages that ask ``query`` about one image, for a processor's chat template.

    Args:
        query: The question in plain words; quoted as it stands, never read as a template.
        frame: The frame that the policy speaks for this image.
        prompt: The scheme; ``prompt.template`` is a packaged template's name or the path to a file.
        images: How many images the question shows.
        feedback: In a later turn what the image is; see grasp_rl.rollouts.turns.
        candidates: Points in original-image pixels that the question lists, for ``prompt.answer`` = labels.

    Returns:
        A system turn where the template has one, then a user turn whose content is the images' places and the text.

    Raises:
        ConfigError: ``prompt.template`` cannot be found, read or rendered.
    """
    variables = {
        "query": query,
        "width": f"{frame.width:g}",
        "height": f"{frame.height:g}",
        "box": prompt.box,
        "positive_points": prompt.positive_points,
        "negative_points": prompt.negative_points,
        "box_key": prompt.box_key,
        "positive_key": prompt.positive_key,
        "negative_key": prompt.negative_key,
        "positive_fields": prompt.positive_fields,
        "negative_fields": prompt.negative_fields,
        "clicks": prompt.clicks,
        "clicks_key": prompt.clicks_key,
        "flat_points": prompt.flat_points,
        "single_object": prompt.single_object,
        "category_key": prompt.category_key,
        "answer": prompt.answer,
        "flat_single": prompt.flat_single,
        "nothing_word": prompt.none,
        "fence": prompt.fence,
        "thinking": prompt.thinking,
        "images": images,
        "feedback": feedback,
        "candidates": json.dumps([_spoken_point(point, frame) for point in candidates], separators=(",", ":")),
        "letters": string.ascii_uppercase[: max(0, images - 1)],
        "example": worked_example(frame, prompt),
    }
    template = _load_template(prompt.template)
    messages: list[dict[str, Any]] = []
    if "system" in template.blocks:
        system = {"type": "text", "text": _render(template, "system", variables)}
        messages.append({"role": "system", "content": [system]})
    user = {"type": "text", "text": _render(template, "user", variables)}
    messages.append({"role": "user", "content": [*({"type": "image"} for _ in range(images)), user]})
    return messages


def format_answer(prompts: Sequence[SpatialPrompt], thinking: str, frame: CoordinateFrame, prompt: PromptConfig) -> str:
    """The canonical completion that says ``prompts``; :func:`grasp_rl.prompts.parse.parse` reads it back.

    Numbers are integers of the policy's frame, clipped to it: a box edge is rounded to the nearest one and a box keeps
    at least one unit in each direction; a point names the unit cell that it lies in, and stands for that cell's centre.
    So reading the text back moves an edge or point by at most half a unit of the policy's frame (half-unit boxes and
    anything outside the image apart).

    Args:
        prompts: Instances in original-image pixels; the first points of each label are used, as many as the scheme has;
            as clicks, the first points in their order.
        thinking: The thought, without any of the four tags.
        frame: The policy's frame for this image.
        prompt: The scheme; decides the fields of each instance.

    Raises:
        ValueError: an instance lacks a box or points that the scheme asks for, or ``thinking`` contains a tag.
    """
    if any(tag in thinking for tag in (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)):
        raise ValueError("format_answer: the thought contains a think or answer tag")
    return wrapped(_said(prompts, frame, prompt), thinking, prompt)


def wrapped(said: Any, thinking: str, prompt: PromptConfig) -> str:
    """The completion that says ``said`` (JSON, or a word as it stands) after a thought, as the scheme wants it."""
    body = said if isinstance(said, str) else json.dumps(said, separators=(",", ":"))
    if prompt.fence and not isinstance(said, str):
        body = f"{FENCE_OPEN}\n{body}\n{FENCE_CLOSE}"
    answer = f"{ANSWER_OPEN}{body}{ANSWER_CLOSE}"
    return f"{THINK_OPEN}{thinking}{THINK_CLOSE}\n{answer}" if prompt.thinking else answer


def _said(prompts: Sequence[SpatialPrompt], frame: CoordinateFrame, prompt: PromptConfig) -> Any:
    """What the answer block holds for these instances: JSON values, or the scheme's word for nothing."""
    if prompt.answer not in ("instances", "boxes"):
        raise ValueError(f"format_answer: the scheme {prompt.scheme!r} answers with {prompt.answer}, not instances")
    if not prompts and prompt.none:
        return prompt.none
    said: list[Any] = [_instance(p, frame, prompt) for p in prompts]
    if prompt.answer == "boxes":
        boxes = [fields[prompt.box_key] for fields in said]
        return boxes[0] if prompt.flat_single and len(boxes) == 1 else boxes
    if not prompt.single_object:
        return said
    if len(said) > 1:
        raise ValueError(f"format_answer: the scheme {prompt.scheme!r} says one instance, found {len(said)}")
    return said[0] if said else None


def _instance(item: SpatialPrompt, frame: CoordinateFrame, prompt: PromptConfig) -> dict[str, Any]:
    """One instance as the JSON object of the scheme."""
    fields: dict[str, Any] = {}
    if prompt.box:
        if item.box is None:
            raise ValueError(f"format_answer: the scheme {prompt.scheme!r} needs a box")
        fields[prompt.box_key] = _spoken_box(item.box, frame)
    for key, names, points, count in (
        (prompt.positive_key, prompt.positive_fields, item.positive_points, prompt.positive_points),
        (prompt.negative_key, prompt.negative_fields, item.negative_points, prompt.negative_points),
    ):
        if len(points) < count:
            raise ValueError(f"format_answer: the scheme {prompt.scheme!r} needs {count} {key}, found {len(points)}")
        spoken = [_spoken_point(p, frame) for p in points[:count]]
        fields |= dict(zip(names, spoken if prompt.flat_points else [spoken], strict=False))
    if prompt.clicks:
        if item.point_labels[:1] != (1,):
            raise ValueError(f"format_answer: the scheme {prompt.scheme!r} needs a foreground point first")
        made = list(zip(item.point_coords, item.point_labels, strict=True))[: prompt.clicks]
        fields[prompt.clicks_key] = [[*_spoken_point(point, frame), label] for point, label in made]
    if prompt.category_key:
        if item.category is None:
            raise ValueError(f"format_answer: the scheme {prompt.scheme!r} needs a category")
        fields[prompt.category_key] = item.category
    return fields


def _spoken_box(box: Box, frame: CoordinateFrame) -> list[int]:
    """A box in integer edges of the policy's frame."""
    scale_x, scale_y = frame.scale
    x0, x1 = _spoken_edges(box[0] / scale_x, box[2] / scale_x, int(frame.width))
    y0, y1 = _spoken_edges(box[1] / scale_y, box[3] / scale_y, int(frame.height))
    return [x0, y0, x1, y1]


def _spoken_edges(low: float, high: float, limit: int) -> tuple[int, int]:
    """Two edges rounded to integers in 0..limit, at least one apart."""
    first, last = (min(max(math.floor(edge + 0.5), 0), limit) for edge in (low, high))
    if last > first:
        return first, last
    first = min(max(math.floor((low + high) / 2), 0), limit - 1)
    return first, first + 1


def _spoken_point(point: Point, frame: CoordinateFrame) -> list[int]:
    """The integer cell of the policy's frame that a point lies in."""
    scale_x, scale_y = frame.scale
    return [
        min(max(math.floor(point[0] / scale_x), 0), int(frame.width) - 1),
        min(max(math.floor(point[1] / scale_y), 0), int(frame.height) - 1),
    ]


def worked_example(frame: CoordinateFrame, prompt: PromptConfig) -> str:
    """The worked completion that questions show, with two instances, or one where the scheme says one."""
    if prompt.answer == "labels":
        return wrapped([1, 0, 1, 1], _EXAMPLE_LABELS, prompt)
    if prompt.answer == "choice":
        return wrapped("B", _EXAMPLE_CHOICE, prompt)
    made = _example_prompts(frame, prompt)
    if prompt.single_object:
        return format_answer(made[:1], _EXAMPLE_SINGLE, frame, prompt)
    return format_answer(made, _EXAMPLE_THOUGHT, frame, prompt)


def _example_prompts(frame: CoordinateFrame, prompt: PromptConfig) -> list[SpatialPrompt]:
    """Two made-up instances: positive points down the box's diagonal, negative ones just right of the box.

    As clicks two positive ones and a negative one, as far as so many are allowed.
    """
    width, height = frame.image_width, frame.image_height
    examples = []
    positive = min(prompt.clicks, 2) or prompt.positive_points
    negative = int(prompt.clicks > 2) or prompt.negative_points
    for left, top, right, bottom in _EXAMPLE_BOXES:
        steps = [(i + 1) / (positive + 1) for i in range(positive)]
        points = [((left + t * (right - left)) * width, (top + t * (bottom - top)) * height) for t in steps]
        steps = [(i + 1) / (negative + 1) for i in range(negative)]
        points += [((right + 0.05) * width, (top + t * (bottom - top)) * height) for t in steps]
        examples.append(
            SpatialPrompt(
                box=(left * width, top * height, right * width, bottom * height),
                point_coords=tuple(points),
                point_labels=(1,) * positive + (0,) * negative,
                category=_EXAMPLE_CATEGORY if prompt.category_key else None,
            )
        )
    return examples


@lru_cache(maxsize=32)
def _load_template(name: str) -> _Packaged | Sandbox:
    """The template called ``name``; read once per process. One that is a file is rendered by a process of its own."""
    packaged = sorted(path.stem for path in _PACKAGED.glob("*.jinja") if "." not in path.stem)
    if name in packaged:
        return _Packaged(compiled((_PACKAGED / f"{name}.jinja").read_text(encoding="utf-8")))
    valid = f"must be one of {', '.join(packaged)} or the path to a readable template file"
    try:
        source = read_text(Path(name), MOST_TEMPLATE)
    except (OSError, ValueError) as error:
        raise ConfigError(f"prompt.template={name!r}: {valid} ({error})") from error
    if Path(name).resolve().is_relative_to(_OWN):
        return _Packaged(compiled(source))
    template = Sandbox(name, source)
    if template.blocks and "user" not in template.blocks:
        raise ConfigError(f"prompt.template={name!r}: has the blocks {template.blocks}, must have `user`")
    return template


class _Packaged:
    """A template that came with this package, rendered here."""

    def __init__(self, template: Template) -> None:
        self.template, self.blocks = template, sorted(template.blocks)

    def render(self, block: str | None, variables: dict[str, Any]) -> str:
        return rendered(self.template, block, variables)


def _render(template: _Packaged | Sandbox, block: str, variables: dict[str, Any]) -> str:
    """The text of one block, or of the whole file where it has none."""
    return template.render(block if block in template.blocks else None, variables)
