"""Advantages and losses against values worked out by hand, and the invariances they must keep."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from omegaconf import OmegaConf

from grasp_rl.grpo.advantages import advantages
from grasp_rl.grpo.loss import LossConfig, StepSize, policy_loss

OPTIONS = ("grpo", "dapo", "dr_grpo", "rloo", "gspo", "cispo", "sam_r1", "resap")


def option(name: str, beta: float | None = None) -> LossConfig:
    from importlib.resources import files

    values = OmegaConf.create((files("grasp_rl.conf") / "algorithm" / f"{name}.yaml").read_text())
    return LossConfig(
        loss=values.loss,
        importance=values.importance,
        clip_low=values.clip_low,
        clip_high=values.clip_high,
        beta=values.beta if beta is None else beta,
        surrogate=values.get("surrogate", "clipped"),
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


@pytest.mark.parametrize("group", [3, 6, 7])
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_equal_rewards_have_no_advantage_at_all(group: int, scale: bool, baseline: str) -> None:
    """The mean of three times 0.1 is not 0.1 in float64."""
    rewards = torch.full((1, group), 0.1, dtype=torch.float64)
    assert advantages(rewards, baseline=baseline, scale=scale).tolist() == [[0.0] * group]


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


def test_an_advantage_of_ones_own() -> None:
    rewards = torch.tensor([[3.0, 1.0, float("nan"), 2.0], [5.0, 5.0, 5.0, 5.0]])
    given: list[torch.Tensor] = []

    def best_alone(values: torch.Tensor) -> torch.Tensor:
        given.append(values)
        best = (values == values.amax(1, keepdim=True)).double()
        return best / (values.std(1, keepdim=True) > 0)  # no number where all are alike

    assert advantages(rewards, own=best_alone).tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]]
    assert given[0].tolist() == [[3, 1, 1, 2], [5, 5, 5, 5]]  # finite, float64
    for wrong in (lambda values: values[:, :1], lambda values: values / 0):
        with pytest.raises(ValueError, match="own_advantage: gave"):
            advantages(rewards, own=wrong)


def test_a_surrogate_of_ones_own() -> None:
    """What it gives is aggregated as the loss says, with the mask and the KL term of the loss."""
    config = option("dr_grpo", beta=0.04)
    logp = torch.zeros(1, 2, 2, dtype=torch.float64, requires_grad=True)
    valid = torch.tensor([[[True, True], [True, False]]])
    gain = torch.tensor([[2.0, -1.0]], dtype=torch.float64)

    def reinforce(logp: torch.Tensor, ratio: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
        return -2 * advantage * logp

    size = StepSize(sequences=2, tokens=3, max_tokens=4)
    loss, _ = policy_loss(logp, logp.detach(), logp.detach(), gain, valid, config=config, step=size, own=reinforce)
    assert torch.autograd.grad(loss, logp)[0].tolist() == [[[-4 / 8, -4 / 8], [2 / 8, 0]]]
    with pytest.raises(ValueError, match=r"own_surrogate: gave \(1, 2\); must be \(1, 2, 2\)"):
        policy_loss(logp, logp.detach(), logp.detach(), gain, valid, config=config, step=size, own=lambda *_: gain)


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
        assert float(shares["ratio"]) == pytest.approx(4.0)  # the sum over its tokens
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
    assert float(shares["clip_fraction"]) == 1.0  # of four tokens


@pytest.mark.parametrize(
    ("ratio", "gain", "low", "high", "expected"),
    [
        (3.0, 1.0, 1.0, 0.28, 1.28),  # capped at 1 + clip_high
        (3.0, 1.0, 1.0, 4.0, 3.0),  # TRL with epsilon_high = 5
        (0.1, -1.0, 1.0, 0.28, -0.1),  # no lower bound
        (0.1, -1.0, 0.2, 0.28, -0.8),
    ],
)
def test_cispo_by_hand(ratio: float, gain: float, low: float, high: float, expected: float) -> None:
    """One token of log-probability -1: the loss is -weight * gain * -1, its slope -weight * gain on either side."""
    config = LossConfig(
        loss="token_mean", importance="token", clip_low=low, clip_high=high, beta=0.0, surrogate="cispo"
    )
    logp = torch.full((1, 1, 1), -1.0, dtype=torch.float64, requires_grad=True)
    loss, shares = policy_loss(
        logp, logp.detach() - math.log(ratio), None, torch.tensor([[gain]]), torch.ones(1, 1, 1, dtype=torch.bool),
        config=config, step=StepSize(sequences=1, tokens=1, max_tokens=1),
    )  # fmt: skip
    loss.backward()
    assert loss.item() == pytest.approx(expected)
    assert logp.grad is not None
    assert logp.grad.item() == pytest.approx(-expected)
    assert float(shares["clip_fraction"]) == float(abs(expected) != pytest.approx(ratio))


def test_cispo_on_policy_has_the_gradient_of_grpo() -> None:
    step = random_step() | {"old_logp": random_step()["logp"]}
    shared = {"loss": "token_mean", "importance": "token", "clip_low": 0.2, "clip_high": 0.2, "beta": 0.0}
    cispo, loss = gradient(step, LossConfig(**shared, surrogate="cispo"), 6)  # type: ignore[arg-type]
    clipped, other = gradient(step, LossConfig(**shared), 6)  # type: ignore[arg-type]
    torch.testing.assert_close(cispo, clipped)
    assert abs(loss - other) > 1e-3  # the value is another


def test_a_small_range_of_rewards_is_no_advantage() -> None:
    rewards = torch.tensor([[0.5, 0.505, 0.5, 0.5], [0.5, 0.52, 0.5, 0.5]])
    small, large = advantages(rewards, scale=True, epsilon=0.0, min_range=0.01).tolist()
    assert small == [0.0] * 4
    assert large == pytest.approx([-0.5, 1.5, -0.5, -0.5], abs=1e-5)  # (r - mean) / deviation, whatever its size
    assert any(advantages(rewards)[0])
    tiny = torch.tensor([[0.0, 1e-200]], dtype=torch.float64)
    assert advantages(tiny, epsilon=0.0).tolist() == [[0.0, 0.0]]


def test_k3_is_zero_at_the_reference_and_positive_elsewhere() -> None:
    step = random_step()
    config = LossConfig(loss="token_mean", importance="token", clip_low=0.2, clip_high=0.2, beta=0.1)
    divisors = StepSize(sequences=24, tokens=int(step["valid"].sum()), max_tokens=9)
    rest = (step["advantage"], step["valid"])
    _, same = policy_loss(step["logp"], step["logp"], step["logp"], *rest, config=config, step=divisors)
    _, apart = policy_loss(step["logp"], step["logp"], step["ref_logp"], *rest, config=config, step=divisors)
    assert same["kl"] == 0.0
    assert apart["kl"] > 0.0


def test_k3_by_hand() -> None:
    """One token of four is twice as likely under the reference: exp(d) - d - 1 with d = log 2, a slope of 1 - exp(d)."""
    logp = torch.zeros(1, 2, 3, dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[[0.0, 0.0, 0.0], [0.0, math.log(2), 0.0]]], dtype=torch.float64)
    valid = torch.tensor([[[True, False, False], [True, True, True]]])
    step = StepSize(sequences=2, tokens=4, max_tokens=8)
    for name, divisor in {"sequence_mean": 3 * 2, "token_mean": 4, "constant": 2 * 8}.items():
        config = LossConfig(loss=name, importance="token", clip_low=0.2, clip_high=0.2, beta=0.5)
        loss, shares = policy_loss(
            logp, logp.detach(), reference, torch.zeros(1, 2), valid, config=config, step=step
        )  # fmt: skip
        assert loss.item() == pytest.approx(0.5 * (2 - math.log(2) - 1) / divisor, rel=1e-9)
        assert float(shares["kl"]) == pytest.approx(2 - math.log(2) - 1, rel=1e-9)
        (slope,) = torch.autograd.grad(loss, logp)
        assert slope[0, 1].tolist() == pytest.approx([0, 0.5 * (1 - 2) / divisor, 0])


def test_sequence_ratio_by_hand() -> None:
    """Ratios 1.1 and 1.3 of two tokens: their geometric mean 1.1958 is within the clip range, their product is not."""
    old = torch.zeros(1, 1, 3, dtype=torch.float64)
    logp = torch.tensor([[[1.1, 1.3, 1.0]]], dtype=torch.float64).log().requires_grad_()
    valid = torch.tensor([[[True, True, False]]])
    config = LossConfig(loss="sequence_mean", importance="sequence", clip_low=0.2, clip_high=0.2, beta=0.0)
    loss, shares = policy_loss(
        logp, old, None, torch.ones(1, 1), valid, config=config, step=StepSize(sequences=1, tokens=2, max_tokens=3)
    )
    ratio = math.sqrt(1.1 * 1.3)
    assert loss.item() == pytest.approx(-ratio)
    assert float(shares["ratio"]) == pytest.approx(2 * ratio)
    assert shares["clip_fraction"] == 0.0
    (slope,) = torch.autograd.grad(loss, logp)
    assert slope[0, 0].tolist() == pytest.approx([-ratio / 2, -ratio / 2, 0])


def test_importance_weights_leave_the_kl_term_alone() -> None:
    logp = torch.zeros(1, 1, 1, dtype=torch.float64)
    config = LossConfig(loss="token_mean", importance="token", clip_low=0.2, clip_high=0.2, beta=0.3)
    loss, _ = policy_loss(
        logp, logp, logp + math.log(2), torch.full((1, 1), 2.0), logp == 0, config=config,
        step=StepSize(sequences=1, tokens=1, max_tokens=1), weights=torch.full_like(logp, 0.25),
    )  # fmt: skip
    assert loss.item() == pytest.approx(-2 * 0.25 + 0.3 * (2 - math.log(2) - 1))


def test_nothing_is_clipped_where_there_is_no_advantage() -> None:
    logp = torch.tensor([[[0.5, 1.0, 1.5]]], dtype=torch.float64).log()
    config = LossConfig(loss="token_mean", importance="token", clip_low=0.2, clip_high=0.2, beta=0.0)
    shares = {
        gain: float(
            policy_loss(
                logp, torch.zeros_like(logp), None, torch.full((1, 1), gain), logp < 1, config=config,
                step=StepSize(sequences=1, tokens=3, max_tokens=3),
            )[1]["clip_fraction"]
        )
        for gain in (-1.0, 0.0, 1.0)
    }  # fmt: skip
    assert shares == {-1.0: 1.0, 0.0: 0.0, 1.0: 1.0}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_completion_without_tokens_adds_nothing(name: str) -> None:
    """The loss and the gradient are those of its siblings, under the same divisors."""
    step = random_step()
    step["valid"][:, 3] = False
    whole, loss = gradient(step, option(name, beta=0.04), 6)
    siblings, expected = gradient({key: value[:, :3] for key, value in step.items()}, option(name, beta=0.04), 6)
    assert loss == pytest.approx(expected, rel=1e-12)
    assert (whole[:, :3] - siblings).abs().max() < 1e-12
    assert whole[:, 3].tolist() == torch.zeros(6, 9).tolist()


def test_beta_without_reference_is_an_error() -> None:
    step = random_step()
    config = LossConfig(loss="constant", importance="token", clip_low=0.2, clip_high=0.2, beta=0.1)
    with pytest.raises(ValueError, match="reference"):
        policy_loss(
            step["logp"], step["old_logp"], None, step["advantage"], step["valid"], config=config,
            step=StepSize(sequences=1, tokens=1, max_tokens=1),
        )  # fmt: skip
