"""The mask-free reward of GRASP, reconstructed: format, boxes and positive points against weak cues.

What is known of GRASP (arXiv 2508.17102): format terms for the thought and for the answer, accuracy terms for boxes and
for positive points, two points, no mask. Its formulas are not public. Those here are the ones of Seg-Zero and
VisionReasoner, whose ingredients are the same; each is a constructor argument, so that GRASP's own can be filled in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from grasp_rl.geometry import FloatArray, match
from grasp_rl.interfaces import CueReference, MaskReference
from grasp_rl.rewards import terms
from grasp_rl.types import Answer, MaskPrediction, RewardBreakdown


@dataclass(kw_only=True)
class GraspReward:
    """Think format + answer format + box IoU + box L1 + points, each term in [0, 1] times its weight.

    Predicted and reference instances are assigned one to one so that the weighted sum of their pair terms is largest
    (Hungarian). A term is the sum over the assigned pairs divided by the larger number of instances, so a missing
    instance and a superfluous one cost the same. An instance that repeats another is superfluous.

    Without a target, an empty answer that was read earns every accuracy term in full and any other none. With a target,
    an empty answer or one that was not read earns none. A scheme without boxes or points earns nothing in their terms,
    and the largest possible reward falls by their weights.

    Raises:
        ConfigError: an argument is out of range; the message names ``reward.<argument>``.
    """

    think_weight: float = 1.0
    answer_weight: float = 1.0
    require_fence: bool = False
    """Whether the answer format demands the ```json fence."""
    box_iou_weight: float = 1.0
    box_iou_mode: str = "soft"
    """soft: the IoU itself; threshold: 1 where it exceeds ``box_iou_threshold``."""
    box_iou_threshold: float = 0.5
    box_l1_weight: float = 1.0
    box_l1_mode: str = "threshold"
    """soft: exp(-d / fraction); threshold: 1 where d < fraction. d is the mean error of the four edges."""
    box_l1_fraction: float = 10 / 840
    """Fraction of the picture's longer side. Seg-Zero and VisionReasoner: 10 pixels of 840."""
    points_weight: float = 1.0
    points_mode: str = "soft"
    """soft or threshold, d being the mean distance of the points under their best pairing."""
    points_fraction: float = 30 / 840
    """Fraction of the picture's longer side. VisionReasoner: 30 pixels of 840 for one point; Seg-Zero: 100 for two."""
    points_inside_weight: float = 0.0
    """Share of the positive points inside the reference box; reported whatever its weight."""
    count_weight: float = 0.0
    """Smaller over larger number of instances; reported whatever its weight."""
    supervision: Literal["cues", "mask"] = field(default="cues", init=False)

    def __post_init__(self) -> None:
        for name in self._weights:
            key = _WEIGHT_OF[name]
            terms.check_number(key, getattr(self, key), 0)
        for key in ("box_iou_mode", "box_l1_mode", "points_mode"):
            terms.check_mode(key, getattr(self, key))
        terms.check_number("box_iou_threshold", self.box_iou_threshold, 0, 1)
        terms.check_number("box_l1_fraction", self.box_l1_fraction, 1e-6, 1)
        terms.check_number("points_fraction", self.points_fraction, 1e-6, 1)

    def __call__(
        self, answer: Answer, reference: CueReference | MaskReference, prediction: MaskPrediction | None
    ) -> RewardBreakdown:
        """Score one answer; ``prediction`` is not looked at.

        Raises:
            TypeError: ``reference`` is not a :class:`~grasp_rl.interfaces.CueReference`.
        """
        if not isinstance(reference, CueReference):
            raise TypeError(f"GraspReward learns from cues alone, it was handed a {type(reference).__name__}")
        values = {
            "think_format": terms.think_format(answer),
            "answer_format": terms.answer_format(answer, self.require_fence),
            **self._accuracy(answer, reference),
        }
        return RewardBreakdown(reward=sum(self._weights[name] * value for name, value in values.items()), terms=values)

    @property
    def _weights(self) -> Mapping[str, float]:
        return {name: getattr(self, key) for name, key in _WEIGHT_OF.items()}

    def _accuracy(self, answer: Answer, reference: CueReference) -> dict[str, float]:
        """The accuracy terms by name."""
        if not answer.ok or not answer.prompts or not reference.cues:
            right = answer.ok and not answer.prompts and not reference.cues
            return dict.fromkeys(_ACCURACY, float(right))
        tables = self._pair_tables(answer, reference)
        repeated = np.array(terms.repeats(answer.prompts))
        for table in tables.values():
            table[repeated] = 0
        weights = self._weights
        pairs = match(sum((weights[name] * table for name, table in tables.items()), np.zeros(())))
        larger = max(len(answer.prompts), len(reference.cues))
        values = {name: float(sum(table[pair] for pair in pairs)) / larger for name, table in tables.items()}
        values["count"] = terms.count_ratio(int(np.count_nonzero(~repeated)), len(reference.cues))
        return values

    def _pair_tables(self, answer: Answer, reference: CueReference) -> dict[str, FloatArray]:
        """The terms of every pair of instances, [M, N] each."""
        predicted, cues, side = answer.prompts, reference.cues, float(max(reference.image_size))
        return {
            "box_iou": terms.box_iou_table(predicted, cues, self.box_iou_mode, self.box_iou_threshold),
            "box_l1": terms.box_l1_table(predicted, cues, self.box_l1_mode, self.box_l1_fraction, side),
            "points": terms.point_table(predicted, cues, self.points_mode, self.points_fraction, side),
            "points_inside": terms.point_inside_table(predicted, cues),
        }


_ACCURACY = ("box_iou", "box_l1", "points", "points_inside", "count")
_WEIGHT_OF = {
    "think_format": "think_weight",
    "answer_format": "answer_weight",
    **{name: f"{name}_weight" for name in _ACCURACY},
}
