"""Scoring: the completions of each prompt in one packed row, from embeddings to log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grasp_rl.policies import attention
from grasp_rl.policies.packing import PackedLayout, attention_mask, pack
from grasp_rl.policies.transfer import to_device, together
from grasp_rl.policies.types import WHOLE, EmbeddedPrompt, LanguageModel, Sampling, Scores, deepstack_of


def logprobs(
    policy: LanguageModel,
    prompts: Sequence[EmbeddedPrompt],
    completions: Sequence[Sequence[Sequence[int]]],
    *,
    sampling: Sampling = WHOLE,
    branches: Sequence[Sequence[EmbeddedPrompt | None]] | None = None,
    unscored: Sequence[Sequence[int]] | None = None,
    entropy: bool = True,
    attention_layers: Sequence[int] = (),
) -> Scores:
    """Score G completions of each prompt in one packed row per prompt.

    Args:
        policy: whose stock model scores.
        prompts: B embedded prompts.
        completions: B x G token-id sequences.
        branches: B x G later turns, which the completions begin with: their embeddings, images included, and positions;
            None for a completion of the first turn.
        sampling: the distribution they were drawn from.
        unscored: B x G numbers of leading tokens that are context only (a question of its own, in fine-tuning).
        entropy: whether entropies are wanted.
        attention_layers: layers whose first two heads' attention to the image is wanted, averaged; needs eager
            attention and images of one size.
    """
    lengths = torch.tensor([[len(c) for c in group] for group in completions])
    prompt_lengths = torch.tensor([len(p.embeddings) for p in prompts])
    layout = pack(prompt_lengths, lengths)
    rows, length = layout.segment.shape
    step = torch.arange(int(lengths.max()))
    held = step < lengths[..., None]  # (B, G, C)
    start = length * torch.arange(rows)[:, None, None]  # of each row, where all rows stand behind one another
    scored = held if unscored is None else held & (step >= torch.tensor(unscored)[..., None])
    ids = torch.zeros(held.shape, dtype=torch.long)
    ids[held] = torch.tensor([token for group in completions for completion in group for token in completion])
    visual = torch.zeros(rows, length, dtype=torch.bool)
    positions = layout.offset.expand(len(prompts[0].positions), rows, length).clone()
    for b, prompt in enumerate(prompts):
        count = len(prompt.embeddings)
        visual[b, :count] = prompt.visual
        positions[:, b, count:] += prompt.next_position
        positions[:, b, :count] = prompt.positions
    inserted = [] if branches is None else _place_branches(branches, layout, visual, positions)
    on = together(
        {
            "tokens": ids[held],
            "places": (start + layout.completion_index)[held],
            "targets": ids[scored],
            "predictors": (start + layout.predictor_index)[scored],
            "scored": scored.flatten().nonzero()[:, 0],
            "valid": scored,
            "visual": visual,
            "positions": positions,
        },
        policy.device,
    )
    embeddings = policy.core.get_input_embeddings()(on["tokens"])
    hidden = embeddings.new_zeros(rows, length, embeddings.shape[-1])
    for b, prompt in enumerate(prompts):
        hidden[b, : len(prompt.embeddings)] = prompt.embeddings
    hidden = hidden.flatten(0, 1).index_copy(0, on["places"], embeddings).view(hidden.shape)
    for b, begin, branch in inserted:
        hidden[b, begin : begin + len(branch.embeddings)] = branch.embeddings
    if policy.packed_attention == "two_calls" and not attention_layers:
        kwargs: dict[str, Any] = {"packed": attention.plan(layout, prompt_lengths, lengths, hidden)}
        mask = hidden.new_empty(1, 1, 1, 1)  # a mask made by somebody is taken as it is
    else:
        kwargs = {"output_attentions": bool(attention_layers)}
        mask = attention_mask(to_device(layout.segment, policy.device))
    result = policy.language_model(hidden, on["positions"], mask, _deepstack(prompts, inserted), on["visual"], **kwargs)
    image_attention = None
    if attention_layers:
        image_attention = _image_attention(
            result.attentions, attention_layers, visual, start // length, layout.predictor_index
        )
    predictor = result.last_hidden_state.flatten(0, 1)[on["predictors"]]  # (tokens, D)
    logp, uncertainty = policy.scorer(
        predictor,
        on["targets"],
        sampling=sampling,
        entropy=entropy,
        fused=policy.fused_head and policy.device.type == "cuda",
    )
    empty = torch.zeros(held.numel(), device=policy.device)
    return Scores(
        logp=empty.index_copy(0, on["scored"], logp).view(held.shape),
        entropy=empty.index_copy(0, on["scored"], uncertainty).view(held.shape),
        valid=on["valid"],
        image_attention=image_attention,
    )


def _place_branches(
    branches: Sequence[Sequence[EmbeddedPrompt | None]], layout: PackedLayout, visual: Tensor, positions: Tensor
) -> list[tuple[int, int, EmbeddedPrompt]]:
    """Enter later turns into ``visual`` [B, L] and ``positions`` [A, B, L]; returns (row, place, turn) of each."""
    inserted = []
    for b, group in enumerate(branches):
        for g, branch in enumerate(group):
            if branch is None:
                continue
            mine = (layout.segment[b] == g + 1).nonzero()[:, 0]
            begin, count = int(mine[0]), len(branch.embeddings)
            visual[b, begin : begin + count] = branch.visual
            positions[:, b, begin : begin + count] = branch.positions
            behind = torch.arange(len(mine) - count)
            positions[:, b, begin + count : begin + len(mine)] = branch.next_position + behind
            inserted.append((b, begin, branch))
    return inserted


def _deepstack(prompts: Sequence[EmbeddedPrompt], inserted: Sequence[tuple[int, int, EmbeddedPrompt]]) -> list[Tensor]:
    """DeepStack features of all rows in the order of their image tokens."""
    ordered = [
        part
        for b, prompt in enumerate(prompts)
        for part in (prompt, *(later for row, _, later in inserted if row == b))
    ]
    return deepstack_of(ordered)


def _image_attention(
    attentions: Sequence[Tensor], layers: Sequence[int], visual: Tensor, rows: Tensor, predictors: Tensor
) -> Tensor:
    """[B, G, C, T] attention of each token's prediction to each image token, averaged over two heads of ``layers``.

    Args:
        attentions: [B, heads, L, L] of every layer.
        layers: which of them.
        visual: [B, L] bool on the CPU, True at image tokens; equally many in every row.
        rows: [B, 1, 1] index of each row.
        predictors: [B, G, C] position of the token whose output predicts each token.
    """
    heads = torch.stack([attentions[layer][:, :2].float().mean(1) for layer in layers]).mean(0)
    columns = torch.stack([line.nonzero()[:, 0] for line in visual])[:, None, None].expand(*predictors.shape, -1)
    index = together({"rows": rows, "predictors": predictors, "columns": columns}, heads.device)
    return heads[index["rows"], index["predictors"]].gather(-1, index["columns"])
