"""Format terms: whether the completion keeps the layout that the prompt asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from grasp_rl.interfaces import Labels, WeakLabels
from grasp_rl.rewards.terms.base import AnswerTerm
from grasp_rl.types import Answer, MaskPrediction, ParseStatus

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@dataclass(frozen=True, kw_only=True)
class ThinkFormat(AnswerTerm):
    """1 iff the completion is a thought, then an answer.

    ``layout``: one thought, then one answer, and nothing else. ``tags_once``: each of the four tags once, in order,
    whatever stands around them.
    """

    mode: str = "layout"
    accuracy: ClassVar[bool] = False
    choices: ClassVar[Mapping[str, Sequence[str]]] = {"mode": ("layout", "tags_once")}

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        if self.mode == "layout":
            return float(answer.think_layout)
        places = [answer.text.find(tag) for tag in TAGS]
        once = all(answer.text.count(tag) == 1 for tag in TAGS)
        return float(once and places == sorted(places))


@dataclass(frozen=True, kw_only=True)
class AnswerFormat(AnswerTerm):
    """1 iff the answer was read without repair, in a ```json fence where ``require_fence`` asks for one."""

    require_fence: bool = False
    share: bool = False
    """Pay the reader's own format value instead of all or nothing, also where no instance was read: the share of the
    fields that were well-formed (VisionReasoner), or what else a released system pays."""
    accuracy: ClassVar[bool] = False

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        if self.require_fence and not answer.fenced:
            return 0.0
        return answer.form if self.share else float(answer.status is ParseStatus.OK)


@dataclass(frozen=True, kw_only=True)
class NoRepetition(AnswerTerm):
    """0 where ``most`` or more sentences of the completion repeat an earlier one, else 1 (VisionReasoner: 2)."""

    most: int = 2
    accuracy: ClassVar[bool] = False
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"most": (1, 1000)}

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        return float(answer.repeated_sentences < self.most)


@dataclass(frozen=True, kw_only=True)
class KeptBoxes(AnswerTerm):
    """Mean over instances of: the box is that of the turn before, and all positive points lie strictly inside it.

    0 where the number of instances differs from the turn before's (SocioReasoner's second turn).
    """

    accuracy: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"turn"})

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        before = answer.previous
        if before is None or not answer.prompts or len(before.prompts) != len(answer.prompts):
            return 0.0
        kept = [
            item.box is not None
            and item.box == old.box
            and all(item.box[0] < x < item.box[2] and item.box[1] < y < item.box[3] for x, y in item.positive_points)
            for item, old in zip(answer.prompts, before.prompts, strict=True)
        ]
        return sum(kept) / len(kept)
