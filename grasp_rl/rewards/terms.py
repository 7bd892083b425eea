"""The terms rewards are made of: pure functions of answers and references, every value finite and in [0, 1].

Boxes and points are in original-image pixels. Terms over pairs are tables [M, N] for M predicted instances and N
reference ones. A pair that lacks what a term compares (a scheme without boxes, a cue without points) scores 0 in it,
and so does one with a number that is not finite.

Two shapes of a term that compares a distance d with a tolerance f, both as fractions of the picture's longer side:
``threshold`` is 1 where d < f, as published; ``soft`` is exp(-d / f), which still tells bad from worse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from grasp_rl.config.errors import ConfigError
from grasp_rl.geometry import FloatArray, box_iou, match
from grasp_rl.types import Answer, BoolMask, Box, ParseStatus, Point, SpatialPrompt

MODES = ("soft", "threshold")


def check_number(key: str, value: object, low: float, high: float = math.inf) -> None:
    """Demand a finite number in [low, high].

    Raises:
        ConfigError: it is not; the message names ``reward.<key>``.
    """
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(number) and low <= number <= high):
        raise ConfigError(f"reward.{key}={value!r}: must be a finite number in [{low}, {high}]")


def check_mode(key: str, value: object) -> None:
    """Demand one of :data:`MODES`.

    Raises:
        ConfigError: it is not; the message names ``reward.<key>``.
    """
    if value not in MODES:
        raise ConfigError(f"reward.{key}={value!r}: must be one of {', '.join(MODES)}")


def think_format(answer: Answer) -> float:
    """1 iff the completion is one thought, then one answer, and nothing else."""
    return float(answer.think_layout)


def answer_format(answer: Answer, require_fence: bool = False) -> float:
    """1 iff the answer was read without repair, in a ```json fence where ``require_fence`` asks for one."""
    return float(answer.status is ParseStatus.OK and (answer.fenced or not require_fence))


def count_ratio(predicted: int, reference: int) -> float:
    """The smaller count over the larger one; 1 when both are 0."""
    return 1.0 if predicted == reference else min(predicted, reference) / max(predicted, reference)


def box_iou_table(
    predicted: Sequence[SpatialPrompt], cues: Sequence[SpatialPrompt], mode: str, threshold: float
) -> FloatArray:
    """[M, N] IoU of the boxes (``soft``), or 1 where it exceeds ``threshold``."""

    def score(a: SpatialPrompt, b: SpatialPrompt) -> float:
        iou = _finite(box_iou(a.box, b.box)) if a.box and b.box else 0.0
        return iou if mode == "soft" else float(iou > threshold)

    return np.array([[score(a, b) for b in cues] for a in predicted], float)


def box_l1_table(
    predicted: Sequence[SpatialPrompt], cues: Sequence[SpatialPrompt], mode: str, fraction: float, side: float
) -> FloatArray:
    """[M, N] closeness of the boxes: d is the mean distance of the four edges over ``side``."""

    def score(a: SpatialPrompt, b: SpatialPrompt) -> float:
        if a.box is None or b.box is None:
            return 0.0
        return closeness(sum(abs(u - v) for u, v in zip(a.box, b.box, strict=True)) / 4 / side, mode, fraction)

    return np.array([[score(a, b) for b in cues] for a in predicted], float)


def point_table(
    predicted: Sequence[SpatialPrompt], cues: Sequence[SpatialPrompt], mode: str, fraction: float, side: float
) -> FloatArray:
    """[M, N] closeness of the positive points: d is :func:`point_distance` over ``side``.

    An instance with a positive point outside its own box scores 0: the two must speak of the same thing.
    """

    def score(a: SpatialPrompt, b: SpatialPrompt) -> float:
        if not a.positive_points or not b.positive_points:
            return 0.0
        if a.box is not None and points_inside(a.positive_points, a.box) < 1:
            return 0.0
        return closeness(point_distance(a.positive_points, b.positive_points) / side, mode, fraction)

    return np.array([[score(a, b) for b in cues] for a in predicted], float)


def point_inside_table(predicted: Sequence[SpatialPrompt], cues: Sequence[SpatialPrompt]) -> FloatArray:
    """[M, N] share of the predicted positive points that lie inside the reference box."""
    table = [[points_inside(a.positive_points, b.box) if b.box else 0.0 for b in cues] for a in predicted]
    return np.array(table, float)


def closeness(distance: float, mode: str, fraction: float) -> float:
    """1 for no distance, by ``mode``: exp(-distance / fraction) or distance < fraction; 0 if it is not finite."""
    if not math.isfinite(distance):
        return 0.0
    return math.exp(-distance / fraction) if mode == "soft" else float(distance < fraction)


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


def repeats(predicted: Sequence[SpatialPrompt]) -> list[bool]:
    """For each instance whether an earlier one is the same: same box, same points in whatever order."""
    seen: set[object] = set()
    flags = []
    for item in predicted:
        key = (item.box, tuple(sorted(item.positive_points)), tuple(sorted(item.negative_points)))
        flags.append(key in seen)
        seen.add(key)
    return flags


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
