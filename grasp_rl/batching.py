"""From rollout groups to what one forward of the update sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grasp_rl.grpo.loss import StepSize
from grasp_rl.types import RolloutGroup


@dataclass(frozen=True, kw_only=True)
class TrainBatch:
    """N groups, each one packed row ``[prompt | c1 | ... | cG]``."""

    groups: tuple[RolloutGroup, ...]
    completions: tuple[tuple[tuple[int, ...], ...], ...]
    """N x G token-id sequences."""
    sampled_logp: Tensor
    """[N, G, C] log-probabilities as drawn, 0 where there is no token."""
    advantages: Tensor
    """[N, G]"""


def rewards_of(groups: Sequence[RolloutGroup]) -> Tensor:
    """[N, G] rewards."""
    return torch.tensor([[r.reward.reward for r in group.rollouts] for group in groups])


def step_size(groups: Sequence[RolloutGroup], max_tokens: int) -> StepSize:
    """Divisors of an optimizer step over ``groups``."""
    lengths = [len(r.completion.token_ids) for group in groups for r in group.rollouts]
    return StepSize(sequences=len(lengths), tokens=sum(lengths), max_tokens=max_tokens)


def micro_batches(
    groups: Sequence[RolloutGroup], advantages: Tensor, *, size: int, skip_zero: bool
) -> Iterator[TrainBatch]:
    """Batches of ``size`` groups in their order; groups without any advantage are left out where ``skip_zero``.

    Args:
        groups: of one optimizer step.
        advantages: [N, G], in the groups' order.
        size: groups per forward.
        skip_zero: only where such a group adds nothing to the gradient (beta = 0), or its KL term is given up.
    """
    kept = [i for i in range(len(groups)) if not skip_zero or bool(advantages[i].any())]
    for start in range(0, len(kept), size):
        chunk = kept[start : start + size]
        picked = tuple(groups[i] for i in chunk)
        completions = tuple(tuple(r.completion.token_ids for r in group.rollouts) for group in picked)
        longest = max(len(c) for group in completions for c in group)
        sampled = torch.zeros(len(chunk), advantages.shape[1], longest)
        for n, group in enumerate(picked):
            for g, rollout in enumerate(group.rollouts):
                sampled[n, g, : len(rollout.completion.logprobs)] = torch.tensor(rollout.completion.logprobs)
        yield TrainBatch(groups=picked, completions=completions, sampled_logp=sampled, advantages=advantages[chunk])
