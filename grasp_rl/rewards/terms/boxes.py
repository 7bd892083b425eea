"""Box terms: IoU and edge distance of predicted and reference boxes, and the number of instances."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from grasp_rl.geometry import FloatArray, box_iou
from grasp_rl.interfaces import Labels, WeakLabels
from grasp_rl.rewards.matching import repeats
from grasp_rl.rewards.terms.base import MODES, AnswerTerm, InstanceTerm, closeness
from grasp_rl.types import Answer, Box, MaskPrediction, SpatialPrompt


@dataclass(frozen=True, kw_only=True)
class BoxIou(InstanceTerm):
    """IoU of the two boxes (``soft``), or 1 where it exceeds ``threshold`` (Seg-Zero, arXiv 2503.06520: 0.5)."""

    mode: str = "soft"
    threshold: float = 0.5
    margin: float = 0.0
    """Added to every width and height, as a fraction of the image's longer side. Seg-Zero and VisionReasoner count
    pixels inclusively, so that a box of x0..x1 is x1 - x0 + 1 wide: 1/840 of their canvas."""
    needs: ClassVar[frozenset[str]] = frozenset({"boxes"})
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"threshold": (0, 1), "margin": (0, 1)}
    choices: ClassVar[Mapping[str, Sequence[str]]] = {"mode": MODES}

    def table(self, predicted: Sequence[SpatialPrompt], reference: Sequence[SpatialPrompt], side: float) -> FloatArray:
        extra = self.margin * side

        def score(a: SpatialPrompt, b: SpatialPrompt) -> float:
            iou = box_iou(_grown(a.box, extra), _grown(b.box, extra)) if a.box and b.box else 0.0
            iou = iou if math.isfinite(iou) else 0.0
            return iou if self.mode == "soft" else float(iou > self.threshold)

        return np.array([[score(a, b) for b in reference] for a in predicted], float)


@dataclass(frozen=True, kw_only=True)
class BoxL1(InstanceTerm):
    """Closeness of the two boxes: d is the mean distance of the four edges (Seg-Zero: 10 pixels of 840)."""

    mode: str = "threshold"
    fraction: float = 10 / 840
    """Tolerance as a fraction of the image's longer side."""
    needs: ClassVar[frozenset[str]] = frozenset({"boxes"})
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"fraction": (1e-6, 1)}
    choices: ClassVar[Mapping[str, Sequence[str]]] = {"mode": MODES}

    def table(self, predicted: Sequence[SpatialPrompt], reference: Sequence[SpatialPrompt], side: float) -> FloatArray:
        def score(a: SpatialPrompt, b: SpatialPrompt) -> float:
            if a.box is None or b.box is None:
                return 0.0
            distance = sum(abs(u - v) for u, v in zip(a.box, b.box, strict=True)) / 4 / side
            return closeness(distance, self.mode, self.fraction)

        return np.array([[score(a, b) for b in reference] for a in predicted], float)


@dataclass(frozen=True, kw_only=True)
class Count(AnswerTerm):
    """The smaller number of instances over the larger one; an instance that repeats another does not count."""

    needs: ClassVar[frozenset[str]] = frozenset({"boxes"})

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        return count_ratio(repeats(answer.prompts).count(False), len(labels.instances or ()))


def _grown(box: Box, extra: float) -> Box:
    """``box`` with its right and lower edges ``extra`` further out."""
    return (box[0], box[1], box[2] + extra, box[3] + extra) if extra else box


def count_ratio(predicted: int, reference: int) -> float:
    """The smaller count over the larger one; 1 when both are 0."""
    return 1.0 if predicted == reference else min(predicted, reference) / max(predicted, reference)
