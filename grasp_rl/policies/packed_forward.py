"""Scoring: the completions of each prompt in one packed row, from embeddings to log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from grasp_rl.policies import attention
from grasp_rl.policies.packing import attention_mask, pack
from grasp_rl.policies.transfer import to_device, together
from grasp_rl.policies.types import WHOLE, EmbeddedPrompt, LanguageModel, Sampling, Scores, deepstack_of


def logprobs(
    policy: LanguageModel,
    prompts: Sequence[EmbeddedPrompt],
    completions: Sequence[Sequence[Sequence[int]]],
    *,
    sampling: Sampling = WHOLE,
    unscored: Sequence[Sequence[int]] | None = None,
    entropy: bool = True,
    attention_layers: Sequence[int] = (),
) -> Scores:
    """Score G completions of each prompt in one packed row per prompt.

    Args:
        policy: whose stock model scores.
        prompts: B embedded prompts.
        completions: B x G token-id sequences.
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
        positions[:, b, count:] += prompt.positions.max() + 1
        positions[:, b, :count] = prompt.positions
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
    args = policy.core.get_input_embeddings()(on["tokens"])
    hidden = args.new_zeros(rows, length, args.shape[-1])
    for b, prompt in enumerate(prompts):
        hidden[b, : len(prompt.embeddings)] = prompt.embeddings
    hidden = hidden.flatten(0, 1).index_copy(0, on["places"], args).view(hidden.shape)
    if policy.packed_attention == "two_calls" and not attention_layers:
        kwargs: dict[str, Any] = {"packed": attention.plan(layout, prompt_lengths, lengths, hidden)}
        mask = hidden.new_empty(1, 1, 1, 1)  # a mask made by somebody is taken as it is
    else:
        kwargs = {"output_attentions": bool(attention_layers)}
        mask = attention_mask(to_device(layout.segment, policy.device))
    result = policy.language_model(hidden, on["positions"], mask, deepstack_of(prompts), on["visual"], **kwargs)
    image = None
    if attention_layers:
        heads = torch.stack([result.attentions[layer][:, :2].float().mean(1) for layer in attention_layers])
        columns = torch.stack([line.nonzero()[:, 0] for line in visual])[:, None, None].expand(*held.shape, -1)
        looks = together({"rows": start // length, "source": layout.predictor_index, "columns": columns}, policy.device)
        image = heads.mean(0)[looks["rows"], looks["source"]].gather(-1, looks["columns"])
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
        image_attention=image,
    )
