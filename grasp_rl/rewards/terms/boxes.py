"""Box terms: IoU, edges and centre of predicted and reference boxes, number of instances, area, average precision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from grasp_rl.geometry import FloatArray, box_iou, pairwise_box_iou
from grasp_rl.interfaces import Labels, WeakLabels
from grasp_rl.rewards.average_precision import coco_average_precision
from grasp_rl.rewards.matching import greedy, repeats
from grasp_rl.rewards.terms.base import MODES, AnswerTerm, InstanceTerm, boxes_of, plain_name, stretch
from grasp_rl.types import Answer, MaskPrediction, SpatialPrompt


@dataclass(frozen=True, kw_only=True)
class BoxIou(InstanceTerm):
    """A function of the IoU x of the two boxes.

    ``soft``: x. ``threshold``: 1 where x exceeds ``threshold`` (Seg-Zero, arXiv 2503.06520: 0.5). ``gated``: x where it
    is no smaller than ``threshold``, else 0 (VLM-R1's detection score). ``piecewise``: x from ``threshold`` on, 0.8 x
    from 0.3 on, else 0 (RS-HyRe-R1, arXiv 2604.17504). ``exponential``: (exp(k x) - 1) / (exp(k) - 1), x for k = 0
    (RS-EoT, arXiv 2511.22396). ``generalised``: (1 + g) / 2 for the generalised IoU g of arXiv 1902.09630 (the matching
    of R1-SGG).
    """

    mode: str = "soft"
    threshold: float = 0.5
    k: float = 0.0
    """Steepness of ``exponential``."""
    margin: float = 0.0
    """Added to every width and height, as a fraction of the image's longer side. Seg-Zero and VisionReasoner count
    pixels inclusively, so that a box of x0..x1 is x1 - x0 + 1 wide: 1/840 of their canvas."""
    squash: bool = False
    """``margin`` is a fraction of the width in x and of the height in y, as on a canvas that squashes the image."""
    least_overlap: float = 0.0
    """Boxes that overlap by no more than so many pixels in width or height have an IoU of 0 (VLM-R1: 1)."""
    same_category: bool = False
    """0 for boxes of different classes; case, commas and spaces of the names do not count."""
    needs: ClassVar[frozenset[str]] = frozenset({"boxes"})
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "threshold": (0, 1),
        "margin": (0, 1),
        "k": (0, 50),
        "least_overlap": (0, 1e6),
    }
    choices: ClassVar[Mapping[str, Sequence[str]]] = {
        "mode": (*MODES, "gated", "piecewise", "exponential", "generalised")
    }

    def table(
        self, predicted: Sequence[SpatialPrompt], reference: Sequence[SpatialPrompt], size: tuple[int, int]
    ) -> FloatArray:
        grown = np.array([0, 0, *(self.margin * max(size) / stretch(size, self.squash))])
        first, second = boxes_of(predicted) + grown, boxes_of(reference) + grown
        with np.errstate(all="ignore"):
            iou = _generalised(first, second) if self.mode == "generalised" else pairwise_box_iou(first, second)
            if self.least_overlap:
                iou = np.where((_overlap(first, second) > self.least_overlap).all(-1), iou, 0.0)
        iou = np.where(np.isfinite(iou), iou, 0.0)
        if self.same_category:
            iou = iou * same_names(predicted, reference)
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


def _overlap(first: FloatArray, second: FloatArray) -> FloatArray:
    """[M, N, 2] width and height of what boxes [M, 4] and [N, 4] share; negative where there is a gap."""
    result: FloatArray = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return result - np.maximum(first[:, None, :2], second[None, :, :2])


def _generalised(first: FloatArray, second: FloatArray) -> FloatArray:
    """[M, N] (1 + GIoU) / 2 of boxes [M, 4] and [N, 4]; a half where the box around both has no area."""
    iou = pairwise_box_iou(first, second)
    hull = np.maximum(first[:, None, 2:], second[None, :, 2:]) - np.minimum(first[:, None, :2], second[None, :, :2])
    around = hull.prod(-1)
    both = np.clip(_overlap(first, second), 0, None).prod(-1)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - both
    waste = np.divide(around - union, around, out=np.zeros_like(around), where=around > 0)
    result: FloatArray = np.clip((1 + iou - waste) / 2, 0, 1)
    return result


def same_names(predicted: Sequence[SpatialPrompt], reference: Sequence[SpatialPrompt]) -> FloatArray:
    """[M, N] 1 where the two instances' classes have the same name, else 0."""
    names = [plain_name(item.category) for item in reference]
    rows = [[float(plain_name(item.category) == name) for name in names] for item in predicted]
    return np.array(rows, float).reshape(len(predicted), len(reference))


@dataclass(frozen=True, kw_only=True)
class SameCategory(InstanceTerm):
    """1 where the two instances' classes have the same name; case, commas and spaces do not count."""

    def table(
        self, predicted: Sequence[SpatialPrompt], reference: Sequence[SpatialPrompt], size: tuple[int, int]
    ) -> FloatArray:
        return same_names(predicted, reference)


@dataclass(frozen=True, kw_only=True)
class BoxL1(InstanceTerm):
    """Closeness of the two boxes: d is the mean distance of the four edges (Seg-Zero: 10 pixels of 840).

    Beside the two shapes of all distances, ``linear``: 1 - d, whatever ``fraction`` (the matching of R1-SGG).
    """

    mode: str = "threshold"
    fraction: float = 10 / 840
    """Tolerance as a fraction of the image's longer side."""
    squash: bool = False
    """Distances are fractions of the width in x and of the height in y, as on a canvas that squashes the image."""
    needs: ClassVar[frozenset[str]] = frozenset({"boxes"})
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"fraction": (1e-6, 1)}
    choices: ClassVar[Mapping[str, Sequence[str]]] = {"mode": (*MODES, "linear")}

    def table(
        self, predicted: Sequence[SpatialPrompt], reference: Sequence[SpatialPrompt], size: tuple[int, int]
    ) -> FloatArray:
        with np.errstate(all="ignore"):
            offsets = np.abs(boxes_of(predicted)[:, None] - boxes_of(reference)[None])
            distance = (offsets * np.tile(stretch(size, self.squash), 2)).sum(-1) / 4 / max(size)
            match self.mode:
                case "soft":
                    value = np.exp(-distance / self.fraction)
                case "linear":
                    value = np.clip(1 - distance, 0, 1)
                case _:
                    value = (distance < self.fraction) * 1.0
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
    """Whether an instance that repeats another counts; and with it every object that the answer lists, also one that
    could not be used."""
    always: bool = False
    """Whether the formula holds for empty answers and without a target, too, instead of the rubric's rule; an answer
    that was not read earns 0 either way, unless its objects could be counted."""
    needs: ClassVar[frozenset[str]] = frozenset({"boxes"})
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"k": (1e-6, 1e3)}
    choices: ClassVar[Mapping[str, Sequence[str]]] = {"mode": ("ratio", "exponential")}

    @property
    def by_rule(self) -> bool:
        """See the base."""
        return not self.always

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        if not answer.ok and answer.listed is None:
            return 0.0
        count = listed(answer) if self.repeated else repeats(answer.prompts).count(False)
        true = len(labels.instances or ())
        if self.mode == "ratio":
            return count_ratio(count, true)
        return math.exp(-self.k * abs(count - true) / true) if true else float(count == 0)


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

    J true and K listed boxes; the pair of greatest IoU is made first, then the next.
    """

    threshold: float = 0.5
    needs: ClassVar[frozenset[str]] = frozenset({"boxes"})
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"threshold": (0, 1)}

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        reference = labels.instances or ()
        gated = BoxIou(mode="gated", threshold=self.threshold)
        table = gated.table(answer.prompts, reference, labels.image_size)
        hits = len(greedy(table))
        predicted, true = listed(answer), len(reference)
        return 1.0 - ((true - hits) / true + (predicted - hits) / predicted) / 2 if predicted and true else 0.0


@dataclass(frozen=True, kw_only=True)
class DetectionAp(AnswerTerm):
    """COCO's average precision, mean over the reference's classes, times a penalty for boxes in excess.

    min(1, (J / K) ** ``count_power``) with J true boxes and K listed ones: 0.5 in Geo-R1's detection reward (arXiv
    2509.21976), 1 in VLM-R1's odLength, 0 for none. All boxes have the same score, so that their order decides. A box
    of a class that the reference does not have counts in K alone.
    """

    count_power: float = 0.5
    needs: ClassVar[frozenset[str]] = frozenset({"boxes"})
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"count_power": (0, 10)}

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        reference = labels.instances or ()
        precisions = []
        for name in {item.category for item in reference}:
            predicted = [item.box for item in answer.prompts if item.category == name and item.box is not None]
            true = [item.box for item in reference if item.category == name and item.box is not None]
            precisions.append(coco_average_precision(predicted, true))
        penalty = min(1.0, (len(reference) / max(1, listed(answer))) ** self.count_power)
        return penalty * float(np.mean(precisions)) if precisions else 0.0


@dataclass(frozen=True, kw_only=True)
class DetectionF1(AnswerTerm):
    """2 t / (K + J) for K predicted and J true boxes: t is 1 for each hit and a half for each box that nearly hits.

    In the order in which they were said, each box takes the free reference box of its class (case, commas and spaces of
    the names do not count) that it overlaps most: a hit from ``threshold`` on, which takes the reference box away, and
    nearly one from ``near`` on, which does not (RS-HyRe-R1, arXiv 2604.17504): copies of such a box all earn.
    """

    threshold: float = 0.5
    near: float = 0.3
    needs: ClassVar[frozenset[str]] = frozenset({"boxes"})
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"threshold": (0, 1), "near": (0, 1)}

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        free = [(plain_name(item.category), item.box) for item in labels.instances or () if item.box is not None]
        predicted, true, earned = len(answer.prompts), len(free), 0.0
        for item in answer.prompts:
            name, box = plain_name(item.category), item.box
            overlaps = [box_iou(box, other) if box and name == label else 0.0 for label, other in free]
            best = max(overlaps, default=0.0)
            if best >= self.threshold:
                del free[overlaps.index(best)]
            earned += 1.0 if best >= self.threshold else 0.5 * (best >= self.near)
        return 2 * earned / (predicted + true) if predicted + true else 0.0


def listed(answer: Answer) -> int:
    """How many objects an answer lists, also those that cannot be used."""
    return len(answer.prompts) if answer.listed is None else answer.listed


def count_ratio(predicted: int, reference: int) -> float:
    """The smaller count over the larger one; 1 when both are 0."""
    return 1.0 if predicted == reference else min(predicted, reference) / max(predicted, reference)
