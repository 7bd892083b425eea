"""What chance earns: the expected accuracy of a random box, subtracted from the reward (RS-EoT, arXiv 2511.22396)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from grasp_rl.config.errors import one_of, require
from grasp_rl.geometry import FloatArray
from grasp_rl.rewards.terms.base import InstanceTerm
from grasp_rl.types import SpatialPrompt


@dataclass(frozen=True, kw_only=True)
class RandomBox:
    """The mean accuracy of boxes drawn at random, width and height uniform in [``smallest``, 1] of the image's.

    The group's mean is subtracted from every reward anyway: what this changes is that an answer no better than chance
    earns nothing of the accuracy terms.
    """

    combine: str = "clip"
    """clip: max(0, a - E) for accuracy a and expectation E. rescale: (a - E) / (1 - E), which is negative below chance;
    with 1 the most that the accuracy terms pay (oursIOU_k0.py of the released code)."""
    boxes: int = 10_000
    seed: int = 0
    smallest: float = 0.05

    def __post_init__(self) -> None:
        one_of("reward.baseline.combine", self.combine, ("clip", "rescale"))
        require(self.boxes >= 1, "reward.baseline.boxes", self.boxes, ">= 1")
        require(0 <= self.smallest <= 1, "reward.baseline.smallest", self.smallest, "in [0, 1]")

    def expected(
        self,
        terms: Mapping[str, InstanceTerm],
        weights: Mapping[str, float],
        reference: Sequence[SpatialPrompt],
        size: tuple[int, int],
    ) -> float:
        """Weighted sum of the instance terms that a random box earns on average, by the reference box it fits best.

        Args:
            terms: the instance terms by name.
            weights: theirs, by name.
            reference: the instances that answers are matched with.
            size: (height, width) of the image in pixels.
        """
        if not terms or not reference:
            return 0.0
        instances = _instances(self.boxes, self.seed, self.smallest, size[1], size[0])
        tables = [weights[name] * term.table(instances, reference, size) for name, term in terms.items()]
        total: FloatArray = np.sum(tables, axis=0)
        return float(total.max(1).mean()) / len(reference)

    def change(self, accuracy: float, expected: float, most: float) -> float:
        """What is added to ``accuracy``, of at most ``most``, where chance earns ``expected``."""
        if self.combine == "clip":
            return -min(accuracy, expected)
        return most * (accuracy - expected) / (most - expected) - accuracy if most > expected else 0.0


@lru_cache(maxsize=8)
def _instances(count: int, seed: int, smallest: float, width: int, height: int) -> tuple[SpatialPrompt, ...]:
    """``count`` boxes inside an image of ``width`` x ``height`` pixels, the same ones for the same arguments."""
    draw = np.random.default_rng(seed)
    sizes = draw.uniform(smallest, 1, (count, 2))
    corners = draw.uniform(0, 1, (count, 2)) * (1 - sizes)
    boxes = np.concatenate([corners, corners + sizes], 1) * [width, height, width, height]
    return tuple(SpatialPrompt(box=(x0, y0, x1, y1)) for x0, y0, x1, y1 in boxes.tolist())
