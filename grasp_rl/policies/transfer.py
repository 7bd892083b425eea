"""Copies to a GPU that neither side waits for, from pinned memory, many small ones in one; values for other ranks."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

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


def stored(value: Any) -> bytes:
    """``value``, whatever tensors it holds, to be sent to another process of this run."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def restored(sent: bytes, device: torch.device) -> Any:
    """What :func:`stored` was given, with the tensors that lay on the sender's GPU on ``device``.

    It is a pickle: for what processes of this run send one another, never for a file.
    """

    def on_device(storage: Any, place: str) -> Any:
        return storage if place == "cpu" or device.type != "cuda" else storage.cuda(device.index)

    return torch.load(io.BytesIO(sent), map_location=on_device, weights_only=False)
