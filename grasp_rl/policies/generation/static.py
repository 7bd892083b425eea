"""Decoding with tensors that never move, so that one token of all rows is one captured CUDA graph.

An eager step launches some thousand kernels, each shorter than its launch. Here the cache has its full length from the
start, every counter is a tensor, and the host looks only now and then which rows have ended: on a GPU a step is the
replay of one graph. On a CPU the same step runs without the graph.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from grasp_rl.policies.generation.cache import GrowingLayer
from grasp_rl.policies.generation.state import DecodeState, Draft, Finished, draw
from grasp_rl.policies.transfer import to_device
from grasp_rl.policies.types import LanguageModel, Sampling
from grasp_rl.types import Completion, FinishReason

LOOK_EVERY = 16
"""Tokens between two looks of the host; a row that ended goes on in vain for fewer."""


class StaticLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a fixed length; new ones go to ``place``, a tensor that the step moves on."""

    def __init__(self, keys: Tensor, values: Tensor, room: int, place: Tensor) -> None:
        super().__init__()
        self.is_initialized, self.place = True, place
        self.dtype, self.device, self.held = keys.dtype, keys.device, keys.shape[-2]
        self.keys = torch.nn.functional.pad(keys, (0, 0, 0, room))
        self.values = torch.nn.functional.pad(values, (0, 0, 0, room))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one token's [B, H, 1, D] keys and values and return all, those still empty included."""
        self.keys.index_copy_(2, self.place, key_states)
        self.values.index_copy_(2, self.place, value_states)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens of the prompt: the stock model asks, and its answer is overruled by explicit positions and masks."""
        return int(self.held)


def fits(cache: Any) -> bool:
    """Whether every layer of a prefilled ``cache`` is a plain one; windows and states of other kinds are not."""
    return all(type(layer) is GrowingLayer for layer in cache.layers)


class StaticState:
    """All that a step reads and writes."""

    def __init__(
        self, policy: LanguageModel, state: DecodeState, uniforms: Tensor | None, tokens: int, sampling: Sampling
    ) -> None:
        self.policy, self.sampling, self.axes = policy, sampling, state.axes
        device, rows = state.logits.device, len(state.logits)
        self.place = torch.full((1,), state.length, device=device)
        self.cache = DynamicCache(config=policy.core.language_model.config)
        self.cache.layers = [StaticLayer(c.keys, c.values, tokens, self.place) for c in state.cache.layers]
        self.seen = torch.zeros(rows, 1, 1, state.length + tokens, dtype=torch.bool, device=device)
        self.seen[..., : state.length] = True if state.mask is None else state.mask[..., : state.length]
        self.position, self.logits, self.uniforms = state.position.clone(), state.logits.clone(), uniforms
        self.step = torch.zeros(1, dtype=torch.long, device=device)
        self.tokens = torch.zeros(rows, tokens, dtype=torch.long, device=device)
        self.scores = torch.zeros(rows, tokens, device=device)
        self.rows = list(range(rows))
        """Which rows of the batch are still here."""
        self._replay: Callable[[], None] | None = None

    def advance(self) -> None:
        """Draw a token of every row and run the model on it."""
        if self.logits.device.type == "cuda":
            self._replay = self._replay or self.capture()
            self._replay()
        else:
            self._advance()

    def _advance(self) -> None:
        logp = self.sampling.log_softmax(self.logits)
        uniforms = self.uniforms
        token = logp.argmax(-1) if uniforms is None else draw(logp, uniforms.index_select(1, self.step)[:, 0])
        self.tokens.index_copy_(1, self.step, token[:, None])
        self.scores.index_copy_(1, self.step, logp.gather(-1, token[:, None]))
        self.seen.index_fill_(3, self.place, True)
        output = self.policy.language_model(
            self.policy.core.get_input_embeddings()(token[:, None]),
            self.position.expand(self.axes, -1)[..., None],
            self.seen,
            cache=self.cache,
        )
        self.logits.copy_(self.policy.stock.lm_head(output.last_hidden_state[:, -1]))
        for counter in (self.step, self.place, self.position):
            counter.add_(1)

    def capture(self) -> Callable[[], None]:
        """The step as a graph, captured after the trial runs that the libraries need."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.rehearse()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._advance()
        return graph.replay

    def rehearse(self) -> None:
        """One step, taken back: the next one writes over its keys and values. The last step can be rehearsed, too."""
        moved = (self.step, self.place, self.position, self.logits, self.seen, self.tokens, self.scores)
        before = [tensor.clone() for tensor in moved]
        self._advance()
        for tensor, value in zip(moved, before, strict=True):
            tensor.copy_(value)

    def keep(self, living: Sequence[int]) -> None:
        """Go on with some of the rows only; a graph is captured anew."""
        self._replay = None
        index = to_device(torch.tensor(living), self.logits.device)
        for layer in self.cache.layers:
            layer.batch_select_indices(index)
        for name in ("seen", "position", "logits", "tokens", "scores"):
            setattr(self, name, getattr(self, name)[index])
        if self.uniforms is not None:
            self.uniforms = self.uniforms[index]
        self.rows = [self.rows[place] for place in living]


def fetch(tokens: Tensor, scores: Tensor) -> tuple[list[list[int]], list[list[float]]]:
    """Both [rows, n] as Python's numbers, by one transfer: the scores travel as the bits of integers."""
    both = torch.stack([tokens.int(), scores.contiguous().view(torch.int32)]).cpu()
    return both[0].tolist(), both[1].view(torch.float32).tolist()


def decode(
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
    """The groups as they end, like :func:`grasp_rl.policies.generation.decode.stream`, after its prefill.

    Rows that have ended leave once they are half of all: a smaller batch costs a new capture.
    """
    static = StaticState(policy, state, uniforms, max_new_tokens, sampling)
    looked = 0
    while True:
        until = min(looked + LOOK_EVERY, max_new_tokens)
        for _ in range(looked, until):
            static.advance()
        late = deadline is not None and time.monotonic() > deadline
        tokens, scores = fetch(static.tokens[:, looked:until], static.scores[:, looked:until])
        living = []
        for place, row in enumerate(static.rows):
            if drafts[row].reason is not None:
                continue
            for offset, (token, score) in enumerate(zip(tokens[place], scores[place], strict=True)):
                last = looked + offset + 1
                forced = FinishReason.LENGTH if last == max_new_tokens else None
                if forced is None and late and last == until:
                    forced = FinishReason.TIMEOUT
                if drafts[row].add(token, score, forced):
                    yield from finished(row)
                    break
            else:
                living.append(place)
        if not living:
            return
        looked = until
        if 2 * len(living) <= len(static.rows):
            static.keep(living)
