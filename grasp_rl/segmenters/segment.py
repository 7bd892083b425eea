"""From prompts to masks: the answers about one image through a segmenter; a prompt that fails costs only its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch

from grasp_rl.interfaces import Segmenter
from grasp_rl.types import Answer, Image, MaskPrediction, SpatialPrompt

log = logging.getLogger(__name__)

FAILURES = (RuntimeError, ValueError, cv2.error)
"""What a segmenter may raise for a prompt or image it cannot take; out of memory is a RuntimeError, too."""


def segment(segmenter: Segmenter, image: Image, answers: Sequence[Answer], *, name: str) -> list[MaskPrediction]:
    """The masks of each answer: the image is encoded once, and equal prompts are decoded once, all together.

    Where a call fails, the predictions that needed it have ``error`` set and no masks; a prompt that fails alone costs
    only the answers it stands in.

    Args:
        segmenter: frozen and promptable.
        image: [H, W, 3] uint8 RGB.
        answers: about this image, prompts in its pixels.
        name: of the image or sample, for the log.
    """
    size = (image.shape[0], image.shape[1])
    answers = [replace(answer, prompts=tuple(within(prompt, size) for prompt in answer.prompts)) for answer in answers]
    prompts = list(dict.fromkeys(prompt for answer in answers for prompt in answer.prompts))
    if not prompts:
        return [no_masks(size) for _ in answers]
    try:
        embedding = segmenter.encode(image)
    except FAILURES as error:
        log.warning("segmenter: could not encode %s: %s", name, error)
        text = f"{type(error).__name__}: {error}"
        return [no_masks(size, text, failed=len(a.prompts)) if a.prompts else no_masks(size) for a in answers]
    masks = _decode(segmenter, embedding, prompts, size, name)
    index = {prompt: number for number, prompt in enumerate(prompts)}
    return [masks([index[p] for p in a.prompts]) if a.prompts else no_masks(size) for a in answers]


def within(prompt: SpatialPrompt, size: tuple[int, int]) -> SpatialPrompt:
    """``prompt`` with its box's corners in order, at least a pixel apart and, like its points, within the image.

    Only a reader that keeps what a released system keeps lets other ones through; the rest come back as they are.

    Args:
        prompt: in original-image pixels.
        size: (height, width) of the image.
    """
    height, width = size
    box, points = prompt.box, prompt.point_coords
    if box is not None and not (0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height):
        x0, x1 = (min(max(x, 0.0), width) for x in sorted(box[::2]))
        y0, y1 = (min(max(y, 0.0), height) for y in sorted(box[1::2]))
        x0, y0 = min(x0, width - 1), min(y0, height - 1)
        box = (x0, y0, max(x1, x0 + 1), max(y1, y0 + 1))
    if not all(0 <= x < width and 0 <= y < height for x, y in points):
        points = tuple((min(max(x, 0.5), width - 0.5), min(max(y, 0.5), height - 0.5)) for x, y in points)
    if box is prompt.box and points is prompt.point_coords:
        return prompt
    return replace(prompt, box=box, point_coords=points)


def _decode(
    segmenter: Segmenter, embedding: Any, prompts: Sequence[SpatialPrompt], size: tuple[int, int], name: str
) -> Callable[[Sequence[int]], MaskPrediction]:
    """The masks of ``prompts``, as a function of their indices; where the call fails, each prompt is tried alone."""
    try:
        return segmenter.decode(embedding, prompts).rows
    except FAILURES as error:
        log.warning("segmenter: decoding %d prompts of %s failed (%s)", len(prompts), name, error)
    singles: list[MaskPrediction] = []
    for prompt in prompts:
        try:
            singles.append(segmenter.decode(embedding, [prompt]))
        except FAILURES as error:
            singles.append(no_masks(size, f"{type(error).__name__}: {error}", failed=1))

    def chosen(indices: Sequence[int]) -> MaskPrediction:
        parts = [singles[i] for i in indices]
        errors = [part.error for part in parts if part.error is not None]
        return no_masks(size, errors[0], failed=len(errors)) if errors else joined(parts)

    return chosen


def joined(parts: Sequence[MaskPrediction]) -> MaskPrediction:
    """Several predictions for one image as one, in order."""
    masks = [part.masks for part in parts]
    stacked = np.concatenate(masks) if isinstance(masks[0], np.ndarray) else torch.cat(masks)
    return MaskPrediction(masks=stacked, iou_predictions=np.concatenate([part.iou_predictions for part in parts]))


def no_masks(size: tuple[int, int], error: str | None = None, *, failed: int = 0) -> MaskPrediction:
    """The prediction for an answer without prompts, or one that failed: zero masks of ``size`` (height, width)."""
    masks = np.zeros((0, *size), dtype=np.bool_)
    return MaskPrediction(masks=masks, iou_predictions=np.zeros(0, dtype=np.float32), error=error, failed=failed)
