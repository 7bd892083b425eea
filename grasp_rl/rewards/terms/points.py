"""Point terms: distance of predicted and reference points, and points inside the reference box."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from grasp_rl.geometry import FloatArray, match
from grasp_rl.rewards.terms.base import MODES, InstanceTerm, closeness
from grasp_rl.types import BoolMask, Box, Point, SpatialPrompt


@dataclass(frozen=True, kw_only=True)
class PointDistance(InstanceTerm):
    """Closeness of the positive points: d is :func:`point_distance`.

    VisionReasoner: 30 pixels of 840 for one point; Seg-Zero: 100 for two. An instance with a positive point outside its
    own box scores 0: the two must mean the same object.
    """

    mode: str = "soft"
    fraction: float = 30 / 840
    """Tolerance as a fraction of the image's longer side."""
    needs: ClassVar[frozenset[str]] = frozenset({"points"})
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"fraction": (1e-6, 1)}
    choices: ClassVar[Mapping[str, Sequence[str]]] = {"mode": MODES}

    def table(self, predicted: Sequence[SpatialPrompt], reference: Sequence[SpatialPrompt], side: float) -> FloatArray:
        def score(a: SpatialPrompt, b: SpatialPrompt) -> float:
            if not a.positive_points or not b.positive_points:
                return 0.0
            if a.box is not None and points_inside(a.positive_points, a.box) < 1:
                return 0.0
            return closeness(point_distance(a.positive_points, b.positive_points) / side, self.mode, self.fraction)

        return np.array([[score(a, b) for b in reference] for a in predicted], float)


@dataclass(frozen=True, kw_only=True)
class PointsInside(InstanceTerm):
    """Share of the predicted positive points that lie inside the reference box."""

    needs: ClassVar[frozenset[str]] = frozenset({"boxes"})

    def table(self, predicted: Sequence[SpatialPrompt], reference: Sequence[SpatialPrompt], side: float) -> FloatArray:
        rows = [[points_inside(a.positive_points, b.box) if b.box else 0.0 for b in reference] for a in predicted]
        return np.array(rows, float)


def point_distance(predicted: Sequence[Point], reference: Sequence[Point]) -> float:
    """Mean Euclidean distance in pixels of the predicted points to the reference ones under the best pairing.

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
