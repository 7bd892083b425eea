"""Rewarding: parse completions, segment what they say, and reward the result.

The G siblings of one sample share its image and the segmenter's embedding of it. A mask-free reward is handed
references that cannot hold a mask, and no mask is predicted for it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.geometry import outside
from grasp_rl.interfaces import CoordinateFrame, Labels, Rubric, Segmenter, WeakLabels
from grasp_rl.prompts.parse import parse
from grasp_rl.types import (
    Answer,
    Completion,
    Image,
    MaskPrediction,
    RewardBreakdown,
    Rollout,
    Sample,
    SegmentedRollout,
    SpatialPrompt,
)

log = logging.getLogger(__name__)

FAILURES = (RuntimeError, ValueError, cv2.error)
"""What a segmenter may raise for a prompt or image it cannot take; out of memory is a RuntimeError, too."""


@dataclass(frozen=True, kw_only=True)
class RewardPipeline:
    """Follows completions of one sample through parsing, segmentation and reward."""

    segmenter: Segmenter
    reward: Rubric
    prompt: PromptConfig
    parsing: ParsingConfig
    always_segment: bool = False
    """Predict masks even where the reward needs none: evaluation does."""

    def run(
        self,
        sample: Sample,
        frame: Any,
        completions: Sequence[Completion],
        step: int | None = None,
        previous: Sequence[Answer] | None = None,
    ) -> list[SegmentedRollout]:
        """One rollout per completion; the image is encoded at most once, and only if some answer needs it.

        An instance that lies in ignored pixels alone is neither rewarded nor punished.

        Args:
            sample: with a mask, boxes and points, as the reward's ``needs`` say.
            frame: the policy's coordinate frame for this image, or a sequence with that of each completion.
            completions: the siblings.
            step: the optimizer step that the reward's schedules are at; None for their end.
            previous: each sibling's answer of the turn before; None in the first turn.

        Raises:
            ConfigError: the sample lacks what the reward needs.
        """
        answers = self.read(frame, completions, previous)
        predictions: list[MaskPrediction | None] = [None] * len(answers)
        if self.always_segment or "mask" in self.reward.needs:
            predictions = list(segment(self.segmenter, sample.image, answers, name=sample.sample_id))
        rewards = self.rewards(sample, answers, predictions, step)
        return [
            SegmentedRollout(completion=c, answer=a, masks=p, reward=reward)
            for c, a, p, reward in zip(completions, answers, predictions, rewards, strict=True)
        ]

    def read(
        self, frame: Any, completions: Sequence[Completion], previous: Sequence[Answer] | None = None
    ) -> list[Answer]:
        """What each completion says, with its text and length; see :meth:`run`."""
        frames = [frame] * len(completions) if isinstance(frame, CoordinateFrame) else frame
        before: Sequence[Answer | None] = previous or [None] * len(completions)
        return [
            replace(
                parse(c.text, self.prompt, its, self.parsing), text=c.text, tokens=len(c.token_ids), previous=earlier
            )
            for c, its, earlier in zip(completions, frames, before, strict=True)
        ]

    def rewards(
        self,
        sample: Sample,
        answers: Sequence[Answer],
        predictions: Sequence[MaskPrediction | None],
        step: int | None = None,
    ) -> list[RewardBreakdown]:
        """The reward of each answer with its masks, instances in ignored pixels alone left out.

        Raises:
            ConfigError: the sample lacks what the reward needs.
        """
        labels = self.labels(sample)
        counted = [replace(a, prompts=outside(a.prompts, sample.ignore_mask)) for a in answers]
        return self.reward.score_group(counted, labels, predictions, step)

    def labels(self, sample: Sample) -> WeakLabels | Labels:
        """What the reward may see of ``sample``."""
        if sample.weak_labels is None and self.reward.needs & {"boxes", "points"}:
            raise ConfigError(
                f"reward: sample {sample.sample_id} has no boxes or points and this reward needs them; take a mask "
                "reward such as reward=think2seg, or data with boxes and points"
            )
        instances = sample.weak_labels
        name = sample.attributes.get("category")
        if instances is not None and name is not None:
            instances = tuple(replace(item, category=item.category or str(name)) for item in instances)
        about: dict[str, Any] = {
            "image": sample.image if "image" in self.reward.needs else None,
            "query": sample.query,
            "choice": sample.choice,
            "relations": sample.relations,
            "point_labels": sample.candidates.point_labels if sample.candidates is not None else (),
        }
        if "mask" not in self.reward.needs:
            return WeakLabels(instances=instances or (), image_size=sample.size, **about)
        if sample.target_mask is None:
            raise ConfigError(
                f"reward: sample {sample.sample_id} has no mask and this reward needs one; take a mask-free one, such "
                "as reward=grasp, or data with masks"
            )
        return Labels(
            target_mask=sample.target_mask,
            instances=instances,
            ignore_mask=sample.ignore_mask,
            **about,
        )


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


class FailureLimit:
    """Stops a run whose segmenter fails on most prompts: its masks would all be empty, and its rewards say nothing.

    Args:
        share: of the prompts that may fail.
        key: config key that sets it, for the message.
    """

    def __init__(self, share: float, key: str) -> None:
        self.share, self.key = share, key

    def check(self, rollouts: Iterable[Rollout], where: str) -> None:
        """Demand that the segmenter failed on no more than the share of the rollouts' prompts.

        Raises:
            SegmenterError: it did; the message names the count and the most frequent error.
        """
        tried = failed = 0
        errors: Counter[str] = Counter()
        for rollout in rollouts:
            tried += rollout.segmented_prompts
            failed += rollout.failed_prompts
            if rollout.segmenter_error is not None:
                errors[rollout.segmenter_error] += 1
        if failed > self.share * tried:
            raise SegmenterError(
                f"the segmenter failed on {failed} of {tried} prompts of {where}: {errors.most_common(1)[0][0]}; mend "
                f"that, or raise {self.key}={self.share:g}, the share of prompts that may fail"
            )


class SegmenterError(RuntimeError):
    """The segmenter fails on most prompts."""


def joined(parts: Sequence[MaskPrediction]) -> MaskPrediction:
    """Several predictions for one image as one, in order."""
    masks = [part.masks for part in parts]
    stacked = np.concatenate(masks) if isinstance(masks[0], np.ndarray) else torch.cat(masks)
    return MaskPrediction(masks=stacked, iou_predictions=np.concatenate([part.iou_predictions for part in parts]))


def no_masks(size: tuple[int, int], error: str | None = None, *, failed: int = 0) -> MaskPrediction:
    """The prediction for an answer without prompts, or one that failed: zero masks of ``size`` (height, width)."""
    masks = np.zeros((0, *size), dtype=np.bool_)
    return MaskPrediction(masks=masks, iou_predictions=np.zeros(0, dtype=np.float32), error=error, failed=failed)
