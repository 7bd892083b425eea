"""Log-probabilities of given tokens from hidden states, without the logits of a whole row ever standing in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

from grasp_rl.config.errors import ConfigError
from grasp_rl.policies.types import Sampling

LOGITS_AT_ONCE = 2**24
"""Entries of [tokens, vocabulary] that exist together: 64 MiB of float32; 110 tokens of a vocabulary of 152 000."""


class TokenScorer(nn.Module):
    """The output layer's weights and what they are for in training, as one module.

    An engine that divides parameters among ranks fetches them when a module is called. The number of chunks depends on
    a rank's own completions, and ranks have to fetch alike: so the chunks are within one call.

    Args:
        head: the model's output layer, whose parameters are shared.
    """

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = head.weight, head.bias
        self.vocabulary = head.out_features

    def forward(self, hidden: Tensor, targets: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """See :func:`score_tokens`."""
        return score_tokens(_Weights(self), hidden, targets, vocabulary=self.vocabulary, **kwargs)


class _Weights:
    """The output layer without the hooks of a module."""

    def __init__(self, module: TokenScorer) -> None:
        self.weight, self.bias = module.weight, module.bias

    def __call__(self, hidden: Tensor) -> Tensor:
        return linear(hidden, self.weight, self.bias)


def score_tokens(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    *,
    vocabulary: int,
    sampling: Sampling,
    entropy: bool = True,
    fused: bool = False,
) -> tuple[Tensor, Tensor]:
    """(log-probability, entropy) of each target, [N] float32; the entropy is detached.

    Args:
        head: from hidden states to logits.
        hidden: [N, D], each the state that predicts one target.
        targets: [N] token ids.
        vocabulary: width of the logits.
        sampling: the distribution they were drawn from.
        entropy: whether entropies are wanted; zeros otherwise.
        fused: by Liger's kernel, which never writes a chunk of logits to memory; needs a GPU, and a distribution that
            is not cut off. Entropies still take a pass of the head of their own.

    Where the logits do not fit into :data:`LOGITS_AT_ONCE` they are made in chunks, and again in the backward pass.
    """

    def chunk(states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(states).float()
        if sampling.whole:
            scaled = logits if sampling.temperature == 1.0 else logits / sampling.temperature
            logp = -cross_entropy(scaled, ids, reduction="none")
        else:
            logp = sampling.log_softmax(logits, ids).gather(-1, ids[:, None])[:, 0]
        if not entropy:
            return logp, torch.zeros_like(logp)
        with torch.no_grad():
            every = sampling.log_softmax(logits, ids).clamp(min=-1e4)  # 0 times -inf is no number
            return logp, -(every.exp() * every).sum(-1)

    if fused and sampling.whole:
        logp = fused_logprobs(head, hidden, targets, sampling.temperature)
        if not entropy:
            return logp, torch.zeros_like(logp)
        with torch.no_grad():
            plain = score_tokens(head, hidden, targets, vocabulary=vocabulary, sampling=sampling)
        return logp, plain[1]
    size = max(1, LOGITS_AT_ONCE // vocabulary)
    if len(targets) <= size:
        return chunk(hidden, targets)
    parts = [
        checkpoint(chunk, states, ids, use_reentrant=False) if torch.is_grad_enabled() else chunk(states, ids)
        for states, ids in zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def fused_logprobs(head: Any, hidden: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """[N] log-probabilities by Liger's fused linear cross-entropy (arXiv 2410.10989), backward included.

    Raises:
        ConfigError: Liger is not installed.
    """
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Fused
    except ImportError as error:
        raise ConfigError(
            "policy.fused_head=true: liger-kernel is not installed; pip install 'grasp-rl[liger]', or set it to false"
        ) from error
    states = hidden if temperature == 1.0 else hidden / temperature
    result = Fused.apply(states, head.weight, targets, head.bias, None, -100, 0.0, 0.0, "none")
    losses: Tensor = result[0] if isinstance(result, tuple) else result
    return -losses.float()
