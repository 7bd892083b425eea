"""Decoding: one prefill per prompt, its cache expanded to G rows, finished rows dropped on the way."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from grasp_rl.policies.generation import static as static_decoding
from grasp_rl.policies.generation.cache import growing_cache, padding_mask
from grasp_rl.policies.generation.state import DecodeState, Draft, Finished, draw
from grasp_rl.policies.transfer import to_device, together
from grasp_rl.policies.types import WHOLE, EmbeddedPrompt, LanguageModel, Sampling, deepstack_of
from grasp_rl.types import Completion, FinishReason

log = logging.getLogger(__name__)


@torch.no_grad()
def stream(
    policy: LanguageModel,
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
        state = prefill(policy, prompts, group_size, max_new_tokens)
        rows = len(prompts) * group_size
        drawn = None if uniforms is None else to_device(uniforms.reshape(rows, max_new_tokens), policy.device)
        drafts = [Draft(policy, stop_at_answer) for _ in range(rows)]
        decode = static_decoding.decode if _static(policy, state) else _decode_all
        yield from decode(
            policy,
            state,
            drafts,
            Finished(drafts, group_size),
            uniforms=drawn,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            deadline=deadline,
        )


def _static(policy: LanguageModel, state: DecodeState) -> bool:
    """Whether to decode with tensors that never move: on a GPU, where the model's cache has plain layers only."""
    if policy.decoding == "growing" or (policy.decoding == "auto" and policy.device.type != "cuda"):
        return False
    if not static_decoding.fits(state.cache):
        _say_once(type(policy.stock).__name__)
        return False
    return True


@functools.cache
def _say_once(model: str) -> None:
    log.warning("%s: its cache has layers of other kinds; decoding without a static cache and CUDA graph", model)


def _decode_all(
    policy: LanguageModel,
    state: DecodeState,
    drafts: Sequence[Draft],
    finished: Finished,
    *,
    uniforms: Tensor | None,
    max_new_tokens: int,
    sampling: Sampling,
    deadline: float | None,
) -> Iterator[tuple[int, list[Completion]]]:
    """The groups as they end; a row leaves the batch with its last token."""
    alive = torch.arange(len(drafts), device=policy.device)
    for step in range(max_new_tokens):
        logp = sampling.log_softmax(state.logits)
        token = logp.argmax(-1) if uniforms is None else draw(logp, uniforms[alive, step])
        chosen = logp.gather(-1, token[:, None])[:, 0]
        late = deadline is not None and time.monotonic() > deadline
        last = FinishReason.LENGTH if step + 1 == max_new_tokens else FinishReason.TIMEOUT if late else None
        going = []
        for place, (row, value, score) in enumerate(zip(alive.tolist(), token.tolist(), chosen.tolist(), strict=True)):
            if drafts[row].add(value, score, last):
                yield from finished(row)
            else:
                going.append(place)
        if not going:
            return
        if len(going) < len(token):
            kept = torch.tensor(going, device=policy.device)
            state.select(kept)
            alive, token = alive[kept], token[kept]
        decode_token(policy, state, token)


@contextlib.contextmanager
def _without_recomputation(policy: LanguageModel) -> Iterator[None]:
    """Evaluation mode: stock layers that recompute their activations in training refuse the key-value cache."""
    training = policy.training
    policy.eval()
    try:
        yield
    finally:
        policy.train(training)


def prefill(
    policy: LanguageModel, prompts: Sequence[EmbeddedPrompt], group_size: int, max_new_tokens: int
) -> DecodeState:
    """Run the left-padded prompts once and expand the cache to G rows each."""
    lengths = torch.tensor([len(p.embeddings) for p in prompts])
    longest = int(lengths.max())
    rows, width = len(prompts), prompts[0].embeddings.shape[-1]
    hidden = prompts[0].embeddings.new_zeros(rows, longest, width)
    visual = torch.zeros(rows, longest, dtype=torch.bool)
    axes = len(prompts[0].positions)
    positions = torch.zeros(axes, rows, longest, dtype=torch.long)
    for b, prompt in enumerate(prompts):
        start = longest - len(prompt.embeddings)
        hidden[b, start:], visual[b, start:] = prompt.embeddings, prompt.visual
        positions[:, b, start:] = prompt.positions
    seen = padding_mask(lengths, longest, max_new_tokens)
    laid = {"visual": visual, "positions": positions, "next": torch.stack([p.next_position for p in prompts])}
    on = together(laid if seen is None else laid | {"seen": seen}, policy.device)
    mask = None if seen is None else on["seen"][:, 0, 0, :longest].long()
    cache = growing_cache(policy.core.language_model.config)
    output = policy.language_model(hidden, on["positions"], mask, deepstack_of(prompts), on["visual"], cache=cache)
    cache.batch_repeat_interleave(group_size)
    return DecodeState(
        cache=cache,
        length=longest,
        mask=None if seen is None else on["seen"].repeat_interleave(group_size, 0),
        position=on["next"].repeat_interleave(group_size),
        axes=axes,
        logits=policy.stock.lm_head(output.last_hidden_state[:, -1]).repeat_interleave(group_size, 0),
    )


def decode_token(policy: LanguageModel, state: DecodeState, token: Tensor) -> None:
    """One token for every living row."""
    state.length += 1
    output = policy.language_model(
        policy.core.get_input_embeddings()(token[:, None]),
        state.position.expand(state.axes, -1)[..., None],
        None if state.mask is None else state.mask[..., : state.length],
        cache=state.cache,
    )
    state.logits = policy.stock.lm_head(output.last_hidden_state[:, -1])
    state.position = state.position + 1
