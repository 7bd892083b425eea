"""From rollout groups to what a forward sees: padding, group indices, divisors, advantages."""

from __future__ import annotations

from typing import Any

import pytest
import rolling
import torch
from scripted import Paying, Scripted, said

from grasp_rl.config.schema import AlgorithmConfig, PromptConfig, RolloutConfig
from grasp_rl.grpo.loss import StepSize
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.rollouts.collect import RolloutBatch
from grasp_rl.training.collate import batch_of, micro_batches, padded
from grasp_rl.types import FinishReason, Sample

COMPACT = PromptConfig(template="compact")
SETTINGS = RolloutConfig(max_new_tokens=8)


def roll(
    policy: TinyPolicy, samples: list[Sample], generator: Scripted, reward: Paying, **algorithm: Any
) -> RolloutBatch:
    return rolling.rollouts(
        policy, samples, algorithm=AlgorithmConfig(group_size=2, **algorithm), rollout=SETTINGS, prompt=COMPACT,
        reward=reward, generator=generator,
    )  # fmt: skip


def test_short_rows_are_padded_behind() -> None:
    rows = [torch.tensor([1.0, 2.0]), torch.tensor([3.0]), torch.zeros(0)]
    assert padded(rows, 3).tolist() == [[1, 2, 0], [3, 0, 0], [0, 0, 0]]


def test_a_batch_by_hand(random_policy: TinyPolicy, samples: list[Sample]) -> None:
    """Two groups of completions of 1, 3, 2 and 2 tokens, with indices 4 and 7 of their step."""
    generator = Scripted([said(5), said(6, 7, 8)], [said(9, 10), said(11, 12)])
    groups = list(roll(random_policy, samples[:2], generator, Paying(1.0, 0.0, 3.0, 0.0)))
    batch = batch_of([(4, groups[0]), (7, groups[1])])
    assert batch.group_indices == (4, 7)
    assert batch.completions == (((5,), (6, 7, 8)), ((9, 10), (11, 12)))
    expected = torch.tensor([[[-0.5, 0, 0], [-0.6, -0.7, -0.8]], [[-0.9, -1.0, 0], [-1.1, -1.2, 0]]])
    assert torch.equal(batch.sampled_logp, expected)
    assert batch.advantages.tolist() == [[0.5, -0.5], [1.5, -1.5]]


def test_batches_keep_the_order_and_the_indices(random_policy: TinyPolicy, samples: list[Sample]) -> None:
    groups = roll(random_policy, samples[:5], Scripted([said(5), said(6)]), Paying(1.0, 0.0, 2.0, 2.0))
    whole = list(micro_batches(groups, size=2, skip_zero=False))
    assert [batch.group_indices for batch in whole] == [(0, 1), (2, 3), (4,)]
    some = list(micro_batches(groups, size=2, skip_zero=True))
    assert [batch.group_indices for batch in some] == [(0, 2), (4,)]
    assert [g.sample.sample_id for batch in some for g in batch.groups] == [samples[i].sample_id for i in (0, 2, 4)]


@pytest.mark.parametrize(("scale", "expected"), [(False, 0.5), (True, 0.5 / (0.5**0.5 + 1e-4))])
def test_rollouts_are_compared_as_the_algorithm_says(
    random_policy: TinyPolicy, samples: list[Sample], scale: bool, expected: float
) -> None:
    """Rewards 1 and 0: half a point from their mean, their sample standard deviation is the root of 1/2."""
    rollouts = roll(random_policy, samples[:1], Scripted([said(5), said(6)]), Paying(1.0, 0.0), scale_advantages=scale)
    assert [group.advantages for group in rollouts] == [pytest.approx((expected, -expected))]


def test_the_divisors_count_what_is_learned_from(random_policy: TinyPolicy, samples: list[Sample]) -> None:
    """Of three groups the second is left out, because its logits were not finite: 2 * 2 completions of 1 + 2 tokens."""
    sound, torn = [said(5), said(6, 7)], [said(8, 9, 10), said(11, reason=FinishReason.NOT_FINITE)]
    rollouts = roll(random_policy, samples[:3], Scripted(sound, torn, sound), Paying(1.0, 0.0))
    assert len(list(rollouts)) == 2
    assert rollouts.size(8) == StepSize(sequences=4, tokens=6, max_tokens=8)


def test_the_divisors_of_dynamic_sampling_count_what_is_learned_from(
    random_policy: TinyPolicy, samples: list[Sample]
) -> None:
    """The group whose siblings earned the same is asked for, and left out of the step."""
    generator = Scripted([said(5), said(6, 7)], [said(8, 9, 10), said(11)])
    rollouts = roll(
        random_policy, samples[:2], generator, Paying(1.0, 0.0, 2.0, 2.0), sampling_rounds=2, prompts_per_step=1
    )
    assert [group.sample.sample_id for group in rollouts] == [samples[0].sample_id]
    assert rollouts.size(8) == StepSize(sequences=2, tokens=3, max_tokens=8)
