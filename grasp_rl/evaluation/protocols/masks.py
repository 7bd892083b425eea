"""Mask overlap: gIoU, cIoU and precision at thresholds, with the switches on which published evaluators disagree.

What counts as what, above all where nothing is there, is decided in docs/adr/0006-giou-and-ciou.md:

========================  =============================================================================================
``giou``                  mean over all samples of the sample's IoU; see :func:`iou`
``ciou``                  sum of intersections over sum of unions, all samples; a mask where nothing is asked for adds
                          to the union
``ciou_target``           the same over the samples with a target alone
``pr@0.5`` .. ``pr@0.9``  share of the samples with a target whose IoU is greater (not equal) than that
``no_target_accuracy``    share of the samples without a target whose answer was read and is empty
``box_iou``               :func:`matched_box_iou`, mean over the samples with a target
``reward``, ``term/*``    mean reward and raw terms, over the samples that could be rewarded
``reward_iou_...``        ``reward_iou_correlation``: Pearson's, of a sample's reward and mask IoU
``parse/*``               share of each :class:`~grasp_rl.types.ParseStatus`; ``parsed`` is ok and repaired together
``giou/*``, ``share/*``   by group: ``single`` and ``multi`` instance, ``no_target``
========================  =============================================================================================

A number whose denominator is 0 is left out. ``giou_low``, ``giou_high``, ``ciou_low`` and ``ciou_high`` bound the 95 %
percentile-bootstrap interval over samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from grasp_rl.config.errors import require
from grasp_rl.evaluation.metrics import SampleScore, of_answers, put_mean
from grasp_rl.evaluation.significance import bounds, resampled_sums

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, kw_only=True)
class MaskProtocol:
    """Scores of masks at the original resolution; the defaults are this project's own (docs/adr/0006).

    Raises:
        ConfigError: an argument has no such value.
    """

    name: str = "ours"
    """Printed with every number."""
    headline: str = "giou"
    """The metric that a table leads with."""
    empty_iou: Literal["one", "zero"] = "one"
    """IoU of an empty answer to a question without a target: one (SegEarth-R1, Think2Seg-RS), zero (Geo-R1)."""
    false_positives: bool = True
    """Whether a mask where nothing is asked for adds to the union of cIoU; Think2Seg-RS leaves it out."""
    strict: bool = True
    """Whether precision at a threshold counts an IoU greater than it, not equal (SegEarth-R1)."""

    def __post_init__(self) -> None:
        require(self.empty_iou in ("one", "zero"), "evaluation.protocol.empty_iou", self.empty_iou, "one or zero")

    def iou(self, score: SampleScore) -> float | None:
        """IoU of one sample, None without a true mask.

        With a target it is intersection over union of the predicted and the true mask, 0 for an answer that was not
        read. Without one it is 1 for an answer that was read and is empty (``empty_iou=one``), and 0 for every other;
        with ``empty_iou=zero`` it is always 0.
        """
        if score.intersection is None or score.union is None:
            return None
        if score.has_target:
            return score.intersection / score.union
        return float(score.empty and self.empty_iou == "one")

    def summarise(
        self, scores: Sequence[SampleScore], *, bootstrap_samples: int = 2000, seed: int = 0
    ) -> dict[str, float]:
        """All numbers of the module's table, by flat name.

        Args:
            scores: one per sample.
            bootstrap_samples: resamples behind the intervals.
            seed: of the resampling.
        """
        result: dict[str, float] = {"samples": len(scores)}
        result |= self._overlaps(scores, bootstrap_samples, seed)
        targets = [s for s in scores if s.has_target]
        put_mean(result, "no_target_accuracy", [s.empty for s in scores if not s.has_target])
        put_mean(result, "box_iou", [s.box_iou for s in targets if s.box_iou is not None])
        return result | of_answers(scores)

    def _overlaps(self, scores: Sequence[SampleScore], bootstrap_samples: int, seed: int) -> dict[str, float]:
        """What comes from masks."""
        result: dict[str, float] = {}
        masked = [s for s in scores if s.intersection is not None]
        if not masked:
            return result
        # One row a sample: IoU, intersection, union.
        table = np.array([[self.iou(s), s.intersection, s.union] for s in masked], dtype=np.float64)
        if not self.false_positives:
            targetless = [not s.has_target for s in masked]
            table[targetless, 1:] = 0
        drawn = resampled_sums(table, bootstrap_samples, seed)
        result["giou"] = float(table[:, 0].mean())
        result["giou_low"], result["giou_high"] = bounds(drawn[:, 0] / len(masked))
        if table[:, 2].any():
            result["ciou"] = float(table[:, 1].sum() / table[:, 2].sum())
            result["ciou_low"], result["ciou_high"] = bounds(drawn[:, 1] / np.maximum(drawn[:, 2], 1))
        targets = table[[s.has_target for s in masked]]
        if len(targets):
            result["ciou_target"] = float(targets[:, 1].sum() / targets[:, 2].sum())
            for threshold in THRESHOLDS:
                result[f"pr@{threshold}"] = float(
                    (targets[:, 0] > threshold if self.strict else targets[:, 0] >= threshold).mean()
                )
        for group in ("single", "multi"):
            put_mean(result, f"giou/{group}", table[[s.group == group for s in masked], 0])
        return result


OURS = MaskProtocol()
