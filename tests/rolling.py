"""Rollouts for tests: generate and pipeline a few samples in one go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rubrics import rubric
from torch import Tensor

from grasp_rl.config.schema import (
    AlgorithmConfig,
    OptimizerConfig,
    ParsingConfig,
    PromptConfig,
    RolloutConfig,
    RunConfig,
)
from grasp_rl.distributed.local import LocalEngine
from grasp_rl.grpo.loss import StepSize
from grasp_rl.rollouts.collect import RolloutBatch, collect_rollouts
from grasp_rl.rollouts.generators.in_process import InProcess
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.rollouts.reward_worker import RewardWorker
from grasp_rl.segmenters.box_fill import BoxFillSegmenter
from grasp_rl.training.update import PolicyUpdater, make_reference
from grasp_rl.types import Completion, RolloutGroup, Sample


def generate(
    policy: Any, samples: Sequence[Sample], prompt: PromptConfig, *, group_size: int, config: RolloutConfig,
    seed: int = 0, step: int = 0,
) -> list[list[Completion]]:  # fmt: skip
    """G completions of every sample, in order."""
    prompts = [policy.encode(s.image, s.query, prompt) for s in samples]
    found = dict(
        InProcess().generate(policy, samples, prompts, group_size=group_size, config=config, seed=seed, step=step)
    )
    return [found[index] for index in range(len(samples))]


def rollouts(
    policy: Any, samples: Sequence[Sample], *, algorithm: AlgorithmConfig, rollout: RolloutConfig,
    prompt: PromptConfig, reward: Any = None, generator: Any = None, step: int = 0,
) -> RolloutBatch:  # fmt: skip
    """The rollouts of a step over ``samples``, box_fill for a segmenter."""
    pipeline = RewardPipeline(
        segmenter=BoxFillSegmenter(), reward=reward or rubric("grasp"), prompt=prompt, parsing=ParsingConfig()
    )
    config = RunConfig(algorithm=algorithm, rollout=rollout, prompt=prompt)
    return collect_rollouts(policy, generator or InProcess(), RewardWorker(pipeline), lambda _: samples, config, step)


def with_advantages(groups: Sequence[RolloutGroup], gains: Tensor) -> list[RolloutGroup]:
    return [replace(group, advantages=tuple(row)) for group, row in zip(groups, gains.tolist(), strict=True)]


def size_of(groups: Sequence[RolloutGroup], max_tokens: int) -> StepSize:
    lengths = [len(r.completion.token_ids) for group in groups for r in group.rollouts]
    return StepSize(sequences=len(lengths), tokens=sum(lengths), max_tokens=max_tokens)


def update(
    policy: Any, groups: Sequence[RolloutGroup], algorithm: AlgorithmConfig, rollout: RolloutConfig, *,
    engine: LocalEngine | None = None, reference: Any = None,
) -> dict[str, float]:  # fmt: skip
    """One call of an updater of its own."""
    engine = engine or LocalEngine(policy, OptimizerConfig(lr=1e-3, max_grad_norm=1e9), 10)
    reference = reference or make_reference(policy, algorithm.beta)
    step = PolicyUpdater(policy, engine, reference, algorithm=algorithm, rollout=rollout)
    return step(groups, size_of(groups, rollout.max_new_tokens))
