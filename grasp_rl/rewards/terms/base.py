"""What all reward terms share: a weight and its schedule, what they need, and the checks of their arguments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from grasp_rl.config.errors import ConfigError
from grasp_rl.geometry import FloatArray
from grasp_rl.interfaces import Labels, WeakLabels
from grasp_rl.types import Answer, MaskPrediction, SpatialPrompt

MODES = ("soft", "threshold")


@dataclass(frozen=True, kw_only=True)
class Term:
    """A weighted part of a reward: an :class:`AnswerTerm`, an :class:`InstanceTerm` or a :class:`GroupTerm`."""

    weight: float = 1.0
    """Factor in the reward."""
    audit: bool = True
    """Report the term even where its weight is 0; without, such a term is never computed."""
    start_weight: float | None = None
    """Weight before the first optimizer step, from which it goes to ``weight`` in a straight line; null for a constant
    weight."""
    ramp_steps: int = 0
    """Optimizer steps from ``start_weight`` to ``weight``."""
    gate: dict[str, float] = field(default_factory=dict)
    """Pay the term only where each of these terms, by name, has at least this raw value."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """What of the labels it compares with: of boxes, points, mask, image."""
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """Bounds of numeric arguments by name, both included."""
    choices: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Valid values of textual arguments by name."""

    def check(self, key: str) -> None:
        """Demand that every argument is in range.

        Args:
            key: config key of this term, for the message.

        Raises:
            ConfigError: naming ``<key>.<argument>``, what was found and what is valid.
        """
        shared = {"weight": (0.0, math.inf), "ramp_steps": (0.0, math.inf)}
        shared |= {} if self.start_weight is None else {"start_weight": (0.0, math.inf)}
        for name, (low, high) in (shared | dict(self.ranges)).items():
            value = getattr(self, name)
            number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
            if not (math.isfinite(number) and low <= number <= high):
                penalty = name in ("weight", "start_weight") and number < 0
                more = "; a penalty is a term that pays what is left of it, 1 - penalty" if penalty else ""
                raise ConfigError(f"{key}.{name}={value!r}: must be a finite number in [{low:g}, {high:g}]{more}")
        for name, valid in self.choices.items():
            if getattr(self, name) not in valid:
                raise ConfigError(f"{key}.{name}={getattr(self, name)!r}: must be one of {', '.join(valid)}")
        if (self.start_weight is None) != (self.ramp_steps == 0):
            raise ConfigError(
                f"{key}.start_weight={self.start_weight!r}: goes with {key}.ramp_steps > 0, and not without"
            )

    @property
    def used(self) -> bool:
        """Whether the term is ever paid or reported."""
        return self.audit or self.weight > 0 or bool(self.start_weight)

    def weight_at(self, step: int | None) -> float:
        """The weight in optimizer step ``step``, from 0; None for the last one."""
        if step is None or self.start_weight is None:
            return self.weight
        return self.start_weight + (self.weight - self.start_weight) * min(1.0, step / self.ramp_steps)


@dataclass(frozen=True, kw_only=True)
class AnswerTerm(Term):
    """A term about the answer as a whole."""

    accuracy: ClassVar[bool] = True
    """Whether the rubric's rule for questions without a target and for empty answers replaces its value."""

    @property
    def by_rule(self) -> bool:
        """:attr:`accuracy`, where no argument of the term says otherwise."""
        return self.accuracy

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        """The raw value in [0, 1]; an accuracy term is asked only where there are a target and an answer."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class InstanceTerm(Term):
    """A term about pairs of predicted and reference instances, summed by the rubric over the matched pairs."""

    def table(
        self, predicted: Sequence[SpatialPrompt], reference: Sequence[SpatialPrompt], size: tuple[int, int]
    ) -> FloatArray:
        """[M, N] raw values in [0, 1] of every pair; a pair that lacks what the term compares scores 0.

        Args:
            predicted: M instances of the answer.
            reference: N instances of the labels.
            size: (height, width) of the image in pixels.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class PairsTerm(Term):
    """A term about the matched pairs together."""

    def value(self, answer: Answer, labels: WeakLabels | Labels, pairs: Sequence[tuple[int, int]]) -> float:
        """The raw value in [0, 1] for the matched ``pairs`` (predicted, reference) of instances."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class GroupTerm(Term):
    """A term that compares completions with one another."""

    scope: str = "group"
    """Among which completions: those of one question (group), or of all questions of the optimizer step (batch)."""
    choices: ClassVar[Mapping[str, Sequence[str]]] = {"scope": ("group", "batch")}

    def values(self, answers: Sequence[Answer], valid: Sequence[bool]) -> list[float]:
        """The raw value in [0, 1] of each answer; 0 where it is not ``valid`` (see ``gate``)."""
        raise NotImplementedError


def boxes_of(instances: Sequence[SpatialPrompt]) -> FloatArray:
    """[M, 4] boxes, NaN where an instance has none."""
    return np.array([item.box or (math.nan,) * 4 for item in instances], float).reshape(len(instances), 4)


def stretch(size: tuple[int, int], squash: bool) -> FloatArray:
    """[2] what an image of ``size`` (height, width) is stretched by in x and y: to a square of its longer side, or not.

    Args:
        size: in pixels.
        squash: whether it is stretched at all.
    """
    return max(size) / np.array([size[1], size[0]], float) if squash else np.ones(2)


def plain_name(category: str | None) -> str:
    """A class's name without capitals, commas and runs of spaces; "" for none."""
    return " ".join((category or "").lower().replace(",", " ").split())


def closeness(distance: float, mode: str, fraction: float) -> float:
    """1 for no distance, by ``mode``: exp(-distance / fraction) or distance < fraction; 0 if it is not finite."""
    if not math.isfinite(distance):
        return 0.0
    return math.exp(-distance / fraction) if mode == "soft" else float(distance < fraction)
