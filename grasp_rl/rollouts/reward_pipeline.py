"""Rewarding: parse completions, segment what they say, and reward the result.

The G siblings of one sample share its image and the segmenter's embedding of it. A mask-free reward is handed
references that cannot hold a mask, and no mask is predicted for it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.geometry import outside
from grasp_rl.interfaces import CoordinateFrame, Labels, Rubric, Segmenter, WeakLabels
from grasp_rl.prompts.parse import parse
from grasp_rl.segmenters.segment import segment
from grasp_rl.types import (
    Answer,
    Completion,
    MaskPrediction,
    RewardBreakdown,
    Rollout,
    Sample,
    SegmentedRollout,
)

log = logging.getLogger(__name__)


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
