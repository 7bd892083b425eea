"""Mask terms: the segmenter's mask against the true one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from grasp_rl.interfaces import Labels, WeakLabels
from grasp_rl.rewards.terms.base import AnswerTerm
from grasp_rl.types import Answer, MaskPrediction


@dataclass(frozen=True, kw_only=True)
class MaskIou(AnswerTerm):
    """IoU of the union of all predicted instances with the true mask; 0 where the segmenter failed.

    Pixels that the dataset ignores are left out of both.

    Think2Seg-RS (arXiv 2512.19302) pays it with weight 2.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"mask"})

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        """Raises:

        TypeError: ``labels`` hold no mask.
        ValueError: there is no prediction, or one of another size.
        """
        if not isinstance(labels, Labels):
            raise TypeError(f"MaskIou compares with a mask, it was handed {type(labels).__name__}")
        if prediction is None:
            raise ValueError("MaskIou: an answer with instances needs the segmenter's prediction")
        return 0.0 if prediction.error is not None else prediction.iou(labels.target_mask, labels.ignore_mask)
