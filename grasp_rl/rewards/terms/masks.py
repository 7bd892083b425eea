"""Mask terms: the segmenter's mask against the true one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from grasp_rl.config.errors import ConfigError
from grasp_rl.interfaces import Labels, WeakLabels
from grasp_rl.rewards.terms.base import AnswerTerm
from grasp_rl.types import Answer, Box, MaskPrediction


@dataclass(frozen=True, kw_only=True)
class MaskIou(AnswerTerm):
    """A function of the IoU x of the union of all predicted masks with the true mask; 0 where the segmenter failed.

    ``soft``: x (Think2Seg-RS, arXiv 2512.19302, pays it with weight 2). ``threshold``: 1 where x exceeds
    ``threshold``. ``tiered``: the value of the highest of ``tiers`` that x exceeds, else 0 (SAM-R1, arXiv 2505.22596).
    Pixels that the dataset ignores are left out of both masks.
    """

    mode: str = "soft"
    threshold: float = 0.5
    tiers: list[list[float]] = field(default_factory=lambda: [[0.5, 0.5], [0.7, 0.75], [0.8, 1.0]])
    """[IoU, value] in rising order."""
    clip_to_box: bool = False
    """Cut each mask at its instance's own box first (Geo-R1, arXiv 2509.21976)."""
    needs: ClassVar[frozenset[str]] = frozenset({"mask"})
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"threshold": (0, 1)}
    choices: ClassVar[Mapping[str, Sequence[str]]] = {"mode": ("soft", "threshold", "tiered")}

    def check(self, key: str) -> None:
        """See the base.

        Raises:
            ConfigError: an argument is out of range.
        """
        super().check(key)
        rising = [tier[0] for tier in self.tiers]
        if not all(len(tier) == 2 and min(tier) >= 0 and max(tier) <= 1 for tier in self.tiers) or rising != sorted(
            set(rising)
        ):
            raise ConfigError(f"{key}.tiers={self.tiers!r}: must be [IoU, value] pairs in [0, 1], IoU rising")

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        """Raises:

        TypeError: ``labels`` hold no mask.
        ValueError: there is no prediction, or one of another size.
        """
        if not isinstance(labels, Labels):
            raise TypeError(f"MaskIou compares with a mask, it was handed {type(labels).__name__}")
        if prediction is None:
            raise ValueError("MaskIou: an answer with instances needs the segmenter's prediction")
        if prediction.error is not None:
            return 0.0
        if self.clip_to_box:
            prediction = clipped(prediction, [item.box for item in answer.prompts])
        iou = prediction.iou(labels.target_mask, labels.ignore_mask)
        if self.mode == "soft":
            return iou
        if self.mode == "threshold":
            return float(iou > self.threshold)
        return next((value for tier, value in reversed(self.tiers) if iou > tier), 0.0)


def clipped(prediction: MaskPrediction, boxes: Sequence[Box | None]) -> MaskPrediction:
    """``prediction`` with each of its N masks cut at its own box, where it has one; edges are rounded down."""
    if len(boxes) != len(prediction.masks):
        return prediction  # one mask of all instances
    masks = prediction.masks.copy() if hasattr(prediction.masks, "copy") else prediction.masks.clone()
    for mask, box in zip(masks, boxes, strict=True):
        if box is not None:
            x0, y0, x1, y1 = (max(0, int(value)) for value in box)
            mask[:y0], mask[y1:], mask[:, :x0], mask[:, x1:] = False, False, False, False
    return replace(prediction, masks=masks)
