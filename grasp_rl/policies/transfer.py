"""Copies to a GPU that neither side waits for: from pinned memory, and many small tensors in one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

_ALIGNED = 8
"""Bytes of the widest element that is packed."""


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``; from the host's memory to a GPU without a wait."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def together(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The host's ``tensors`` of any types on ``device``, to a GPU by one copy; the results share its memory."""
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in tensors.items()}
    parts = []
    for tensor in tensors.values():
        raw = tensor.contiguous().reshape(-1).view(torch.uint8)
        parts.append(pad(raw, (0, -len(raw) % _ALIGNED)))
    packed = torch.split(to_device(torch.cat(parts), device), [len(part) for part in parts])
    return {
        name: part[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for (name, tensor), part in zip(tensors.items(), packed, strict=True)
    }
