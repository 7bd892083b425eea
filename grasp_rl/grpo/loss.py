"""Clipped policy losses over completion tokens, and what is worth watching about them.

All sums run over the tokens at hand and all divisors over the whole optimizer step, so that splitting the step into
micro-batches leaves the gradient unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class StepSize:
    """What the whole optimizer step holds, over all micro-batches and ranks."""

    sequences: int
    """Completions."""
    tokens: int
    """Completion tokens."""
    max_tokens: int
    """Longest completion that could be drawn: the constant divisor of Dr. GRPO."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The part of the algorithm that the loss needs; see grasp_rl.config.schema.AlgorithmConfig."""

    loss: str
    """sequence_mean | token_mean | constant"""
    importance: str
    """token | sequence"""
    clip_low: float
    clip_high: float
    beta: float
    surrogate: str = "clipped"
    """clipped | cispo"""


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    ref_logp: Tensor | None,
    advantage: Tensor,
    valid: Tensor,
    *,
    config: LossConfig,
    step: StepSize,
    weights: Tensor | None = None,
    own: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """One micro-batch's share of the loss of an optimizer step.

    Args:
        logp: [N, G, C] log-probabilities under the policy that is trained.
        old_logp: [N, G, C] under the policy that opened the trust region; detached. Equal to ``logp`` at mu = 1.
        ref_logp: [N, G, C] under the reference; needed where beta > 0.
        advantage: [N, G].
        valid: [N, G, C] bool, True at completion tokens.
        config: which loss.
        step: divisors of the whole optimizer step.
        weights: [N, G, C] factors of the policy term, detached: the truncated importance weights of a generator whose
            numbers are not the policy's; None for 1.
        own: the policy term [N, G, C] of (logp, ratio, advantage), in place of ``config.surrogate``.

    Returns:
        a scalar to call ``backward`` on, and this micro-batch's part of the step's statistics, float64 scalars on the
        device, to add up over the step: its share of the ``loss``, and the sums over its tokens of ``kl``, ``ratio``
        and of those that are clipped, ``clip_fraction``.

    ``sequence_mean``: mean over a completion's tokens, then over completions (GRPO). ``token_mean``: mean over all
    tokens of the step (DAPO, arXiv 2503.14476). ``constant``: sum over tokens / (completions * longest) (Dr. GRPO).
    ``importance=sequence`` uses the geometric mean of the token ratios, as a whole (GSPO, arXiv 2507.18071).
    ``surrogate=cispo`` weighs log-probabilities with the clipped ratio, detached, so that no token loses its gradient
    (MiniMax-M1, arXiv 2506.13585, equation 4); where every ratio is 1 its gradient is that of ``clipped``. The KL term
    is the k3 estimate exp(d) - d - 1 with d = log ref - log policy.
    """
    mask = valid.to(logp.dtype)
    lengths = mask.sum(-1, keepdim=True).clamp(min=1)
    log_ratio = (logp - old_logp) * mask
    if config.importance == "sequence":
        log_ratio = (log_ratio.sum(-1, keepdim=True) / lengths).expand_as(logp)
    ratio = log_ratio.exp()
    gain = advantage[..., None]
    per_token = _policy_term(logp, ratio, gain, config, own)
    if weights is not None:
        per_token = per_token * weights
    kl = torch.zeros_like(per_token)
    if config.beta:
        if ref_logp is None:
            raise ValueError("policy_loss: beta > 0 needs the reference's log-probabilities")
        delta = (ref_logp - logp) * mask
        kl = delta.exp() - delta - 1
        per_token = per_token + config.beta * kl
    per_token = per_token * mask
    if config.loss == "sequence_mean":
        loss = (per_token.sum(-1, keepdim=True) / lengths).sum() / step.sequences
    elif config.loss == "token_mean":
        loss = per_token.sum() / step.tokens
    elif config.loss == "constant":
        loss = per_token.sum() / (step.sequences * step.max_tokens)
    else:
        raise ValueError(f"policy_loss: unknown loss {config.loss!r}")
    with torch.no_grad():
        low, high = ratio < 1 - config.clip_low, ratio > 1 + config.clip_high
        if own is None and config.surrogate == "clipped":  # where the other side of the minimum is taken nothing is cut
            low, high = low & (gain < 0), high & (gain > 0)
        sums = {
            "loss": loss.detach().double(),
            "kl": (kl * mask).sum().double(),
            "clip_fraction": ((low | high) & valid).sum().double(),
            "ratio": (ratio * mask).sum().double(),
        }
    return loss, sums


def _policy_term(
    logp: Tensor,
    ratio: Tensor,
    gain: Tensor,
    config: LossConfig,
    own: Callable[[Tensor, Tensor, Tensor], Tensor] | None,
) -> Tensor:
    """[N, G, C] of what is minimised, before the KL term."""
    if own is not None:
        term = own(logp, ratio, gain)
        if term.shape != logp.shape:
            raise ValueError(f"algorithm.own_surrogate: gave {tuple(term.shape)}; must be {tuple(logp.shape)}")
        return term
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    if config.surrogate == "cispo":
        return -clipped.detach() * gain * logp
    return -torch.minimum(ratio * gain, clipped * gain)
