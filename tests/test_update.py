"""One optimizer step on the real policy: gradients, iterations, references, statistics."""

from __future__ import annotations

from typing import Any

import pytest
import rolling
import torch

from grasp_rl.config.schema import AlgorithmConfig, OptimizerConfig, PromptConfig, RolloutConfig
from grasp_rl.distributed.engine import learning_rate
from grasp_rl.distributed.local import LocalEngine
from grasp_rl.grpo.advantages import advantages
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.rollouts.metrics import rollout_statistics
from grasp_rl.training.collate import micro_batches, rewards_of
from grasp_rl.training.update import make_reference
from grasp_rl.types import RolloutGroup, Sample

ROLLOUT = RolloutConfig(max_new_tokens=12)
COMPACT = PromptConfig(template="compact")


def roll(policy: TinyPolicy, samples: list[Sample]) -> list[RolloutGroup]:
    algorithm = AlgorithmConfig(group_size=4)
    return list(rolling.rollouts(policy, samples, algorithm=algorithm, rollout=ROLLOUT, prompt=COMPACT))


def step(policy: TinyPolicy, groups: list[RolloutGroup], gains: torch.Tensor, **changes: Any) -> dict[str, float]:
    algorithm = AlgorithmConfig(**({"group_size": 4, "micro_batch_groups": 4} | changes))
    return rolling.update(policy, rolling.with_advantages(groups, gains), algorithm, ROLLOUT)


def weights(policy: TinyPolicy) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in policy.parameters()])


def some_gains(groups: int) -> torch.Tensor:
    return torch.randn(groups, 4, generator=torch.Generator().manual_seed(2))


def test_micro_batch_size_changes_nothing(samples: list[Sample]) -> None:
    moved = []
    for size in (1, 4):
        policy = TinyPolicy(weights="random")
        groups = roll(policy, samples[:4])
        row = step(policy, groups, some_gains(4), micro_batch_groups=size)
        moved.append((weights(policy), row["grad_norm"]))
    assert moved[0][1] == pytest.approx(moved[1][1], rel=1e-5)
    assert (moved[0][0] - moved[1][0]).abs().max() < 1e-4


def test_first_pass_is_on_policy_and_the_second_is_not(samples: list[Sample]) -> None:
    policy = TinyPolicy(weights="random")
    groups = roll(policy, samples[:2])
    once = step(policy, groups, some_gains(2))
    assert once["ratio"] == pytest.approx(1.0, abs=1e-6)
    assert once["clip_fraction"] == 0.0
    assert once["mismatch"] < 1e-5
    again = TinyPolicy(weights="random")
    twice = step(again, roll(again, samples[:2]), some_gains(2), iterations=2)
    assert twice["ratio"] != pytest.approx(1.0, abs=1e-6)
    assert twice["mismatch"] < 1e-5  # measured on the first pass only


@pytest.mark.parametrize("rank", [0, 2])
def test_kl_is_zero_before_the_first_step_and_not_after(samples: list[Sample], rank: int) -> None:
    policy = TinyPolicy(weights="random", lora_rank=rank)
    groups = roll(policy, samples[:2])
    algorithm = AlgorithmConfig(group_size=4, beta=0.1)
    engine = LocalEngine(policy, OptimizerConfig(lr=1e-2), 10)
    reference = make_reference(policy, algorithm.beta)
    groups = rolling.with_advantages(groups, some_gains(2))
    first = rolling.update(policy, groups, algorithm, ROLLOUT, engine=engine, reference=reference)
    for _ in range(3):
        later = rolling.update(policy, groups, algorithm, ROLLOUT, engine=engine, reference=reference)
    assert first["kl"] == pytest.approx(0.0, abs=1e-9)
    assert later["kl"] > 1e-6


def test_groups_without_advantage_are_left_out_only_when_they_add_nothing(samples: list[Sample]) -> None:
    policy = TinyPolicy(weights="random")
    groups = roll(policy, samples[:3])
    gains = some_gains(3)
    gains[1] = 0
    compared = rolling.with_advantages(groups, gains)
    assert [len(b.groups) for b in micro_batches(compared, size=8, skip_zero=True)] == [2]
    assert [b.places for b in micro_batches(compared, size=1, skip_zero=True)] == [(0,), (2,)]
    assert [len(b.groups) for b in micro_batches(compared, size=8, skip_zero=False)] == [3]
    skipped, kept = TinyPolicy(weights="random"), TinyPolicy(weights="random")
    a = step(skipped, groups, gains)
    b = step(kept, groups, gains, beta=1e-12)
    assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)


def test_a_step_without_any_advantage_moves_nothing(samples: list[Sample]) -> None:
    policy = TinyPolicy(weights="random")
    before = weights(policy)
    row = step(policy, roll(policy, samples[:2]), torch.zeros(2, 4))
    assert torch.equal(before, weights(policy))
    assert row["grad_norm"] == 0.0
    assert row["kl"] == 0.0


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    policy = TinyPolicy(weights="random")
    before = weights(policy)
    engine = LocalEngine(policy, OptimizerConfig(), 10)
    next(policy.parameters()).grad = torch.full_like(next(policy.parameters()), float("nan"))
    report = engine.step()
    assert not report.applied
    assert torch.equal(before, weights(policy))


def test_statistics_by_hand(samples: list[Sample]) -> None:
    groups = roll(TinyPolicy(weights="random"), samples[:2])
    row = rollout_statistics(groups, torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]]))
    assert row["reward"] == pytest.approx(0.75)
    assert row["zero_variance"] == 0.5
    assert row["reward_std"] == pytest.approx((0 + (1 / 3) ** 0.5) / 2)
    assert sum(value for key, value in row.items() if key.startswith("parse/")) == pytest.approx(1.0)
    assert rewards_of(groups).shape == (2, 4)


def test_schedules_by_hand() -> None:
    linear = OptimizerConfig(lr=1.0, schedule="linear", warmup_steps=2, final_lr_ratio=0.5)
    assert [learning_rate(linear, s, 6) for s in (0, 1, 2, 4, 6)] == [0.5, 1.0, 1.0, 0.75, 0.5]
    cosine = OptimizerConfig(lr=1.0, schedule="cosine")
    assert learning_rate(cosine, 5, 10) == pytest.approx(0.5)
    assert learning_rate(OptimizerConfig(lr=1.0), 9, 10) == 1.0


def test_policy_learns_what_is_rewarded(samples: list[Sample]) -> None:
    """The whole chain on a reward that the policy can reach: say a token above 300 and be paid."""
    policy = TinyPolicy(weights="random")
    engine = LocalEngine(policy, OptimizerConfig(lr=3e-3), 100)
    algorithm = AlgorithmConfig(group_size=8, loss="token_mean", scale_advantages=True)
    settings = RolloutConfig(max_new_tokens=3)
    shares = []
    for number in range(25):
        groups = list(
            rolling.rollouts(policy, samples[:2], algorithm=algorithm, rollout=settings, prompt=COMPACT, step=number)
        )
        rewards = torch.tensor(
            [[sum(t > 300 for t in r.completion.token_ids) / 3 for r in group.rollouts] for group in groups]
        )
        shares.append(float(rewards.mean()))
        groups = rolling.with_advantages(groups, advantages(rewards, scale=True))
        rolling.update(policy, groups, algorithm, settings, engine=engine)
    assert sum(shares[-5:]) / 5 > sum(shares[:5]) / 5 + 0.2
