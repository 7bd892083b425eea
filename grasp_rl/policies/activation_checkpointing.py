"""Activations of the layers: kept for the backward pass, made again in it, or kept where they are dear."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from grasp_rl.config.errors import ConfigError
from grasp_rl.policies.compat import enable_activation_checkpointing

MODES = ("none", "selective", "full")

_ATTENTION = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)


def recompute(stock: Any, mode: str) -> None:
    """Set how the layers of a stock model treat their activations in training.

    ``none`` keeps all of them; ``full`` keeps each layer's input and runs the layer again; ``selective`` keeps what
    attention and matrix products gave, so that only norms, rotations and gates are made again.

    Raises:
        ConfigError: there is no such mode.
    """
    if mode not in MODES:
        raise ConfigError(f"policy.checkpoint_activations={mode!r}: must be one of {', '.join(MODES)}")
    if mode == "none":
        return
    kwargs: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        kwargs["context_fn"] = functools.partial(create_selective_checkpoint_contexts, kept_operators())
    enable_activation_checkpointing(stock, kwargs)


def kept_operators() -> list[Any]:
    """The operators whose results ``selective`` keeps: matrix products of two axes, and fused attention."""
    aten = torch.ops.aten
    kept = [aten.mm.default, aten.addmm.default]
    kept += [getattr(aten, name).default for name in _ATTENTION if hasattr(aten, name)]
    if hasattr(torch.ops, "torch_attn") and hasattr(torch.ops.torch_attn, "_varlen_attn"):
        kept.append(torch.ops.torch_attn._varlen_attn.default)
    return kept
