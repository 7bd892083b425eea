"""Demonstrations for supervised fine-tuning: thoughts, and weak labels as they are or with a poor pointer's bias and
noise.

GeoSeg (arXiv 2603.03983) reports systematic shifts of the boxes that multimodal language models draw. The warm start of
the `tiny` policy imitates such demonstrations last, so that it sees well but points badly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grasp_rl.types import Point, Sample, SpatialPrompt

THOUGHTS = (
    "The question asks for {query}. {found}.",
    "I look for {query}. {found}.",
    "To answer, find {query}: {found}.",
    "{found} for {query}.",
)
"""Written here; the query goes in as it stands, less the mark at its end."""


def thought_of(sample: Sample, how: str, rng: np.random.Generator, instances: int) -> str:
    """The thought that a demonstration has.

    Args:
        sample: the question.
        how: ``given`` by the dataset, ``none``, or ``template``; see ``sft.reasoning``.
        rng: draws the sentence.
        instances: of the demonstrated answer.
    """
    if how == "given":
        return sample.reasoning or ""
    if how == "none":
        return ""
    places = {0: "nothing fits", 1: "one place fits"}.get(instances, f"{instances} places fit")
    said = THOUGHTS[int(rng.integers(len(THOUGHTS)))]
    thought = said.format(query=sample.query.strip().rstrip(".?!"), found=places)
    return thought[0].upper() + thought[1:]


def distort(
    weak_labels: Sequence[SpatialPrompt],
    rng: np.random.Generator,
    image_size: tuple[int, int],
    *,
    scale: float,
    shift: float,
    noise: float,
) -> tuple[SpatialPrompt, ...]:
    """Boxes and points moved away from the truth, inside an image of ``image_size`` (height, width).

    Args:
        weak_labels: instances with a box, in original-image pixels.
        rng: draws the noise.
        image_size: (height, width) in pixels.
        scale: every side of the box moves outwards by this share of the box's width or height; negative shrinks.
        shift: box and points move right and down by this share of the box's width and height.
        noise: standard deviation of each edge's and point's own error, as a share of the box's width and height.
    """
    if not (scale or shift or noise):
        return tuple(weak_labels)
    return tuple(_distort_one(weak_label, rng, image_size, scale, shift, noise) for weak_label in weak_labels)


def _distort_one(
    weak_label: SpatialPrompt,
    rng: np.random.Generator,
    image_size: tuple[int, int],
    scale: float,
    shift: float,
    noise: float,
) -> SpatialPrompt:
    if weak_label.box is None:
        raise ValueError("distort: a weak label without a box has no side to measure the distortion by")
    x0, y0, x1, y1 = weak_label.box
    side = np.array([x1 - x0, y1 - y0])
    centre = np.array([x0 + x1, y0 + y1]) / 2
    limit = np.array([image_size[1], image_size[0]], dtype=float)
    corners = np.array([[x0, y0], [x1, y1]])
    corners = centre + (corners - centre) * (1 + 2 * scale) + side * (shift + noise * rng.standard_normal((2, 2)))
    low, high = np.minimum(corners[0], corners[1]), np.maximum(corners[0], corners[1])
    low = np.clip(low, 0, limit - 1)
    high = np.clip(np.maximum(high, low + 1), 1, limit)
    points: list[Point] = []
    for point in weak_label.point_coords:
        moved = np.array(point) + side * (shift + noise * rng.standard_normal(2))
        x, y = np.clip(moved, 0.5, limit - 0.5)
        points.append((float(x), float(y)))
    return SpatialPrompt(
        box=(float(low[0]), float(low[1]), float(high[0]), float(high[1])),
        point_coords=tuple(points),
        point_labels=weak_label.point_labels,
    )
