"""From rollout groups to what one forward of the update sees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from grasp_rl.types import RolloutGroup


@dataclass(frozen=True, kw_only=True)
class TrainBatch:
    """N groups, each one packed row ``[prompt | c1 | ... | cG]``."""

    group_indices: tuple[int, ...]
    """N indices of the groups within their optimizer step."""
    groups: tuple[RolloutGroup, ...]
    completions: tuple[tuple[tuple[int, ...], ...], ...]
    """N x G token-id sequences; in a later turn they begin with what stands between the prompt and the answer."""
    sampled_logp: Tensor
    """[N, G, C] log-probabilities as drawn, 0 where there is no token or one that is not scored."""
    advantages: Tensor
    """[N, G]"""
    forward: Mapping[str, Any] = field(default_factory=dict)
    """Further keywords of the policy's forward: later turns, and how many tokens of each sequence are context."""


def micro_batches(groups: Iterable[RolloutGroup], *, size: int, skip_zero: bool) -> Iterator[TrainBatch]:
    """Batches of ``size`` groups in their order; groups without any advantage are left out where ``skip_zero``.

    Args:
        groups: of one optimizer step, with their advantages; a batch is there as soon as its groups are.
        size: groups per forward.
        skip_zero: only where such a group adds nothing to the gradient (beta = 0), or its KL term is given up.
    """
    chunk: list[tuple[int, RolloutGroup]] = []
    for index, group in enumerate(groups):
        if skip_zero and not any(group.advantages):
            continue
        chunk.append((index, group))
        if len(chunk) == size:
            yield batch_of(chunk)
            chunk = []
    if chunk:
        yield batch_of(chunk)


def batch_of(chunk: Sequence[tuple[int, RolloutGroup]]) -> TrainBatch:
    """One batch of (index, group)."""
    groups = tuple(group for _, group in chunk)
    contexts = tuple(tuple(_context(group, g) for g in range(len(group.rollouts))) for group in groups)
    completions = tuple(
        tuple((*context, *r.completion.token_ids) for context, r in zip(its, group.rollouts, strict=True))
        for its, group in zip(contexts, groups, strict=True)
    )
    longest = max(len(c) for group in completions for c in group)
    sampled = [
        padded(
            [
                torch.tensor((*[0.0] * len(context), *r.completion.logprobs))
                for context, r in zip(its, group.rollouts, strict=True)
            ],
            longest,
        )
        for its, group in zip(contexts, groups, strict=True)
    ]
    later = any(group.continuations is not None for group in groups)
    return TrainBatch(
        forward={
            "continuations": [group.continuations or (None,) * len(group.rollouts) for group in groups],
            "unscored": [[len(context) for context in its] for its in contexts],
        }
        if later
        else {},
        group_indices=tuple(index for index, _ in chunk),
        groups=groups,
        completions=completions,
        sampled_logp=torch.stack(sampled),
        advantages=torch.tensor([group.advantages for group in groups]),
    )


def _context(group: RolloutGroup, g: int) -> tuple[int, ...]:
    """Tokens between the group's prompt and what sibling ``g`` said in this turn; () in the first."""
    if group.continuations is None:
        return ()
    continuation = group.continuations[g]
    return tuple(continuation.input_ids[continuation.shared :].tolist())


def padded(rows: Sequence[Tensor], width: int) -> Tensor:
    """[len(rows), width] of rows [n], zeros behind."""
    return torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows])
