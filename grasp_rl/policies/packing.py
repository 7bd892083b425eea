"""The packed shared-prefix row ``[prompt | c1 | ... | cG]``: where each token sits, what it sees, who predicts it.

The prompt stands once; every completion continues it and sees its own tokens and the prompt, never a sibling. So the
prompt costs P tokens instead of G * P. Pure tensors; layout only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PackedLayout:
    """B rows of at most L tokens."""

    segment: Tensor
    """[B, L] 0 in the prompt, g in completion g (from 1), -1 in the padding on the right."""
    completion_index: Tensor
    """[B, G, C] position of each completion token in its row; 0 where there is none."""
    predictor_index: Tensor
    """[B, G, C] position of the token whose output predicts it: the prompt's last one for every first token."""
    offset: Tensor
    """[B, L] 0-based offset of a token within its segment."""


def pack(prompt_lengths: Tensor, completion_lengths: Tensor) -> PackedLayout:
    """Lay out rows of given lengths, without padding between completions.

    Args:
        prompt_lengths: [B] tokens of each prompt.
        completion_lengths: [B, G] tokens of each completion.
    """
    rows, groups = completion_lengths.shape
    starts = prompt_lengths[:, None] + completion_lengths.cumsum(1) - completion_lengths  # (B, G)
    total = prompt_lengths + completion_lengths.sum(1)
    length, longest = int(total.max()), int(completion_lengths.max())
    place = torch.arange(length).expand(rows, length)
    segment = (place[:, :, None] >= starts[:, None, :]).sum(2)  # zero-length completions share a start
    segment = torch.where(place < prompt_lengths[:, None], 0, segment)
    begin = torch.cat([torch.zeros(rows, 1, dtype=torch.long), starts], 1)
    offset = place - begin.gather(1, segment)
    segment = torch.where(place < total[:, None], segment, -1)
    step = torch.arange(longest).expand(rows, groups, longest)
    valid = step < completion_lengths[:, :, None]
    completion_index = torch.where(valid, starts[:, :, None] + step, 0)
    before = torch.where(step == 0, prompt_lengths[:, None, None] - 1, completion_index - 1)
    return PackedLayout(
        segment=segment,
        completion_index=completion_index,
        predictor_index=torch.where(valid, before, 0),
        offset=offset,
    )


def attention_mask(segment: Tensor) -> Tensor:
    """[B, 1, L, L] bool, True where query i may see key j: j <= i, and j in the prompt or in i's own completion.

    Padding sees itself alone, so that no softmax runs over nothing.
    """
    length = segment.shape[1]
    order = torch.ones(length, length, dtype=torch.bool, device=segment.device).tril()
    same = segment[:, :, None] == segment[:, None, :]
    seen = (same | (segment == 0)[:, None, :]) & (segment >= 0)[:, :, None] & (segment >= 0)[:, None, :]
    itself = torch.eye(length, dtype=torch.bool, device=segment.device)
    return ((seen & order) | itself)[:, None]
