"""Scoring: the completions of each prompt in one packed row, from embeddings to log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from grasp_rl.policies.attention import two_calls
from grasp_rl.policies.packing import attention_mask, pack
from grasp_rl.policies.types import WHOLE, EmbeddedPrompt, Sampling, Scores, deepstack_of

if TYPE_CHECKING:
    from grasp_rl.policies.vlm import VlmPolicy


def logprobs(
    policy: VlmPolicy,
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
        attention_layers: layers whose first two heads' attention to the picture is wanted, averaged; needs eager
            attention and pictures of one size.
    """
    lengths = torch.tensor([[len(c) for c in group] for group in completions])
    prompt_lengths = torch.tensor([len(p.embeddings) for p in prompts])
    layout = pack(prompt_lengths, lengths)
    rows, length = layout.segment.shape
    width = int(lengths.max())
    ids = torch.zeros(*lengths.shape, width, dtype=torch.long)
    for b, group in enumerate(completions):
        for g, completion in enumerate(group):
            ids[b, g, : len(completion)] = torch.tensor(completion)
    valid = (torch.arange(width) < lengths[..., None]).to(policy.device)
    ids = ids.to(policy.device)
    target = layout.completion_index.to(policy.device)
    words = policy.core.get_input_embeddings()(ids)
    row = torch.arange(rows, device=policy.device)[:, None, None].expand_as(target)
    hidden = words.new_zeros(rows, length, words.shape[-1])
    visual = torch.zeros(rows, length, dtype=torch.bool, device=policy.device)
    positions = layout.offset.to(policy.device).expand(len(prompts[0].positions), rows, length).clone()
    for b, prompt in enumerate(prompts):
        count = len(prompt.embeddings)
        hidden[b, :count] = prompt.embeddings
        visual[b, :count] = prompt.visual
        positions[:, b, count:] += prompt.positions.max() + 1
        positions[:, b, :count] = prompt.positions
    hidden = hidden.index_put((row[valid], target[valid]), words[valid])
    if policy.packed_attention == "two_calls" and not attention_layers:
        plan = two_calls(layout, prompt_lengths, lengths).to(policy.device)
        wanted: dict[str, Any] = {"packed": plan}
        mask = hidden.new_empty(1, 1, 1, 1)  # a mask made by somebody is taken as it is
    else:
        wanted = {"output_attentions": bool(attention_layers)}
        mask = attention_mask(layout.segment.to(policy.device))
    result = policy.language_model(hidden, positions, mask, deepstack_of(prompts), visual, **wanted)
    source = layout.predictor_index.to(policy.device)
    attention = None
    if attention_layers:
        heads = torch.stack([result.attentions[layer][:, :2].float().mean(1) for layer in attention_layers])
        columns = torch.stack([line.nonzero()[:, 0] for line in visual])[:, None, None].expand(*target.shape, -1)
        attention = heads.mean(0)[row, source].gather(-1, columns)
    if unscored is not None:
        skipped = torch.tensor(unscored, device=policy.device)
        valid = valid & (torch.arange(width, device=policy.device) >= skipped[..., None])
    predictor = result.last_hidden_state[row[valid], source[valid]]  # (tokens, D)
    logp, uncertainty = policy.scorer(
        predictor,
        ids[valid],
        sampling=sampling,
        entropy=entropy,
        fused=policy.fused_head and policy.device.type == "cuda",
    )
    empty = torch.zeros(ids.shape, device=policy.device)
    return Scores(
        logp=empty.masked_scatter(valid, logp),
        entropy=empty.masked_scatter(valid, uncertainty),
        valid=valid,
        picture_attention=attention,
    )
