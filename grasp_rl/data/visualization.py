"""Overlays: an image with masks, boxes, points and a caption; RGB in, RGB out."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from grasp_rl.data.caption import caption
from grasp_rl.types import BoolMask, Image, Sample, SpatialPrompt

TRUTH, PREDICTED, FOREGROUND, BACKGROUND = (60, 220, 120), (255, 70, 70), (255, 230, 0), (0, 200, 255)
PANEL = 336
"""Longer side of a drawn image in pixels; small scenes are enlarged to it, photographs reduced."""


def draw_overlay(
    image: Image,
    *,
    truth: BoolMask | None = None,
    mask: BoolMask | None = None,
    prompts: Sequence[SpatialPrompt] = (),
    side: int = PANEL,
) -> Image:
    """``image`` [H, W, 3] at ``side`` pixels with the true outline, a tinted predicted mask, boxes and points."""
    height, width = image.shape[:2]
    factor = side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    method = cv2.INTER_NEAREST if factor > 1 else cv2.INTER_AREA
    canvas = np.ascontiguousarray(cv2.resize(image, size, interpolation=method))
    if mask is not None:
        inside = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool)
        canvas[inside] = (0.55 * canvas[inside] + 0.45 * np.array(PREDICTED)).astype(np.uint8)
    if truth is not None:
        enlarged = cv2.resize(truth.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(enlarged, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outlines, -1, TRUTH, 2)
    for prompt in prompts:
        if prompt.box is not None:
            x0, y0, x1, y1 = (round(v * factor) for v in prompt.box)
            cv2.rectangle(canvas, (x0, y0), (max(x0, x1 - 1), max(y0, y1 - 1)), (255, 255, 255), 3)
            cv2.rectangle(canvas, (x0, y0), (max(x0, x1 - 1), max(y0, y1 - 1)), PREDICTED, 1)
        for (x, y), label in zip(prompt.point_coords, prompt.point_labels, strict=True):
            centre = (round(x * factor), round(y * factor))
            cv2.circle(canvas, centre, 5, (0, 0, 0), -1)
            cv2.circle(canvas, centre, 4, FOREGROUND if label else BACKGROUND, -1)
    return np.asarray(canvas, dtype=np.uint8)


def with_caption(image: Image, text: str) -> Image:
    """``image`` with a white strip of wrapped text above it; a narrow one is widened with white on the right."""
    strip = caption(text, image.shape[1])
    space = strip.shape[1] - image.shape[1]
    return np.concatenate([strip, np.pad(image, ((0, 0), (0, space), (0, 0)), constant_values=255)])


def draw_sample(sample: Sample) -> Image:
    """A dataset's sample: question, true outline and, where known, the weak labels."""
    image = draw_overlay(sample.image, truth=sample.target_mask, prompts=sample.weak_labels or ())
    return with_caption(image, sample.query)
