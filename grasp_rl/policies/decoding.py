"""Decoding: one prefill per prompt, its cache expanded to G rows, finished rows dropped on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from grasp_rl.policies.growing_cache import growing_cache, padding_mask
from grasp_rl.policies.records import EmbeddedPrompt, deepstack_of
from grasp_rl.types import Completion, FinishReason

if TYPE_CHECKING:
    from grasp_rl.policies.vlm import VlmPolicy


@torch.no_grad()
def generate(
    policy: VlmPolicy,
    prompts: Sequence[EmbeddedPrompt],
    uniforms: Tensor | None,
    *,
    group_size: int,
    max_new_tokens: int,
    temperature: float = 1.0,
) -> list[list[Completion]]:
    """G completions of each prompt after one prefill per prompt.

    Args:
        policy: whose stock model decodes.
        prompts: B embedded prompts.
        uniforms: [B, G, max_new_tokens] float64 in [0, 1): token t is drawn by inverse CDF from uniform t, so the draw
            does not depend on the batch's layout. None decodes greedily.
        group_size: G.
        max_new_tokens: a completion without end of sequence by then has finish reason LENGTH.
        temperature: divides the logits.

    Returns:
        B lists of G completions.
    """
    with _without_recomputation(policy):
        state = _prefill(policy, prompts, group_size, max_new_tokens)
        rows = len(prompts) * group_size
        drawn = None if uniforms is None else uniforms.reshape(rows, max_new_tokens).to(policy.device)
        tokens: list[list[int]] = [[] for _ in range(rows)]
        scores: list[list[float]] = [[] for _ in range(rows)]
        alive = torch.arange(rows, device=policy.device)
        ends = torch.tensor(policy.ends, device=policy.device)
        for step in range(max_new_tokens):
            logp = torch.log_softmax(state.logits.float() / temperature, dim=-1)
            if drawn is None:
                token = logp.argmax(-1)
            else:
                cdf = logp.double().exp().cumsum(-1)
                target = drawn[alive, step, None] * cdf[:, -1:]
                token = torch.searchsorted(cdf, target, right=True)[:, 0].clamp(max=cdf.shape[-1] - 1)
            chosen = logp.gather(-1, token[:, None])[:, 0]
            for row, value, score in zip(alive.tolist(), token.tolist(), chosen.tolist(), strict=True):
                tokens[row].append(value)
                scores[row].append(score)
            going = (~torch.isin(token, ends)).nonzero()[:, 0]
            if not len(going) or step + 1 == max_new_tokens:
                break
            if len(going) < len(token):
                state.select(going)
                alive, token = alive[going], token[going]
            _decode(policy, state, token)
        done = [
            Completion(
                token_ids=tuple(ids),
                logprobs=tuple(values),
                text=policy.tokenizer.decode(ids, skip_special_tokens=True),
                finish_reason=FinishReason.STOP if ids[-1] in policy.ends else FinishReason.LENGTH,
            )
            for ids, values in zip(tokens, scores, strict=True)
        ]
        return [done[i : i + group_size] for i in range(0, rows, group_size)]


@contextlib.contextmanager
def _without_recomputation(policy: VlmPolicy) -> Iterator[None]:
    """Evaluation mode: stock layers that recompute their activations in training refuse the key-value cache."""
    training = policy.training
    policy.eval()
    try:
        yield
    finally:
        policy.train(training)


def _prefill(
    policy: VlmPolicy, prompts: Sequence[EmbeddedPrompt], group_size: int, max_new_tokens: int
) -> _DecodeState:
    """Run the left-padded prompts once and expand the cache to G rows each."""
    longest = max(len(p.embeddings) for p in prompts)
    rows, width = len(prompts), prompts[0].embeddings.shape[-1]
    hidden = prompts[0].embeddings.new_zeros(rows, longest, width)
    visual = torch.zeros(rows, longest, dtype=torch.bool, device=policy.device)
    mask = torch.zeros(rows, longest, dtype=torch.long, device=policy.device)
    axes = len(prompts[0].positions)
    positions = torch.zeros(axes, rows, longest, dtype=torch.long, device=policy.device)
    for b, prompt in enumerate(prompts):
        start = longest - len(prompt.embeddings)
        hidden[b, start:], visual[b, start:], mask[b, start:] = prompt.embeddings, prompt.visual, 1
        positions[:, b, start:] = prompt.positions
    cache = growing_cache(policy.core.language_model.config)
    output = policy.language_model(hidden, positions, mask, deepstack_of(prompts), visual, past_key_values=cache)
    cache.batch_repeat_interleave(group_size)
    lengths = torch.tensor([len(p.embeddings) for p in prompts], device=policy.device)
    seen = padding_mask(lengths, longest, max_new_tokens)
    following = torch.stack([p.positions.max() + 1 for p in prompts])
    return _DecodeState(
        cache=cache,
        length=longest,
        mask=None if seen is None else seen.repeat_interleave(group_size, 0),
        position=following.repeat_interleave(group_size),
        axes=axes,
        logits=policy.stock.lm_head(output.last_hidden_state[:, -1]).repeat_interleave(group_size, 0),
    )


def _decode(policy: VlmPolicy, state: _DecodeState, token: Tensor) -> None:
    """One token for every living row."""
    state.length += 1
    output = policy.language_model(
        policy.core.get_input_embeddings()(token[:, None]),
        state.position.expand(state.axes, -1)[..., None],
        None if state.mask is None else state.mask[..., : state.length],
        past_key_values=state.cache,
    )
    state.logits = policy.stock.lm_head(output.last_hidden_state[:, -1])
    state.position = state.position + 1


@dataclass(kw_only=True)
class _DecodeState:
    """What decoding carries from token to token; rows are dropped when their completion ends."""

    cache: Any
    length: int
    """Tokens so far, left padding included."""
    mask: Tensor | None
    """[rows, 1, 1, all tokens there can be] bool, False on left padding; None where there is none."""
    position: Tensor
    """[rows] position of the next token, on every axis."""
    axes: int
    """Axes of a position: 1, or the 3 of M-RoPE."""
    logits: Tensor
    """[rows, V]"""

    def select(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.mask, self.position = None if self.mask is None else self.mask[rows], self.position[rows]
