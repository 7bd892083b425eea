"""What all reward terms share: a weight, what they need, and the checks of their arguments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from grasp_rl.config.errors import ConfigError
from grasp_rl.geometry import FloatArray
from grasp_rl.interfaces import Labels, WeakLabels
from grasp_rl.types import Answer, MaskPrediction, SpatialPrompt

MODES = ("soft", "threshold")


@dataclass(frozen=True, kw_only=True)
class Term:
    """A weighted part of a reward; subclasses are an :class:`AnswerTerm` or an :class:`InstanceTerm`."""

    weight: float = 1.0
    """Factor in the reward; a term of weight 0 is reported all the same."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """What of the labels it compares with: of boxes, points, mask."""
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
        for name, (low, high) in ({"weight": (0.0, math.inf)} | dict(self.ranges)).items():
            value = getattr(self, name)
            number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
            if not (math.isfinite(number) and low <= number <= high):
                raise ConfigError(f"{key}.{name}={value!r}: must be a finite number in [{low:g}, {high:g}]")
        for name, valid in self.choices.items():
            if getattr(self, name) not in valid:
                raise ConfigError(f"{key}.{name}={getattr(self, name)!r}: must be one of {', '.join(valid)}")


@dataclass(frozen=True, kw_only=True)
class AnswerTerm(Term):
    """A term about the answer as a whole."""

    accuracy: ClassVar[bool] = True
    """Whether the rubric's rule for questions without a target and for empty answers replaces its value."""

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        """The raw value in [0, 1]; an accuracy term is asked only where there are a target and an answer."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class InstanceTerm(Term):
    """A term about pairs of predicted and reference instances, summed by the rubric over the matched pairs."""

    def table(self, predicted: Sequence[SpatialPrompt], reference: Sequence[SpatialPrompt], side: float) -> FloatArray:
        """[M, N] raw values in [0, 1] of every pair; a pair that lacks what the term compares scores 0.

        Args:
            predicted: M instances of the answer.
            reference: N instances of the labels.
            side: the image's longer side in pixels.
        """
        raise NotImplementedError


def closeness(distance: float, mode: str, fraction: float) -> float:
    """1 for no distance, by ``mode``: exp(-distance / fraction) or distance < fraction; 0 if it is not finite."""
    if not math.isfinite(distance):
        return 0.0
    return math.exp(-distance / fraction) if mode == "soft" else float(distance < fraction)
