"""One optimizer step's gradient from rollout groups: score, compare with old and reference, clip, backward."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from grasp_rl.batching import TrainBatch, micro_batches, step_size
from grasp_rl.config import AlgorithmConfig, RolloutConfig
from grasp_rl.engines.local import LocalEngine
from grasp_rl.grpo.loss import LossConfig, policy_loss
from grasp_rl.types import RolloutGroup

Reference = Callable[[TrainBatch], Tensor]


def make_reference(policy: Any, beta: float, temperature: float) -> Reference | None:
    """What scores a batch under the policy as it is now, frozen; None where beta is 0 and nobody asks."""
    if beta == 0:
        return None
    frozen = policy.make_reference()

    @torch.no_grad()
    def score(batch: TrainBatch) -> Tensor:
        prompts = [group.prompt for group in batch.groups]
        if frozen is None:
            with policy.adapter_disabled():
                scores = policy.logprobs(
                    policy.embed(prompts), batch.completions, temperature=temperature, entropy=False
                )
        else:
            scores = frozen.logprobs(frozen.embed(prompts), batch.completions, temperature=temperature, entropy=False)
        return torch.as_tensor(scores.logp)

    return score


def update(
    policy: Any,
    engine: LocalEngine,
    groups: Sequence[RolloutGroup],
    advantages: Tensor,
    reference: Reference | None,
    *,
    algorithm: AlgorithmConfig,
    rollout: RolloutConfig,
) -> dict[str, float]:
    """``algorithm.iterations`` optimizer steps on one set of rollouts; returns the statistics of the last.

    The old log-probabilities are those of the first pass: at mu = 1 the detached new ones, so no extra forward is run.
    The sampled ones measure the mismatch between rollout and update and enter no loss.
    """
    loss_config = LossConfig(
        loss=algorithm.loss,
        importance=algorithm.importance,
        clip_low=algorithm.clip_low,
        clip_high=algorithm.clip_high,
        beta=algorithm.beta,
    )
    divisors = step_size(groups, rollout.max_new_tokens)
    skip = algorithm.beta == 0 or algorithm.skip_zero_advantage
    batches = list(micro_batches(groups, advantages, size=algorithm.micro_batch_groups, skip_zero=skip))
    reference_logp = [reference(batch) if reference else None for batch in batches]
    old: list[Tensor] = []
    sums: defaultdict[str, float] = defaultdict(float)
    mismatch = 0.0
    for iteration in range(algorithm.iterations):
        sums = defaultdict(float, dict.fromkeys(("loss", "kl", "clip_fraction", "ratio", "entropy", "scored"), 0.0))
        for number, batch in enumerate(batches):
            embedded = policy.embed([group.prompt for group in batch.groups])
            scores = policy.logprobs(embedded, batch.completions, temperature=rollout.temperature)
            logp, valid = scores.logp, scores.valid
            if iteration == 0:
                old.append(logp.detach())
            loss, shares = policy_loss(
                logp,
                old[number],
                reference_logp[number],
                batch.advantages.to(logp.device),
                valid,
                config=loss_config,
                step=divisors,
            )
            engine.backward(loss)
            for key, value in shares.items():
                sums[key] += value
            if iteration == 0:
                mismatch += float(((logp.detach() - batch.sampled_logp.to(logp.device)) * valid).abs().sum())
            sums["entropy"] += float(scores.entropy.sum())
            sums["scored"] += float(valid.sum())
        report = engine.step()
        sums |= {"grad_norm": report.grad_norm, "lr": report.lr, "skipped": float(not report.applied)}
    scored = max(1.0, sums.pop("scored"))
    return {**sums, "entropy": sums["entropy"] / scored, "mismatch": mismatch / scored}
