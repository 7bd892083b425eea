"""LoRA by PEFT on the language model's linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def add_lora(model: Any, *, rank: int, alpha: int, seed: int = 0, targets: Sequence[str] = TARGETS) -> Any:
    """``model`` wrapped with a fresh adapter of ``rank`` that changes nothing yet, or ``model`` itself for rank 0."""
    if rank == 0:
        return model
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pattern = r".*language_model.*\.(" + "|".join(targets) + r")$"
        return get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=pattern, lora_dropout=0.0))
