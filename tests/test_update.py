"""One optimizer step on the real policy: gradients, iterations, references, statistics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import rolling
import torch
from scripted import Scripted, said

from grasp_rl.config.schema import AlgorithmConfig, OptimizerConfig, PromptConfig, RolloutConfig
from grasp_rl.distributed.engine import learning_rate
from grasp_rl.distributed.local import LocalEngine
from grasp_rl.grpo.advantages import advantages
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.policies.types import Sampling, Scores
from grasp_rl.rollouts.metrics import rollout_statistics
from grasp_rl.training.collate import micro_batches
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
    gains = some_gains(2)
    gains[1] = 0
    skipped = step(TinyPolicy(weights="random"), groups, gains)
    assert skipped["ratio"] == pytest.approx(1.0, abs=1e-6)  # a mean over what is learned from
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
    assert [b.group_indices for b in micro_batches(compared, size=1, skip_zero=True)] == [(0,), (2,)]
    assert [len(b.groups) for b in micro_batches(compared, size=8, skip_zero=False)] == [3]
    skipped, kept = TinyPolicy(weights="random"), TinyPolicy(weights="random")
    a = step(skipped, groups, gains)
    b = step(kept, groups, gains, beta=1e-12)
    assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)


def scores_of(policy: TinyPolicy, groups: list[RolloutGroup], sampling: Sampling | None = None) -> Scores:
    """The completions of ``groups`` scored by ``policy``, without a gradient."""
    tokens = [[r.completion.token_ids for r in group.rollouts] for group in groups]
    with torch.no_grad():
        return policy.logprobs(policy.embed([g.prompt for g in groups]), tokens, sampling=sampling or Sampling())


def k3(scored: Scores, reference: Scores) -> torch.Tensor:
    """[N, G, C] exp(d) - d - 1 with d = log reference - log policy; 0 where there is no token."""
    difference = reference.logp - scored.logp
    return (difference.exp() - difference - 1) * scored.valid


@pytest.mark.parametrize("skip", [False, True])
def test_groups_without_advantage_keep_their_kl_term_unless_it_is_given_up(samples: list[Sample], skip: bool) -> None:
    policy, reference = TinyPolicy(weights="random"), TinyPolicy(weights="random", seed=1).requires_grad_(False)
    groups, gains = roll(policy, samples[:3]), some_gains(3)
    gains[1] = 0
    terms = k3(scores_of(policy, groups), scores_of(reference, groups))
    kept = terms[[0, 2]] if skip else terms
    counted = [groups[0], groups[2]] if skip else groups
    expected = float(kept.sum()) / sum(len(r.completion.token_ids) for group in counted for r in group.rollouts)
    algorithm = AlgorithmConfig(group_size=4, beta=0.1, skip_zero_advantage=skip)
    compared = rolling.with_advantages(groups, gains)
    row = rolling.update(policy, compared, algorithm, ROLLOUT, reference=reference)
    assert row["kl"] == pytest.approx(expected, rel=1e-4)
    alone = rolling.update(policy, rolling.with_advantages(groups, 0 * gains), algorithm, ROLLOUT, reference=reference)
    assert (alone["grad_norm"] > 0) is not skip


def test_the_reference_is_never_cut(samples: list[Sample]) -> None:
    """The policy is scored as it was drawn from, by the 4 likeliest tokens at temperature 1.5; the reference by all."""
    settings = RolloutConfig(max_new_tokens=6, top_k=4, temperature=1.5)
    policy, algorithm = TinyPolicy(weights="random"), AlgorithmConfig(group_size=4, beta=0.1)
    groups = list(rolling.rollouts(policy, samples[:2], algorithm=algorithm, rollout=settings, prompt=COMPACT))
    cut = scores_of(policy, groups, Sampling(temperature=1.5, top_k=4))
    whole = scores_of(policy, groups, Sampling(temperature=1.5))
    expected = float(k3(cut, whole)[cut.valid].mean())
    row = rolling.update(policy, rolling.with_advantages(groups, some_gains(2)), algorithm, settings)
    assert expected > 0.1
    assert row["kl"] == pytest.approx(expected, rel=1e-4)
    in_full = rolling.update(
        policy, rolling.with_advantages(groups, some_gains(2)), algorithm, replace(settings, scored="full"),
        reference=TinyPolicy(weights="random").requires_grad_(False),
    )  # fmt: skip
    assert in_full["mismatch"] > 0.1  # what was cut off when the tokens were drawn
    policy = TinyPolicy(weights="random")
    alike = rolling.update(
        policy, rolling.with_advantages(groups, some_gains(2)), algorithm, replace(settings, scored="full")
    )
    assert alike["kl"] == pytest.approx(0, abs=1e-6)
    assert alike["ratio"] == pytest.approx(1, abs=1e-6)


def test_the_entropy_is_a_mean_over_the_tokens_that_were_scored(samples: list[Sample]) -> None:
    """Of three groups the second has no advantage; the others have completions of different lengths."""
    policy, algorithm = TinyPolicy(weights="random"), AlgorithmConfig(group_size=2)
    generator = Scripted([said(5), said(6, 7, 8, 9)], [said(10, 11), said(12)], [said(13, 14), said(15, 16, 17)])
    groups = list(
        rolling.rollouts(policy, samples[:3], algorithm=algorithm, rollout=ROLLOUT, prompt=COMPACT, generator=generator)
    )
    compared = rolling.with_advantages(groups, torch.tensor([[1.0, -1.0], [0.0, 0.0], [1.0, -1.0]]))
    scored = scores_of(policy, [groups[0], groups[2]])
    assert scored.valid.sum() == 1 + 4 + 2 + 3
    row = rolling.update(policy, compared, algorithm, ROLLOUT)
    assert row["entropy"] == pytest.approx(float(scored.entropy.sum()) / 10, rel=1e-5)


class ScarceEngine(LocalEngine):
    """Memory runs out in the second forward."""

    forwards = 0

    def forward(self, *words: Any, **named: Any) -> Any:
        self.forwards += 1
        if self.forwards == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return super().forward(*words, **named)


@pytest.mark.parametrize("kind", [LocalEngine, ScarceEngine])
@pytest.mark.parametrize("iterations", [1, 2])
def test_the_mismatch_is_measured_once_a_group(samples: list[Sample], kind: type[LocalEngine], iterations: int) -> None:
    """Group n claims to have been drawn n / 2 less likely than it was, whatever is done twice."""
    policy = TinyPolicy(weights="random")
    groups = roll(policy, samples[:4])
    claimed, total, tokens = [], 0.0, 0
    for number, group in enumerate(groups):
        completions = [r.completion for r in group.rollouts]
        off = [replace(c, logprobs=tuple(score - number / 2 for score in c.logprobs)) for c in completions]
        rollouts = tuple(replace(r, completion=c) for r, c in zip(group.rollouts, off, strict=True))
        claimed.append(replace(group, rollouts=rollouts))
        count = sum(len(c.token_ids) for c in completions)
        total, tokens = total + count * number / 2, tokens + count
    engine = kind(policy, OptimizerConfig(lr=1e-3), 10)
    algorithm = AlgorithmConfig(group_size=4, micro_batch_groups=2, iterations=iterations)
    row = rolling.update(policy, rolling.with_advantages(claimed, some_gains(4)), algorithm, ROLLOUT, engine=engine)
    assert row["update_out_of_memory"] == float(kind is ScarceEngine)
    assert row["mismatch"] == pytest.approx(total / tokens, abs=1e-5)


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
