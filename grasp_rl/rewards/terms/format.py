"""Format terms: whether the completion keeps the layout that the prompt asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from grasp_rl.interfaces import Labels, WeakLabels
from grasp_rl.rewards.terms.base import AnswerTerm
from grasp_rl.types import Answer, MaskPrediction, ParseStatus


@dataclass(frozen=True, kw_only=True)
class ThinkFormat(AnswerTerm):
    """1 iff the completion is one thought, then one answer, and nothing else."""

    accuracy: ClassVar[bool] = False

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        return float(answer.think_layout)


@dataclass(frozen=True, kw_only=True)
class AnswerFormat(AnswerTerm):
    """1 iff the answer was read without repair, in a ```json fence where ``require_fence`` asks for one."""

    require_fence: bool = False
    share: bool = False
    """Pay the share of the fields that were well-formed instead of all or nothing (VisionReasoner)."""
    accuracy: ClassVar[bool] = False

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        if answer.status is not ParseStatus.OK or (self.require_fence and not answer.fenced):
            return 0.0
        return answer.form if self.share else 1.0


@dataclass(frozen=True, kw_only=True)
class NoRepetition(AnswerTerm):
    """0 where ``most`` or more sentences of the completion repeat an earlier one, else 1 (VisionReasoner: 2)."""

    most: int = 2
    accuracy: ClassVar[bool] = False
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"most": (1, 1000)}

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        return float(answer.repeated_sentences < self.most)
