"""Attention of the packed row, registered with transformers under a name of our own.

A 4-D mask makes the stock kernel look at L x L pairs of a row of L = P + sum(C) tokens, nearly all of them masked: a
completion sees the prompt and itself. Two calls look at what is seen: the prompt at itself, P x P, causal; and each of
the G completions at the prompt and itself, C x (P + C).

On a GPU in half precision both are one call of torch's kernel for sequences of different lengths, without padding: a
prompt is a sequence that sees itself, a completion one that sees the prompt and itself, the last query at the last key.

A vision encoder whose patches see those of their image or window alone takes the same kernel there: one call a layer
instead of one an image and window.

One token at a time (decoding) needs one call that repeats no key for grouped heads. All else (prefill) goes to the
stock implementation, as if nothing were registered.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from grasp_rl.policies.packing import PackedLayout
from grasp_rl.policies.transfer import together

varlen_attn: Any = None
"""Torch's attention over sequences of different lengths, where this torch has it."""
with contextlib.suppress(ImportError):
    from torch.nn.attention.varlen import varlen_attn

PREFIX = "packed_"
VISION = "varlen_flash"
"""Name of :func:`attend_patches` in transformers: "flash" in it makes stock vision encoders hand over sequences."""


@dataclass(frozen=True, kw_only=True)
class TwoCalls:
    """Where the queries of the second call are found, what they see, and where all results go."""

    prompt: int
    """Longest prompt of the B rows, in tokens."""
    gather: Tensor
    """[B, G * C] places of the completions' tokens in their rows; 0 for padding."""
    visible: Tensor
    """[B, G, 1, C, prompt + C] bool, True where a completion's token sees a prompt's, or its own completion's."""
    back: Tensor
    """[B, L] where each token of a row stands among the results [prompt | G * C]."""

    def to(self, device: torch.device) -> TwoCalls:
        """The same plan on ``device``."""
        moved: dict[str, Any] = {"gather": self.gather, "visible": self.visible, "back": self.back}
        moved |= together(moved, device)
        return replace(self, **moved)


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """N = B * (1 + G) sequences, each the queries of a prompt or of a completion and the keys that they see."""

    queries: Tensor
    """[tokens] places of the queries in the flattened rows [B * L]: every token once, padding apart."""
    keys: Tensor
    """[sum over sequences of keys] places of the keys: a prompt's stand once for itself and once a completion."""
    query_ends: Tensor
    """[N + 1] int32, cumulative numbers of queries."""
    key_ends: Tensor
    """[N + 1] int32, cumulative numbers of keys."""
    longest: tuple[int, int]
    """Most queries and most keys of a sequence."""

    def to(self, device: torch.device) -> Sequences:
        """The same plan on ``device``."""
        names = ("queries", "keys", "query_ends", "key_ends")
        moved: dict[str, Any] = {name: getattr(self, name) for name in names}
        moved |= together(moved, device)
        return replace(self, **moved)


def sequences(prompt_lengths: Tensor, lengths: Tensor, row_length: int) -> Sequences:
    """Prompts of [B] tokens and completions of [B, G], in rows of ``row_length``."""
    queries: list[Tensor] = []
    keys: list[Tensor] = []
    for row, (prompt, completions) in enumerate(zip(prompt_lengths.tolist(), lengths.tolist(), strict=True)):
        start = row * row_length
        shared = torch.arange(start, start + prompt)
        queries.append(shared)
        keys.append(shared)
        place = start + prompt
        for length in completions:
            own = torch.arange(place, place + length)
            queries.append(own)
            keys.append(torch.cat([shared, own]) if length else own)
            place += length

    def ends(parts: list[Tensor]) -> Tensor:
        return torch.tensor([0, *(len(part) for part in parts)]).cumsum(0).int()

    return Sequences(
        queries=torch.cat(queries),
        keys=torch.cat(keys),
        query_ends=ends(queries),
        key_ends=ends(keys),
        longest=(max(map(len, queries)), max(map(len, keys))),
    )


def two_calls(layout: PackedLayout, prompt_lengths: Tensor, lengths: Tensor) -> TwoCalls:
    """The plan of a packed layout of B rows.

    Args:
        layout: see :func:`grasp_rl.policies.packing.pack`.
        prompt_lengths: [B]
        lengths: [B, G] tokens of the completions.
    """
    rows, groups = lengths.shape
    prompt, width = int(prompt_lengths.max()), int(lengths.max())
    step = torch.arange(width)
    in_prompt = torch.arange(prompt)[None] < prompt_lengths[:, None]  # (B, prompt)
    own = step[:, None] >= step[None]
    visible = torch.cat(
        [
            in_prompt[:, None, None, None].expand(rows, groups, 1, width, prompt),
            own.expand(rows, groups, 1, width, width),
        ],
        dim=-1,
    )
    place = torch.arange(layout.segment.shape[1]).expand_as(layout.segment)
    behind = prompt + (layout.segment - 1) * width + layout.offset
    back = torch.where(layout.segment == 0, place, torch.where(layout.segment > 0, behind, 0))
    return TwoCalls(
        prompt=prompt,
        gather=layout.completion_index.flatten(1),
        visible=visible,
        back=back,
    )


def takes_sequences(hidden: Tensor) -> bool:
    """Whether rows like ``hidden`` go to torch's kernel for sequences of different lengths."""
    half = hidden.dtype in (torch.bfloat16, torch.float16)
    return hidden.is_cuda and half and sequence_kernel(varlen_attn) is not None


def prepare_vision_encoder(visual: Any) -> None:
    """Let a stock vision encoder with sequences of patches take the kernel where its weights are such as to."""
    config = visual.config
    if config._attn_implementation in ("sdpa", VISION):
        config._attn_implementation = VISION if takes_sequences(next(visual.parameters())) else "sdpa"


def plan(layout: PackedLayout, prompt_lengths: Tensor, lengths: Tensor, hidden: Tensor) -> TwoCalls | Sequences:
    """How rows like ``hidden`` [B, L, D] are attended to, on their device; see :func:`two_calls`."""
    if takes_sequences(hidden):
        return sequences(prompt_lengths, lengths, layout.segment.shape[1]).to(hidden.device)
    return two_calls(layout, prompt_lengths, lengths).to(hidden.device)


def attend(query: Tensor, key: Tensor, value: Tensor, plan: TwoCalls, scaling: float | None) -> Tensor:
    """[B, L, H, D] results for queries [B, H, L, D] and keys and values [B, K, L, D] of K heads, H a multiple of K."""
    rows, heads, _, size = query.shape
    kv_heads, shared = key.shape[1], heads // key.shape[1]
    prompt, groups, width = plan.prompt, plan.visible.shape[1], plan.visible.shape[3]
    first = scaled_dot_product_attention(
        query[:, :, :prompt],
        key[:, :, :prompt].repeat_interleave(shared, 1),
        value[:, :, :prompt].repeat_interleave(shared, 1),
        is_causal=True,
        scale=scaling,
    )

    def taken(x: Tensor) -> Tensor:
        """[B, G, heads, C, D] tokens of the completions."""
        index = plan.gather[:, None, :, None].expand(-1, x.shape[1], -1, size)
        return x.gather(2, index).reshape(rows, -1, groups, width, size).transpose(1, 2)

    def with_prompt(x: Tensor) -> Tensor:
        """[B * G, K, prompt + C, D]"""
        before = x[:, None, :, :prompt].expand(-1, groups, -1, -1, -1)
        return torch.cat([before, taken(x)], dim=3).flatten(0, 1)

    # the query heads that share a key head stand in one long query, so that no key is repeated for them
    grouped_query = taken(query).reshape(rows * groups, kv_heads, shared * width, size)
    visible = plan.visible.flatten(0, 1).expand(-1, shared, -1, -1).flatten(1, 2)[:, None]
    second = scaled_dot_product_attention(
        grouped_query, with_prompt(key), with_prompt(value), attn_mask=visible, scale=scaling
    )
    second = second.reshape(rows, groups, heads, width, size).transpose(1, 2).flatten(2, 3)  # (B, H, G * C, D)
    results = torch.cat([first, second], dim=2)
    return results.gather(2, plan.back[:, None, :, None].expand(-1, heads, -1, size)).transpose(1, 2).contiguous()


@dataclass(frozen=True, kw_only=True)
class SequenceKernel:
    """Torch's attention over sequences of different lengths, called with the arguments that this version of it has.

    ``is_causal`` alone is torch 2.10's; ``window_size`` and ``scale`` came with 2.11, ``enable_gqa`` with 2.12.
    """

    function: Callable[..., Any]
    causal: Mapping[str, Any]
    """The keyword that asks for a causal mask, the last query at the last key; without it all is seen."""
    scales: bool
    """Whether it takes the factor of the scores; else it is 1 / sqrt(D)."""
    shares: bool
    """Whether fewer heads of keys than of queries are taken; else keys are repeated."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        ends: tuple[Tensor, Tensor],
        longest: tuple[int, int],
        scaling: float | None,
        causal: bool,
    ) -> Tensor:
        """[tokens, H, D] results for queries [tokens, H, D] and keys and values [keys, K, D], sequence after sequence.

        Args:
            query: of all sequences.
            key: of all sequences.
            value: of all sequences.
            ends: [N + 1] int32 cumulative numbers of queries and of keys.
            longest: most queries and most keys of a sequence.
            scaling: of the scores; None for 1 / sqrt(D).
            causal: whether a query sees no key behind it.
        """
        kwargs, default = dict(self.causal) if causal else {}, query.shape[-1] ** -0.5
        if self.scales:
            kwargs["scale"] = scaling
        elif scaling is not None and not math.isclose(scaling, default):
            query = query * (scaling / default)
        shared = query.shape[1] // key.shape[1]
        if self.shares:
            kwargs["enable_gqa"] = shared > 1
        elif shared > 1:
            key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        result: Tensor = self.function(query, key, value, *ends, *longest, **kwargs)
        return result


@lru_cache(maxsize=8)
def sequence_kernel(function: Callable[..., Any] | None) -> SequenceKernel | None:
    """How to call ``function``, some version of torch's ``varlen_attn``; None where it cannot be called as needed.

    A causal mask is aligned at the last key in every version: it is flash attention's.
    """
    if function is None:
        return None
    try:
        signature = inspect.signature(function)
        accepted = signature.parameters
        causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in accepted else {"is_causal": True}
        signature.bind(*range(7), **causal)
    except (TypeError, ValueError):
        return None
    return SequenceKernel(function=function, causal=causal, scales="scale" in accepted, shares="enable_gqa" in accepted)


def attend_sequences(query: Tensor, key: Tensor, value: Tensor, plan: Sequences, scaling: float | None) -> Tensor:
    """[B, L, H, D] like :func:`attend`, by one call of torch's attention over sequences of different lengths.

    Zeros stand where a row is padding. Needs a GPU with flash attention and half precision.
    """
    kernel = sequence_kernel(varlen_attn)
    assert kernel is not None  # see takes_sequences
    rows, heads, length, size = query.shape

    def taken(x: Tensor, places: Tensor) -> Tensor:
        """[tokens, heads, D]"""
        return x.transpose(1, 2).flatten(0, 1).index_select(0, places)

    result = kernel(
        taken(query, plan.queries),
        taken(key, plan.keys),
        taken(value, plan.keys),
        ends=(plan.query_ends, plan.key_ends),
        longest=plan.longest,
        scaling=scaling,
        causal=True,
    )
    results = query.new_zeros(rows * length, heads, size).index_copy(0, plan.queries, result)
    return results.view(rows, length, heads, size)


def attend_patches(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    cu_seq_lens_q: Tensor, cu_seq_lens_k: Tensor, max_length_q: int, max_length_k: int,
    scaling: float | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """[1, L, H, D] of a stock vision encoder's [1, H, L, D]: every patch sees its own sequence, given by its end."""
    kernel = sequence_kernel(varlen_attn)
    assert kernel is not None  # see takes_sequences
    assert attention_mask is None
    query, key, value = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    ends, longest = (cu_seq_lens_q.int(), cu_seq_lens_k.int()), (max_length_q, max_length_k)
    return kernel(query, key, value, ends=ends, longest=longest, scaling=scaling, causal=False)[None], None


AttentionInterface.register(VISION, attend_patches)


def attend_one(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """[B, 1, H, D] results for one token a row: the heads that share a key head ask together, so no key is repeated.

    Args:
        query: [B, H, 1, D]
        key: [B, K, n, D], H a multiple of K.
        value: [B, K, n, D]
        mask: [B, 1, 1, n], bool or additive, or None to see all.
        scaling: of the scores.
    """
    rows, heads, _, size = query.shape
    grouped_query = query.reshape(rows, key.shape[1], -1, size)
    result = scaled_dot_product_attention(grouped_query, key, value, attn_mask=mask, scale=scaling)
    return result.reshape(rows, 1, heads, size)


def register(base: str) -> str:
    """Register two-call attention over transformers' implementation ``base``; returns its name."""
    name = PREFIX + base

    def forward(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *,
        packed: TwoCalls | Sequences | None = None, scaling: float | None = None, **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        if isinstance(packed, Sequences):
            return attend_sequences(query, key, value, packed, scaling), None
        if packed is not None:
            return attend(query, key, value, packed, scaling), None
        if query.shape[2] == 1 and not kwargs.get("output_attentions"):
            return attend_one(query, key, value, attention_mask, scaling), None
        stock = _eager_of(module) if base == "eager" else ALL_ATTENTION_FUNCTIONS[base]
        result: tuple[Tensor, Tensor | None] = stock(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return result

    AttentionInterface.register(name, forward)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    return name


def _eager_of(module: Any) -> Any:
    """The eager attention of the module's own model file, which is registered nowhere."""
    return sys.modules[type(module).__module__].eager_attention_forward
