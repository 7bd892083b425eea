"""Decoding: one prefill per prompt, its cache expanded to G rows, finished rows dropped on the way."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from grasp_rl.policies.growing_cache import growing_cache, padding_mask
from grasp_rl.policies.records import WHOLE, EmbeddedPrompt, Sampling, deepstack_of
from grasp_rl.types import Completion, FinishReason

if TYPE_CHECKING:
    from grasp_rl.policies.vlm import VlmPolicy


ANSWER_ENDS = "</answer>"


@torch.no_grad()
def stream(
    policy: VlmPolicy,
    prompts: Sequence[EmbeddedPrompt],
    uniforms: Tensor | None,
    *,
    group_size: int,
    max_new_tokens: int,
    sampling: Sampling = WHOLE,
    stop_at_answer: bool = False,
    deadline: float | None = None,
) -> Iterator[tuple[int, list[Completion]]]:
    """G completions of each prompt after one prefill per prompt: (place of the prompt, completions), as they end.

    Args:
        policy: whose stock model decodes.
        prompts: B embedded prompts.
        uniforms: [B, G, max_new_tokens] float64 in [0, 1): token t is drawn by inverse CDF from uniform t, so the draw
            does not depend on the batch's layout. None decodes greedily.
        group_size: G.
        max_new_tokens: a completion without end of sequence by then has finish reason LENGTH.
        sampling: the distribution that is drawn from.
        stop_at_answer: end a completion where it closes its answer, without an end of sequence.
        deadline: time of ``time.monotonic`` at which what is not finished ends with finish reason TIMEOUT.

    A row whose logits are not finite ends where it stands, with finish reason NOT_FINITE.
    """
    with _without_recomputation(policy):
        state = _prefill(policy, prompts, group_size, max_new_tokens)
        rows = len(prompts) * group_size
        drawn = None if uniforms is None else uniforms.reshape(rows, max_new_tokens).to(policy.device)
        drafts = [_Draft(policy, stop_at_answer) for _ in range(rows)]
        unfinished = [group_size] * len(prompts)
        alive = torch.arange(rows, device=policy.device)
        for step in range(max_new_tokens):
            logp = sampling.log_softmax(state.logits)
            token = logp.argmax(-1) if drawn is None else draw(logp, drawn[alive, step])
            chosen = logp.gather(-1, token[:, None])[:, 0]
            late = deadline is not None and time.monotonic() > deadline
            last = FinishReason.LENGTH if step + 1 == max_new_tokens else FinishReason.TIMEOUT if late else None
            going = []
            for place, (row, value, score) in enumerate(
                zip(alive.tolist(), token.tolist(), chosen.tolist(), strict=True)
            ):
                if not drafts[row].add(value, score, last):
                    going.append(place)
                    continue
                group = row // group_size
                unfinished[group] -= 1
                if not unfinished[group]:
                    siblings = drafts[group * group_size : (group + 1) * group_size]
                    yield group, [draft.completion() for draft in siblings]
            if not going:
                return
            if len(going) < len(token):
                kept = torch.tensor(going, device=policy.device)
                state.select(kept)
                alive, token = alive[kept], token[kept]
            _decode(policy, state, token)


def draw(logp: Tensor, uniform: Tensor) -> Tensor:
    """[N] tokens by inverse CDF, from log-probabilities [N, V] and uniforms [N] float64 in [0, 1).

    The token is the first whose cumulative probability, in float64 and by token id, exceeds the uniform.
    """
    cdf = logp.double().exp().cumsum(-1)
    found = torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True)[:, 0]
    return found.clamp(max=cdf.shape[-1] - 1)


class _Draft:
    """A completion on its way."""

    def __init__(self, policy: VlmPolicy, stop_at_answer: bool) -> None:
        self.policy, self.stop_at_answer = policy, stop_at_answer
        self.tokens: list[int] = []
        self.scores: list[float] = []
        self.reason: FinishReason | None = None

    def add(self, token: int, score: float, last: FinishReason | None) -> bool:
        """Whether the completion ends with ``token``; ``last`` is the reason if it has to."""
        if not math.isfinite(score):
            self.reason = FinishReason.NOT_FINITE
            return True
        self.tokens.append(token)
        self.scores.append(score)
        ended = token in self.policy.ends or (self.stop_at_answer and self._closes_answer())
        self.reason = FinishReason.STOP if ended else last
        return self.reason is not None

    def _closes_answer(self) -> bool:
        decode = self.policy.tokenizer.decode
        return ">" in decode(self.tokens[-1:]) and ANSWER_ENDS in decode(self.tokens[-len(ANSWER_ENDS) :])

    def completion(self) -> Completion:
        assert self.reason is not None
        return Completion(
            token_ids=tuple(self.tokens),
            logprobs=tuple(self.scores),
            text=self.policy.tokenizer.decode(self.tokens, skip_special_tokens=True),
            finish_reason=self.reason,
        )


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
