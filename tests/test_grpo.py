"""Advantages and losses against values worked out by hand, and the invariances they must keep."""

from __future__ import annotations

import itertools

import pytest
import torch
from omegaconf import OmegaConf

from grasp_rl.grpo.advantages import advantages
from grasp_rl.grpo.loss import LossConfig, StepSize, policy_loss

OPTIONS = ("grpo", "dapo", "dr_grpo", "rloo", "gspo")


def option(name: str, beta: float | None = None) -> LossConfig:
    from importlib.resources import files

    values = OmegaConf.create((files("grasp_rl.conf") / "algorithm" / f"{name}.yaml").read_text())
    return LossConfig(
        loss=values.loss,
        importance=values.importance,
        clip_low=values.clip_low,
        clip_high=values.clip_high,
        beta=values.beta if beta is None else beta,
    )


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    assert advantages(rewards, scale=False).tolist() == [[0.5, -0.5, -0.5, 0.5], [0.0, 0.0, 0.0, 0.0]]
    scaled = advantages(rewards, scale=True)
    deviation = (4 * 0.25 / 3) ** 0.5  # sample standard deviation
    assert scaled[0, 0].item() == pytest.approx(0.5 / (deviation + 1e-4), rel=1e-6)
    assert advantages(rewards, baseline="leave_one_out", scale=False)[0, 0].item() == pytest.approx(1 - 1 / 3)


def test_advantages_stay_finite_and_centred() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(100_000, 4, generator=generator)
    damage = torch.rand(rewards.shape, generator=generator)
    rewards[damage < 0.05] = float("nan")
    rewards[(damage > 0.05) & (damage < 0.1)] = float("inf")
    rewards[(damage > 0.1) & (damage < 0.15)] = float("-inf")
    for baseline, scale in itertools.product(("mean", "leave_one_out"), (True, False)):
        result = advantages(rewards, baseline=baseline, scale=scale)
        assert result.isfinite().all()
        assert result.sum(1).abs().max() < 1e-4


def test_advantages_follow_a_permutation_of_siblings() -> None:
    rewards = torch.rand(8, 6)
    order = torch.randperm(6)
    torch.testing.assert_close(advantages(rewards)[:, order], advantages(rewards[:, order]))


def test_advantages_refuse_a_group_of_one() -> None:
    with pytest.raises(ValueError, match="G >= 2"):
        advantages(torch.ones(3, 1))


def random_step(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (6, 4, 9)
    logp = -torch.rand(shape, generator=generator, dtype=torch.float64) * 3
    lengths = torch.randint(1, 10, shape[:2], generator=generator)
    return {
        "logp": logp,
        "old_logp": logp + 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64),
        "ref_logp": logp + 0.2 * torch.randn(shape, generator=generator, dtype=torch.float64),
        "advantage": torch.randn(shape[:2], generator=generator, dtype=torch.float64),
        "valid": torch.arange(9) < lengths[..., None],
    }


def gradient(step: dict[str, torch.Tensor], config: LossConfig, size: int) -> tuple[torch.Tensor, float]:
    leaf = step["logp"].clone().requires_grad_()
    divisors = StepSize(sequences=24, tokens=int(step["valid"].sum()), max_tokens=9)
    total = 0.0
    for start in range(0, 6, size):
        part = slice(start, start + size)
        loss, shares = policy_loss(
            leaf[part],
            step["old_logp"][part],
            step["ref_logp"][part],
            step["advantage"][part],
            step["valid"][part],
            config=config,
            step=divisors,
        )
        loss.backward()
        total += float(shares["loss"])
    assert leaf.grad is not None
    return leaf.grad, total


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_leave_the_gradient_unchanged(name: str, size: int) -> None:
    step = random_step()
    whole, loss = gradient(step, option(name, beta=0.04), 6)
    split, split_loss = gradient(step, option(name, beta=0.04), size)
    assert ((whole - split).norm() / whole.norm()).item() < 1e-6
    assert split_loss == pytest.approx(loss, rel=1e-9)
    assert whole.abs().sum() > 0


def test_losses_by_hand() -> None:
    """Two completions of 1 and 3 tokens, advantages 1 and -1, on-policy: every ratio is 1."""
    logp = torch.zeros(1, 2, 3, dtype=torch.float64)
    valid = torch.tensor([[[True, False, False], [True, True, True]]])
    gain = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    step = StepSize(sequences=2, tokens=4, max_tokens=8)
    expected = {"sequence_mean": (-1 + 1) / 2, "token_mean": (-1 + 3) / 4, "constant": (-1 + 3) / (2 * 8)}
    for name, value in expected.items():
        config = LossConfig(loss=name, importance="token", clip_low=0.2, clip_high=0.2, beta=0.0)
        loss, shares = policy_loss(logp, logp, None, gain, valid, config=config, step=step)
        assert loss.item() == pytest.approx(value)
        assert float(shares["ratio"]) == pytest.approx(1.0)
        assert shares["clip_fraction"] == 0.0


def test_clipping_stops_the_gradient_outside_the_region() -> None:
    config = LossConfig(loss="token_mean", importance="token", clip_low=0.2, clip_high=0.3, beta=0.0)
    old = torch.zeros(1, 1, 4, dtype=torch.float64)
    leaf = torch.tensor([[[1.25, 1.35, 0.75, 1.0]]], dtype=torch.float64).log().requires_grad_()
    loss, shares = policy_loss(
        leaf, old, None, torch.ones(1, 1), torch.ones(1, 1, 4, dtype=torch.bool), config=config,
        step=StepSize(sequences=1, tokens=4, max_tokens=4),
    )  # fmt: skip
    loss.backward()
    assert leaf.grad is not None
    assert (leaf.grad[0, 0] != 0).tolist() == [True, False, True, True]  # low ratios with a gain may still rise
    assert float(shares["clip_fraction"]) == pytest.approx(0.25)


def test_k3_is_zero_at_the_reference_and_positive_elsewhere() -> None:
    step = random_step()
    config = LossConfig(loss="token_mean", importance="token", clip_low=0.2, clip_high=0.2, beta=0.1)
    divisors = StepSize(sequences=24, tokens=int(step["valid"].sum()), max_tokens=9)
    rest = (step["advantage"], step["valid"])
    _, same = policy_loss(step["logp"], step["logp"], step["logp"], *rest, config=config, step=divisors)
    _, apart = policy_loss(step["logp"], step["logp"], step["ref_logp"], *rest, config=config, step=divisors)
    assert same["kl"] == 0.0
    assert apart["kl"] > 0.0


def test_beta_without_reference_is_an_error() -> None:
    step = random_step()
    config = LossConfig(loss="constant", importance="token", clip_low=0.2, clip_high=0.2, beta=0.1)
    with pytest.raises(ValueError, match="reference"):
        policy_loss(
            step["logp"], step["old_logp"], None, step["advantage"], step["valid"], config=config,
            step=StepSize(sequences=1, tokens=1, max_tokens=1),
        )  # fmt: skip
