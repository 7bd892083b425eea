"""Point terms: distance of predicted and reference points, points inside boxes, their number, labels of candidates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from grasp_rl.geometry import FloatArray, match
from grasp_rl.interfaces import Labels, WeakLabels
from grasp_rl.rewards.terms.base import MODES, AnswerTerm, InstanceTerm, closeness, stretch
from grasp_rl.types import Answer, BoolMask, Box, MaskPrediction, Point, SpatialPrompt


@dataclass(frozen=True, kw_only=True)
class PointDistance(InstanceTerm):
    """Closeness of the positive points: d is :func:`point_distance`.

    VisionReasoner: 30 pixels of 840 for one point; Seg-Zero: 100 for two. An instance with a positive point outside its
    own box scores 0: the two must mean the same object.
    """

    mode: str = "soft"
    fraction: float = 30 / 840
    """Tolerance as a fraction of the image's longer side."""
    squash: bool = False
    """Distances are fractions of the width in x and of the height in y, as on a canvas that squashes the image."""
    needs: ClassVar[frozenset[str]] = frozenset({"points"})
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"fraction": (1e-6, 1)}
    choices: ClassVar[Mapping[str, Sequence[str]]] = {"mode": MODES}

    def table(
        self, predicted: Sequence[SpatialPrompt], reference: Sequence[SpatialPrompt], size: tuple[int, int]
    ) -> FloatArray:
        side, (in_x, in_y) = float(max(size)), stretch(size, self.squash).tolist()

        def placed(points: Sequence[Point]) -> list[Point]:
            return [(x * in_x, y * in_y) for x, y in points]

        def score(a: SpatialPrompt, b: SpatialPrompt) -> float:
            if not a.positive_points or not b.positive_points:
                return 0.0
            if a.box is not None and points_inside(a.positive_points, a.box) < 1:
                return 0.0
            distance = point_distance(placed(a.positive_points), placed(b.positive_points))
            return closeness(distance / side, self.mode, self.fraction)

        return np.array([[score(a, b) for b in reference] for a in predicted], float)


@dataclass(frozen=True, kw_only=True)
class PointsInside(InstanceTerm):
    """Share of the predicted positive points that lie inside the reference box."""

    needs: ClassVar[frozenset[str]] = frozenset({"boxes"})

    def table(
        self, predicted: Sequence[SpatialPrompt], reference: Sequence[SpatialPrompt], size: tuple[int, int]
    ) -> FloatArray:
        rows = [[points_inside(a.positive_points, b.box) if b.box else 0.0 for b in reference] for a in predicted]
        return np.array(rows, float)


@dataclass(frozen=True, kw_only=True)
class PointsInOwnBox(AnswerTerm):
    """Share of the instances all of whose positive points lie inside their own box."""

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        inside = [
            item.box is not None and points_inside(item.positive_points, item.box) == 1 for item in answer.prompts
        ]
        return sum(inside) / len(inside)


@dataclass(frozen=True, kw_only=True)
class PointCount(AnswerTerm):
    """Mean over instances of exp(-(n - ``ideal``)^2 / (2 ``sigma``^2)) for n positive points (SocioReasoner: 2, 2)."""

    ideal: int = 2
    sigma: float = 2.0
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"ideal": (0, 100), "sigma": (1e-3, 100)}

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        counts = [len(item.positive_points) for item in answer.prompts]
        return sum(math.exp(-((n - self.ideal) ** 2) / (2 * self.sigma**2)) for n in counts) / len(counts)


@dataclass(frozen=True, kw_only=True)
class PointLabels(AnswerTerm):
    """Share of the given candidate points whose label, 1 on the target and 0 off it, the answer says right (ReSaP).

    Labels are compared in order up to the shorter list and divided by the number of candidates. The rubric's rule for
    empty answers does not hold for it: such an answer has labels and no instances.
    """

    accuracy: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"candidates"})

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        true = labels.point_labels
        right = sum(said == label for said, label in zip(answer.point_labels, true, strict=False))
        return right / len(true) if true else 0.0


def point_distance(predicted: Sequence[Point], reference: Sequence[Point]) -> float:
    """Mean Euclidean distance of the predicted points to the reference ones under the best pairing.

    Every predicted point counts, and no reference point serves more of them than its share, ceil(P / K): so a point
    said twice cannot stand for two, and points sprayed around are not forgiven. Infinite where a number is not finite.
    """
    share = math.ceil(len(predicted) / len(reference))
    first, second = np.asarray(predicted, float), np.asarray(list(reference) * share, float)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return math.inf
    offsets = first[:, None, :] - second[None, :, :]
    distances = np.hypot(offsets[..., 0], offsets[..., 1])
    return float(np.mean([distances[pair] for pair in match(-distances)]))


def points_inside(points: Sequence[Point], region: Box | BoolMask) -> float:
    """Share of ``points`` inside a box or a mask [H, W]; 0 where there is none."""
    if not points:
        return 0.0
    if isinstance(region, np.ndarray):
        height, width = region.shape
        hits: list[bool] = [0 <= x < width and 0 <= y < height and bool(region[int(y), int(x)]) for x, y in points]
    else:
        hits = [region[0] <= x <= region[2] and region[1] <= y <= region[3] for x, y in points]
    return sum(hits) / len(hits)
