"""Mask scores by the rules of published evaluators: what they disagree on is a field, and each evaluator a YAML.

Counted anew from the masks in predictions.jsonl, on the evaluator's own canvas. The numbers:

=====================  ================================================================================================
``giou``               mean IoU, over samples or over masks (``mean_over``)
``ciou``               sum of intersections over sum of unions
``pr@0.5`` ..          share whose IoU is above the threshold (``precision_over``: of which; ``strict``: or equal)
``scored``             samples that count at all
``*_low``, ``*_high``  95 % percentile-bootstrap interval over samples, of ``giou`` and ``ciou``
=====================  ================================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from grasp_rl.config.errors import require
from grasp_rl.evaluation.canvas import Canvas, place, rectangle
from grasp_rl.evaluation.metrics import SampleScore, of_answers
from grasp_rl.evaluation.pairs import Pair, union_of
from grasp_rl.evaluation.significance import bounds, resampled_sums
from grasp_rl.geometry import FloatArray, clipped, match
from grasp_rl.types import BoolMask

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Overlap:
    """One predicted mask against one true mask."""

    iou: float
    intersection: int
    union: int
    has_target: bool
    has_prediction: bool


@dataclass(frozen=True, kw_only=True)
class PublishedProtocol:
    """What counts as what in one published evaluator.

    Raises:
        ConfigError: an argument has no such value.
    """

    name: str
    """Printed with every number."""
    headline: str = "giou"
    """The metric that a table leads with."""
    canvas: Canvas = "original"
    """Where masks are compared; see :mod:`grasp_rl.evaluation.canvas`."""
    side: int = 0
    """Of the canvas in pixels; of no meaning for ``original``."""
    truth_resize: Literal["nearest", "bilinear"] = "nearest"
    """How the true mask comes onto the canvas; bilinear takes all above 0, and so widens it."""
    both_empty: Literal["one", "zero", "skip"] = "one"
    """IoU where neither mask has a pixel; skip: the sample does not count."""
    empty_by: Literal["masks", "answer"] = "masks"
    """Whether an empty mask is enough for ``both_empty``, or the answer must have been read and name nothing."""
    unread: Literal["empty", "zero", "no_area"] = "empty"
    """An answer that was not read is an empty mask like any other (empty); or IoU 0 with its target's area in cIoU's
    union (zero). no_area: IoU 0 and no pixel in the sums, for an answer that names nothing, too."""
    false_positives: bool = True
    """Whether a mask where nothing is asked for adds to the union of cIoU."""
    matching: Literal["union", "order", "order_repeat_last", "hungarian"] = "union"
    """How masks meet where the dataset names instances (elsewhere it is union). union: all masks together; order: the
    k-th true with the k-th predicted, surplus predictions left out, missing ones empty or (order_repeat_last) the last
    one again; hungarian: the best assignment, all of both sides counted."""
    mean_over: Literal["samples", "masks"] = "samples"
    """Whether every sample weighs the same in gIoU, or every pair of masks."""
    clip_to_box: bool = False
    """Whether each predicted mask is cut to its instance's box."""
    rectangles: bool = False
    """Whether the predicted mask's bounding rectangle stands for it."""
    epsilon: float = 0.0
    """Added to the union of each IoU."""
    precision_over: Literal["all", "targets", "predictions", "none"] = "targets"
    """Of which samples Pr@k is the share: all, those with a true mask, those with a predicted one."""
    strict: bool = True
    """Whether Pr@k counts an IoU greater than k, not equal."""
    multimask: bool | None = None
    """Whether each of its masks is the best of three by the segmenter's own score, which ``segmenter.multimask`` makes
    so where masks are predicted; an evaluation says where the two differ. None: not said, or another kind of model."""

    def __post_init__(self) -> None:
        choices = {
            "canvas": ("original", "squash", "corner", "centre"),
            "truth_resize": ("nearest", "bilinear"),
            "both_empty": ("one", "zero", "skip"),
            "empty_by": ("masks", "answer"),
            "unread": ("empty", "zero", "no_area"),
            "matching": ("union", "order", "order_repeat_last", "hungarian"),
            "mean_over": ("samples", "masks"),
            "precision_over": ("all", "targets", "predictions", "none"),
        }
        for key, allowed in choices.items():
            value = getattr(self, key)
            require(value in allowed, f"evaluation.protocol.{key}", value, f"one of {', '.join(allowed)}")
        if self.canvas != "original":
            require(self.side >= 1, "evaluation.protocol.side", self.side, ">= 1, the canvas's size in pixels")
        require(self.epsilon >= 0, "evaluation.protocol.epsilon", self.epsilon, ">= 0")

    def iou(self, score: SampleScore) -> float | None:
        """Mean IoU of the sample's masks; None without a true mask, or where the sample does not count."""
        counted = self.overlaps(score)
        return float(np.mean([o.iou for o in counted])) if counted else None

    def overlaps(self, score: SampleScore) -> list[Overlap]:
        """What a sample adds to the sums: one overlap, or one a pair of masks; none where it does not count."""
        pair = Pair.of(score)
        if pair.target is None:
            return []
        overlaps = [self._overlap(pair, p, t) for p, t in self._matched(pair, pair.target)]
        return [overlap for overlap in overlaps if overlap is not None]

    def _matched(self, pair: Pair, target: Sequence[BoolMask]) -> list[tuple[BoolMask, BoolMask]]:
        """Pairs of predicted and true masks on the canvas, ignored pixels in neither."""
        boxes = pair.boxes
        masks: list[BoolMask] = list(pair.predicted)
        if self.clip_to_box and len(boxes) == len(masks):
            masks = [clipped(mask, box) for mask, box in zip(masks, boxes, strict=True)]
        if self.matching == "union" or not pair.named:
            masks, target = [union_of(masks, pair.size)], [union_of(target, pair.size)]
        if self.rectangles:
            masks = [rectangle(mask) for mask in masks]
        counted = True if pair.ignored is None else ~pair.ignored
        bilinear = self.truth_resize == "bilinear"
        predicted = [place(mask & counted, self.canvas, self.side) for mask in masks]
        true = [place(mask & counted, self.canvas, self.side, bilinear=bilinear) for mask in target]
        nothing = place(np.zeros(pair.size, dtype=np.bool_), self.canvas, self.side)
        if not true:
            return [(union_of(predicted, nothing.shape), nothing)]
        if self.matching == "hungarian":
            return _assigned(predicted, true, nothing)
        missing = predicted[-1] if self.matching == "order_repeat_last" and predicted else nothing
        filled = [*predicted, *[missing] * max(0, len(true) - len(predicted))]
        return list(zip(filled, true, strict=False))

    def _overlap(self, pair: Pair, predicted: BoolMask, true: BoolMask) -> Overlap | None:
        intersection, union = int(np.count_nonzero(predicted & true)), int(np.count_nonzero(predicted | true))
        has_target, has_prediction = bool(true.any()), bool(predicted.any())
        if self.unread == "no_area" and (pair.silent or not pair.read):
            return Overlap(0.0, 0, 0, has_target, False)
        if self.unread == "zero" and not pair.read:
            return Overlap(0.0, 0, union, has_target, False)
        if union == 0:
            if self.both_empty == "skip":
                return None
            full = self.both_empty == "one" and (self.empty_by == "masks" or pair.silent)
            return Overlap(float(full), 0, 0, False, False)
        iou = intersection / (union + self.epsilon)
        if not has_target and not self.false_positives:
            intersection = union = 0
        return Overlap(iou, intersection, union, has_target, has_prediction)

    def summarise(
        self, scores: Sequence[SampleScore], *, bootstrap_samples: int = 2000, seed: int = 0
    ) -> dict[str, float]:
        """:meth:`numbers`, and what no protocol decides about."""
        about: dict[str, float] = {"samples": len(scores), **of_answers(scores)}
        return about | self.numbers(scores, bootstrap_samples=bootstrap_samples, seed=seed)

    def numbers(
        self, scores: Sequence[SampleScore], *, bootstrap_samples: int = 2000, seed: int = 0
    ) -> dict[str, float]:
        """All numbers of the module's table, by flat name.

        Args:
            scores: one per sample, read from records.
            bootstrap_samples: resamples behind the intervals.
            seed: of the resampling.
        """
        samples = [counted for score in scores if (counted := self.overlaps(score))]
        result: dict[str, float] = {"scored": len(samples)}
        if not samples:
            return result
        result |= self._means(samples, bootstrap_samples, seed)
        ious = np.array([o.iou for counted in samples for o in counted if self._in_precision(o)])
        if len(ious):
            for threshold in THRESHOLDS:
                result[f"pr@{threshold}"] = float((ious > threshold if self.strict else ious >= threshold).mean())
        return result

    def _in_precision(self, overlap: Overlap) -> bool:
        if self.precision_over == "targets":
            return overlap.has_target
        if self.precision_over == "predictions":
            return overlap.has_prediction
        return self.precision_over == "all"

    def _means(self, samples: Sequence[Sequence[Overlap]], bootstrap_samples: int, seed: int) -> dict[str, float]:
        table: FloatArray = np.array(
            [[sum(o.iou for o in c), len(c), sum(o.intersection for o in c), sum(o.union for o in c)] for c in samples],
            dtype=np.float64,
        )
        if self.mean_over == "samples":
            table[:, 0] /= table[:, 1]
            table[:, 1] = 1
        drawn, total = resampled_sums(table, bootstrap_samples, seed), table.sum(0)
        result = {"giou": float(total[0] / total[1])}
        result["giou_low"], result["giou_high"] = bounds(drawn[:, 0] / drawn[:, 1])
        if total[3]:
            result["ciou"] = float(total[2] / total[3])
            result["ciou_low"], result["ciou_high"] = bounds(drawn[:, 2] / np.maximum(drawn[:, 3], 1))
        return result


def _assigned(
    predicted: Sequence[BoolMask], true: Sequence[BoolMask], nothing: BoolMask
) -> list[tuple[BoolMask, BoolMask]]:
    """The assignment of the largest summed IoU; what is left over on either side stands against nothing."""
    if not predicted:
        return [(nothing, t) for t in true]
    table = np.array([[int((p & t).sum()) / max(1, int((p | t).sum())) for t in true] for p in predicted])
    pairs = match(table)
    rows, columns = {row for row, _ in pairs}, {column for _, column in pairs}
    return [
        *((predicted[row], true[column]) for row, column in pairs),
        *((nothing, t) for column, t in enumerate(true) if column not in columns),
        *((p, nothing) for row, p in enumerate(predicted) if row not in rows),
    ]
