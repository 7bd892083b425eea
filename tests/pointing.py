"""A policy with a known answer: whatever is bright in the image, each thing in a box of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import geo_scenes
import numpy as np

from grasp_rl.geo.polygons import components
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.prompts.render import format_answer
from grasp_rl.types import Completion, FinishReason, SpatialPrompt

NOTHING = "what is not there"
"""A question whose answer is that nothing fits."""


class PointingPolicy(TinyPolicy):
    """Random weights that are never used for an answer.

    Of several drawn answers every other one sees nothing.
    """

    asked: ClassVar[list[str]] = []
    """The question of each image, in order, since a test cleared it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.answers: dict[int, tuple[str, str]] = {}

    def encode(self, image: Any, query: str, prompt: Any, **more: Any) -> Any:
        encoded = super().encode(image, query, prompt, **more)
        found = []
        for mask in components(geo_scenes.bright(image)) if query != NOTHING else []:
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
            found.append(SpatialPrompt(box=box))
        self.asked.append(query)
        self.answers[id(encoded)] = tuple(
            format_answer(some, f"{len(some)} here", encoded.frame, prompt) for some in (found, [])
        )  # type: ignore[assignment]
        return encoded

    def embed(self, prompts: Sequence[Any]) -> Any:
        return [self.answers.pop(id(prompt)) for prompt in prompts]

    def generate(self, prompts: Any, uniforms: Any, *, group_size: int, **_: Any) -> Any:
        return [[_said(answers[number % 2]) for number in range(group_size)] for answers in prompts]


def _said(text: str) -> Completion:
    return Completion(token_ids=(1,), logprobs=(0.0,), text=text, finish_reason=FinishReason.STOP)
