"""The mask reward of Think2Seg-RS (arXiv 2512.19302): the segmenter's mask against the true one, and two formats."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from grasp_rl.interfaces import CueReference, MaskReference
from grasp_rl.rewards import terms
from grasp_rl.types import Answer, MaskPrediction, RewardBreakdown


@dataclass
class Think2SegReward:
    """``mask_weight`` * IoU of the union of all instances + answer format + think format; [0, 4] as published.

    Without a target the mask term is 1 for an answer that was read and is empty, else 0. With one it is 0 for an answer
    that was not read or is empty, and where the segmenter failed. The answer format demands the ```json fence. As
    published, an answer without a fence counts as not read, which is ``parsing.require_fence=true``.

    Raises:
        ConfigError: ``reward.mask_weight`` is negative or not finite.
    """

    mask_weight: float = 2.0
    supervision: Literal["cues", "mask"] = field(default="mask", init=False)

    def __post_init__(self) -> None:
        terms.check_number("mask_weight", self.mask_weight, 0)

    def __call__(
        self, answer: Answer, reference: CueReference | MaskReference, prediction: MaskPrediction | None
    ) -> RewardBreakdown:
        """Score one answer by what the segmenter made of it.

        Raises:
            TypeError: ``reference`` is not a :class:`~grasp_rl.interfaces.MaskReference`.
            ValueError: there is a target and an answer, but no prediction, or one of another size.
        """
        if not isinstance(reference, MaskReference):
            raise TypeError(f"Think2SegReward learns from masks, it was handed a {type(reference).__name__}")
        values = {
            "mask_iou": _mask_term(answer, reference, prediction),
            "answer_format": terms.answer_format(answer, require_fence=True),
            "think_format": terms.think_format(answer),
        }
        reward = self.mask_weight * values["mask_iou"] + values["answer_format"] + values["think_format"]
        return RewardBreakdown(reward=reward, terms=values)


def _mask_term(answer: Answer, reference: MaskReference, prediction: MaskPrediction | None) -> float:
    """The raw mask term in [0, 1]."""
    if not reference.target_mask.any():
        return float(answer.ok and not answer.prompts)
    if not answer.ok or not answer.prompts:
        return 0.0
    if prediction is None:
        raise ValueError("Think2SegReward: an answer with instances needs the segmenter's prediction")
    return 0.0 if prediction.error is not None else prediction.iou(reference.target_mask)
