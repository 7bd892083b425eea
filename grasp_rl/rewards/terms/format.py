"""Format terms: whether the completion keeps the layout that the prompt asks for."""

from __future__ import annotations

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
    accuracy: ClassVar[bool] = False

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        return float(answer.status is ParseStatus.OK and (answer.fenced or not self.require_fence))
