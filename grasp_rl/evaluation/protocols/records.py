"""What protocols that count on records have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from grasp_rl.evaluation.metrics import SampleScore, of_answers


class RecordsProtocol(ABC):
    """A protocol with numbers of its own beside those that no protocol decides about."""

    @abstractmethod
    def numbers(
        self, scores: Sequence[SampleScore], *, bootstrap_samples: int = 2000, seed: int = 0
    ) -> dict[str, float]:
        """The protocol's own numbers, by flat name."""

    def summarise(
        self, scores: Sequence[SampleScore], *, bootstrap_samples: int = 2000, seed: int = 0
    ) -> dict[str, float]:
        """:meth:`numbers`, and what no protocol decides about."""
        about: dict[str, float] = {"samples": len(scores), **of_answers(scores)}
        return about | self.numbers(scores, bootstrap_samples=bootstrap_samples, seed=seed)
