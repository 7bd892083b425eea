"""Rollouts: generate G completions of each prompt, parse them, segment what they say, and reward the result.

The group is the unit: the G siblings of one sample share its picture, its prefill and its segmenter embedding. A
mask-free reward is handed references that cannot hold a mask, and no mask is predicted for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from grasp_rl.config import ConfigError, ParsingConfig, PromptConfig, RolloutConfig
from grasp_rl.parsing import parse
from grasp_rl.protocols import CueReference, MaskReference, Reward, Segmenter
from grasp_rl.sampling import token_uniforms
from grasp_rl.types import Answer, Completion, MaskPrediction, Rollout, RolloutGroup, Sample


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Follows completions of one sample through parsing, segmentation and reward."""

    segmenter: Segmenter
    reward: Reward
    prompt: PromptConfig
    parsing: ParsingConfig
    always_segment: bool = False
    """Predict masks even where the reward needs none: evaluation does."""

    def follow(self, sample: Sample, frame: Any, completions: Sequence[Completion]) -> list[Rollout]:
        """One rollout per completion; the picture is encoded at most once, and only if some answer needs it.

        Args:
            sample: with a mask or cues, as the reward's ``supervision`` demands.
            frame: the policy's coordinate frame for this picture.
            completions: the siblings.

        Raises:
            ConfigError: the sample has no mask, or no cues, and the reward needs them.
        """
        reference = self.reference(sample)
        answers = [parse(c.text, self.prompt, frame, self.parsing) for c in completions]
        predictions: list[MaskPrediction | None] = [None] * len(answers)
        if self.always_segment or self.reward.supervision == "mask":
            predictions = list(self._segment(sample, answers))
        return [
            Rollout(completion=c, answer=a, masks=p, reward=self.reward(a, reference, p))
            for c, a, p in zip(completions, answers, predictions, strict=True)
        ]

    def reference(self, sample: Sample) -> CueReference | MaskReference:
        """What the reward may see of ``sample``."""
        if self.reward.supervision == "cues":
            if sample.cues is None:
                raise ConfigError(
                    f"reward: sample {sample.sample_id} has no boxes or points and this reward needs them; take a mask "
                    "reward such as reward=think2seg, or data with cues"
                )
            return CueReference(cues=sample.cues, image_size=sample.size)
        if sample.target_mask is None:
            raise ConfigError(
                f"reward: sample {sample.sample_id} has no mask and this reward needs one; take a mask-free one, such "
                "as reward=grasp, or data with masks"
            )
        return MaskReference(target_mask=sample.target_mask)

    def _segment(self, sample: Sample, answers: Sequence[Answer]) -> list[MaskPrediction]:
        embedding = self.segmenter.encode(sample.image) if any(a.prompts for a in answers) else None
        return [self.segmenter.decode(embedding, a.prompts) if a.prompts else no_masks(sample.size) for a in answers]


def no_masks(size: tuple[int, int]) -> MaskPrediction:
    """The prediction for an answer without prompts: zero masks of ``size`` (height, width)."""
    return MaskPrediction(masks=np.zeros((0, *size), dtype=np.bool_), iou_predictions=np.zeros(0, dtype=np.float32))


def generate(
    policy: Any,
    samples: Sequence[Sample],
    prompt: PromptConfig,
    *,
    group_size: int,
    config: RolloutConfig,
    seed: int,
    step: int,
) -> tuple[list[Any], list[list[Completion]]]:
    """Encoded prompts and G sampled completions of every sample. Draws are keyed; the batch's layout does not matter.

    Args:
        policy: encodes, embeds and generates (see grasp_rl.policies.vlm.VlmPolicy).
        samples: one per prompt of the optimizer step.
        prompt: the prompt scheme.
        group_size: G.
        config: temperature, length, rows decoded together.
        seed: the run's.
        step: the optimizer step, part of every draw's key.
    """
    prompts = [policy.encode(s.image, s.query, prompt) for s in samples]
    completions: list[list[Completion]] = []
    at_once = max(1, config.batch_rows // group_size)
    with torch.no_grad():
        for start in range(0, len(prompts), at_once):
            ids = [s.sample_id for s in samples[start : start + at_once]]
            length = config.max_new_tokens
            uniforms = [[token_uniforms(seed, step, name, g, length) for g in range(group_size)] for name in ids]
            completions += policy.generate(
                policy.embed(prompts[start : start + at_once]),
                torch.from_numpy(np.array(uniforms)),
                group_size=group_size,
                max_new_tokens=length,
                temperature=config.temperature,
            )
    return prompts, completions


def follow_groups(
    judge: Judge, samples: Sequence[Sample], prompts: Sequence[Any], completions: Sequence[Sequence[Completion]]
) -> list[RolloutGroup]:
    """Every sample's completions followed to their rewards."""
    return [
        RolloutGroup(sample=s, prompt=p, rollouts=tuple(judge.follow(s, p.frame, c)))
        for s, p, c in zip(samples, prompts, completions, strict=True)
    ]
