"""Box terms: IoU, edges and centre of predicted and reference boxes, number of instances, area, average precision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from grasp_rl.geometry import FloatArray, match, pairwise_box_iou
from grasp_rl.interfaces import Labels, WeakLabels
from grasp_rl.rewards.average_precision import coco_average_precision
from grasp_rl.rewards.matching import repeats
from grasp_rl.rewards.terms.base import MODES, AnswerTerm, InstanceTerm, boxes_of
from grasp_rl.types import Answer, MaskPrediction, SpatialPrompt


@dataclass(frozen=True, kw_only=True)
class BoxIou(InstanceTerm):
    """A function of the IoU x of the two boxes.

    ``soft``: x. ``threshold``: 1 where x exceeds ``threshold`` (Seg-Zero, arXiv 2503.06520: 0.5). ``gated``: x where it
    is no smaller than ``threshold``, else 0 (VLM-R1's detection score). ``piecewise``: x from ``threshold`` on, 0.8 x
    from 0.3 on, else 0 (RS-HyRe-R1, arXiv 2604.17504). ``exponential``: (exp(k x) - 1) / (exp(k) - 1), x for k = 0
    (RS-EoT, arXiv 2511.22396).
    """

    mode: str = "soft"
    threshold: float = 0.5
    k: float = 0.0
    """Steepness of ``exponential``."""
    margin: float = 0.0
    """Added to every width and height, as a fraction of the image's longer side. Seg-Zero and VisionReasoner count
    pixels inclusively, so that a box of x0..x1 is x1 - x0 + 1 wide: 1/840 of their canvas."""
    needs: ClassVar[frozenset[str]] = frozenset({"boxes"})
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"threshold": (0, 1), "margin": (0, 1), "k": (0, 50)}
    choices: ClassVar[Mapping[str, Sequence[str]]] = {"mode": (*MODES, "gated", "piecewise", "exponential")}

    def table(
        self, predicted: Sequence[SpatialPrompt], reference: Sequence[SpatialPrompt], size: tuple[int, int]
    ) -> FloatArray:
        grown = np.array([0, 0, 1, 1]) * self.margin * max(size)
        with np.errstate(all="ignore"):
            iou = pairwise_box_iou(boxes_of(predicted) + grown, boxes_of(reference) + grown)
        iou = np.where(np.isfinite(iou), iou, 0.0)
        match self.mode:
            case "threshold":
                return (iou > self.threshold).astype(float)
            case "gated":
                return np.where(iou >= self.threshold, iou, 0.0)
            case "piecewise":
                return np.where(iou >= self.threshold, iou, np.where(iou >= 0.3, 0.8 * iou, 0.0))
            case "exponential" if self.k:
                return np.expm1(self.k * iou) / math.expm1(self.k)
        return iou


@dataclass(frozen=True, kw_only=True)
class BoxL1(InstanceTerm):
    """Closeness of the two boxes: d is the mean distance of the four edges (Seg-Zero: 10 pixels of 840)."""

    mode: str = "threshold"
    fraction: float = 10 / 840
    """Tolerance as a fraction of the image's longer side."""
    needs: ClassVar[frozenset[str]] = frozenset({"boxes"})
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"fraction": (1e-6, 1)}
    choices: ClassVar[Mapping[str, Sequence[str]]] = {"mode": MODES}

    def table(
        self, predicted: Sequence[SpatialPrompt], reference: Sequence[SpatialPrompt], size: tuple[int, int]
    ) -> FloatArray:
        with np.errstate(all="ignore"):
            offsets = np.abs(boxes_of(predicted)[:, None] - boxes_of(reference)[None])
            distance = offsets.sum(-1) / 4 / max(size)
            value = np.exp(-distance / self.fraction) if self.mode == "soft" else (distance < self.fraction) * 1.0
        return np.where(np.isfinite(distance), value, 0.0)


@dataclass(frozen=True, kw_only=True)
class BoxCenter(InstanceTerm):
    """r / max(D, r): D is the distance of the two centres, r half the diagonal of the reference box.

    Both in fractions of the image's width and height. 1 where the centre is within r, then falling like 1 / D: it tells
    better from worse where the boxes do not meet and the IoU is 0 (RS-EoT, arXiv 2511.22396).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"boxes"})

    def table(
        self, predicted: Sequence[SpatialPrompt], reference: Sequence[SpatialPrompt], size: tuple[int, int]
    ) -> FloatArray:
        scale = np.array([size[1], size[0], size[1], size[0]], float)
        first, second = boxes_of(predicted) / scale, boxes_of(reference) / scale
        with np.errstate(all="ignore"):
            offset = (first[:, None, :2] + first[:, None, 2:] - second[None, :, :2] - second[None, :, 2:]) / 2
            distance = np.hypot(offset[..., 0], offset[..., 1])
            radius = np.hypot(second[:, 2] - second[:, 0], second[:, 3] - second[:, 1])[None] / 2
            value = radius / np.maximum(distance, radius)
        return np.where(np.isfinite(value), value, 0.0)


@dataclass(frozen=True, kw_only=True)
class Matched(InstanceTerm):
    """1 for every pair: with a negative weight a price on each matched pair, which a good pair has to earn back.

    SocioReasoner's first turn pays the other instance terms less 1 for every pair (arXiv 2601.10477).
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"weight": (-1e3, 1e3)}

    def table(
        self, predicted: Sequence[SpatialPrompt], reference: Sequence[SpatialPrompt], size: tuple[int, int]
    ) -> FloatArray:
        return np.ones((len(predicted), len(reference)))


@dataclass(frozen=True, kw_only=True)
class Count(AnswerTerm):
    """How well the number of instances K fits the true one J; an instance that repeats another does not count.

    ``ratio``: the smaller number over the larger one. ``exponential``: exp(-k |K - J| / J), and without a target 1
    where K is 0, else 0 (SocioReasoner, arXiv 2601.10477: k = 2).
    """

    mode: str = "ratio"
    k: float = 2.0
    repeated: bool = False
    """Whether an instance that repeats another counts."""
    always: bool = False
    """Whether the formula holds for empty answers and without a target, too, instead of the rubric's rule; an answer
    that was not read earns 0 either way."""
    needs: ClassVar[frozenset[str]] = frozenset({"boxes"})
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"k": (1e-6, 1e3)}
    choices: ClassVar[Mapping[str, Sequence[str]]] = {"mode": ("ratio", "exponential")}

    @property
    def by_rule(self) -> bool:
        """See the base."""
        return not self.always

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        if not answer.ok:
            return 0.0
        found = len(answer.prompts) if self.repeated else repeats(answer.prompts).count(False)
        true = len(labels.instances or ())
        if self.mode == "ratio":
            return count_ratio(found, true)
        return math.exp(-self.k * abs(found - true) / true) if true else float(found == 0)


@dataclass(frozen=True, kw_only=True)
class AreaSaved(AnswerTerm):
    """1 less the share of the image that the predicted boxes cover together: an area penalty, moved to [0, 1].

    RemoteZero (arXiv 2605.04451) subtracts weight times the share from its reward; here the same weight pays what is
    left free. Within a group the two differ by a constant.
    """

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        height, width = labels.image_size
        covered = np.zeros((height, width), bool)
        for item in answer.prompts:
            if item.box is not None and all(map(math.isfinite, item.box)):
                x0, y0, x1, y1 = (max(0, round(value)) for value in item.box)
                covered[y0:y1, x0:x1] = True
        return 1.0 - float(covered.mean())


@dataclass(frozen=True, kw_only=True)
class DetectionErrors(AnswerTerm):
    """1 - (misses / J + false alarms / K) / 2, where a pair is one with an IoU of ``threshold`` or more (VLM-R1).

    J true and K predicted boxes; the pairs are those of greatest summed IoU.
    """

    threshold: float = 0.5
    needs: ClassVar[frozenset[str]] = frozenset({"boxes"})
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"threshold": (0, 1)}

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        reference = labels.instances or ()
        gated = BoxIou(mode="gated", threshold=self.threshold)
        table = gated.table(answer.prompts, reference, labels.image_size)
        hits = sum(bool(table[pair]) for pair in match(table))
        found, true = len(answer.prompts), len(reference)
        return 1.0 - ((true - hits) / true + (found - hits) / found) / 2 if found and true else 0.0


@dataclass(frozen=True, kw_only=True)
class DetectionAp(AnswerTerm):
    """COCO's average precision of the predicted boxes, every score 1, one class each; times a penalty on their number.

    Averaged over IoU thresholds .50:.05:.95 and over the classes that the truth or the answer names. The penalty is
    min(1, (J / K) ** ``count_power``) with J true and K predicted boxes: 0.5 in Geo-R1's detection reward (arXiv
    2509.21976), 1 in VLM-R1's odLength, 0 for none.
    """

    count_power: float = 0.5
    needs: ClassVar[frozenset[str]] = frozenset({"boxes"})
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"count_power": (0, 10)}

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        reference = labels.instances or ()
        names = {item.category for item in (*answer.prompts, *reference)}
        precisions = []
        for name in names:
            found = [item.box for item in answer.prompts if item.category == name and item.box is not None]
            true = [item.box for item in reference if item.category == name and item.box is not None]
            precisions.append(coco_average_precision(found, true))
        penalty = min(1.0, (len(reference) / max(1, len(answer.prompts))) ** self.count_power)
        return penalty * float(np.mean(precisions)) if precisions else 0.0


def count_ratio(predicted: int, reference: int) -> float:
    """The smaller count over the larger one; 1 when both are 0."""
    return 1.0 if predicted == reference else min(predicted, reference) / max(predicted, reference)
