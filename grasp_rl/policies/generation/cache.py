"""A key-value cache that grows in place: stock layers copy everything they hold for each new token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 128
"""Tokens of room made ahead; a completion of 200 tokens copies the cache twice instead of 200 times."""


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """``DynamicLayer`` whose keys and values are views of larger buffers with room at the end."""

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append [B, H, n, D] keys and values and return all of them."""
        held = self.get_seq_length()
        if not held:
            self._buffers = None
            return super().update(key_states, value_states, *args, **kwargs)  # type: ignore[no-any-return]
        total = held + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < total:
            self._buffers = _with_capacity(self.keys, total), _with_capacity(self.values, total)
        keys, values = self._buffers
        keys[..., held:total, :], values[..., held:total, :] = key_states, value_states
        self.keys, self.values = keys[..., :total, :], values[..., :total, :]
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._buffers = None

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._buffers = None


def _with_capacity(held: Tensor, total: int) -> Tensor:
    """A buffer that begins with ``held`` [B, H, n, D] and has the capacity for ``total`` tokens and more."""
    buffer = held.new_empty(*held.shape[:2], total + ROOM, held.shape[3])
    buffer[..., : held.shape[2], :] = held
    return buffer


def growing_cache(config: Any) -> DynamicCache:
    """The stock dynamic cache of a language model's config, its plain layers growing in place."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def padding_mask(lengths: Tensor, longest: int, room: int) -> Tensor | None:
    """[B, 1, 1, longest + room] bool, False on the left padding of prompts of ``lengths`` [B]; None without padding."""
    if bool((lengths == longest).all()):
        return None
    place = torch.arange(longest + room)
    return (place[None] >= (longest - lengths)[:, None])[:, None, None]
