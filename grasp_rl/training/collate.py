"""From rollout groups to what one forward of the update sees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grasp_rl.types import GroupOutcome, RolloutGroup


@dataclass(frozen=True, kw_only=True)
class TrainBatch:
    """N groups, each one packed row ``[prompt | c1 | ... | cG]``."""

    places: tuple[int, ...]
    """N places of the groups in their optimizer step."""
    groups: tuple[RolloutGroup, ...]
    completions: tuple[tuple[tuple[int, ...], ...], ...]
    """N x G token-id sequences."""
    sampled_logp: Tensor
    """[N, G, C] log-probabilities as drawn, 0 where there is no token."""
    advantages: Tensor
    """[N, G]"""


def rewards_of(groups: Sequence[RolloutGroup | GroupOutcome]) -> Tensor:
    """[N, G] rewards."""
    return torch.tensor([[r.reward.reward for r in group.rollouts] for group in groups])


def micro_batches(groups: Iterable[RolloutGroup], *, size: int, skip_zero: bool) -> Iterator[TrainBatch]:
    """Batches of ``size`` groups in their order; groups without any advantage are left out where ``skip_zero``.

    Args:
        groups: of one optimizer step, with their advantages; a batch is there as soon as its groups are.
        size: groups per forward.
        skip_zero: only where such a group adds nothing to the gradient (beta = 0), or its KL term is given up.
    """
    chunk: list[tuple[int, RolloutGroup]] = []
    for place, group in enumerate(groups):
        if skip_zero and not any(group.advantages):
            continue
        chunk.append((place, group))
        if len(chunk) == size:
            yield batch_of(chunk)
            chunk = []
    if chunk:
        yield batch_of(chunk)


def batch_of(chunk: Sequence[tuple[int, RolloutGroup]]) -> TrainBatch:
    """One batch of (place, group)."""
    groups = tuple(group for _, group in chunk)
    completions = tuple(tuple(r.completion.token_ids for r in group.rollouts) for group in groups)
    longest = max(len(c) for group in completions for c in group)
    sampled = [padded([torch.tensor(r.completion.logprobs) for r in group.rollouts], longest) for group in groups]
    return TrainBatch(
        places=tuple(place for place, _ in chunk),
        groups=groups,
        completions=completions,
        sampled_logp=torch.stack(sampled),
        advantages=torch.tensor([group.advantages for group in groups]),
    )


def padded(rows: Sequence[Tensor], width: int) -> Tensor:
    """[len(rows), width] of rows [n], zeros behind."""
    return torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows])
