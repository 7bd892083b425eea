"""Several protocols over the same answers: one leads, the others' numbers stand beside it under their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grasp_rl.config.errors import require
from grasp_rl.evaluation.metrics import SampleScore
from grasp_rl.interfaces import EvaluationProtocol


class SeveralProtocols:
    """The protocol ``leader`` for all that needs one, and ``NAME/METRIC`` for each of the others.

    Args:
        protocols: by name.
        leader: the name of the one whose numbers stand without a name before them.

    Raises:
        ConfigError: there is no protocol of the leader's name.
    """

    def __init__(self, protocols: Mapping[str, EvaluationProtocol], leader: str = "ours") -> None:
        require(leader in protocols, "evaluation.protocol.leader", leader, f"one of {', '.join(protocols)}")
        self.leader = protocols[leader]
        self.others = {name: protocol for name, protocol in protocols.items() if name != leader}

    @property
    def name(self) -> str:
        """The leader's."""
        return self.leader.name

    @property
    def headline(self) -> str:
        """The leader's."""
        return self.leader.headline

    def iou(self, score: SampleScore) -> float | None:
        """By the leader's rules."""
        return self.leader.iou(score)

    def summarise(
        self, scores: Sequence[SampleScore], *, bootstrap_samples: int = 2000, seed: int = 0
    ) -> dict[str, float]:
        """The leader's numbers, and the others' as ``NAME/METRIC``."""
        result = self.leader.summarise(scores, bootstrap_samples=bootstrap_samples, seed=seed)
        for name, protocol in self.others.items():
            numbers = getattr(protocol, "numbers", protocol.summarise)
            summary = numbers(scores, bootstrap_samples=bootstrap_samples, seed=seed)
            result |= {f"{name}/{metric}": value for metric, value in summary.items()}
        return result
