"""Advantages from the rewards of a group."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STD_EPSILON = 1e-4
"""Added to the standard deviation, as in Think2Seg-RS and TRL."""


def advantages(
    rewards: Tensor,
    *,
    baseline: str = "mean",
    scale: bool = True,
    epsilon: float = STD_EPSILON,
    min_range: float = 0.0,
    own: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Group-relative advantages.

    Args:
        rewards: [N, G] one row per prompt. A reward that is not finite takes the group's smallest finite one, or 0.
        baseline: ``mean`` of the group (GRPO, arXiv 2402.03300, section 4.1.2), or ``leave_one_out``, the mean of the
            siblings (RLOO, arXiv 2402.14740).
        scale: divide by the group's sample standard deviation plus ``epsilon``; Dr. GRPO (arXiv 2503.20783) does not.
        epsilon: >= 0.
        min_range: a group whose rewards differ by no more than this has no advantage (ReSaP: 0.01).
        own: the advantages of [N, G] finite float64 rewards, in place of ``baseline`` and ``scale``.

    Returns:
        [N, G]; exactly 0 in a group whose rewards are all equal, or differ by no more than ``min_range``.

    Raises:
        ValueError: fewer than two siblings, an unknown baseline, or ``own`` gives another shape or no finite numbers.
    """
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(f"advantages: rewards must be [N, G >= 2], found {tuple(rewards.shape)}")
    values = rewards.double()
    finite = values.isfinite()
    floor = torch.where(finite, values, torch.inf).amin(1, keepdim=True)
    floor = torch.where(floor.isfinite(), floor, torch.zeros_like(floor))
    values = torch.where(finite, values, floor)
    varied = values.amax(1, keepdim=True) - values.amin(1, keepdim=True) > min_range
    if own is not None:
        result = own(values)
        if result.shape == values.shape:
            result = torch.where(varied, result, torch.zeros_like(result))
        if result.shape != values.shape or not bool(result.isfinite().all()):
            raise ValueError(f"algorithm.own_advantage: gave {result!r} for {values!r}; must be as many finite numbers")
        return result.to(rewards.dtype)
    group = values.shape[1]
    centred = values - values.mean(1, keepdim=True)
    if baseline == "leave_one_out":
        result = centred * group / (group - 1)
    elif baseline == "mean":
        result = centred
    else:
        raise ValueError(f"advantages: baseline {baseline!r} is neither mean nor leave_one_out")
    if scale:
        divisor = values.std(1, keepdim=True) + epsilon
        varied = varied & (divisor > 0)  # rewards that differ by 1e-200 have a deviation of 0
        result = result / divisor
    return torch.where(varied, result, torch.zeros_like(result)).to(rewards.dtype)
