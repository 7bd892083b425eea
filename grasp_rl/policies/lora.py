"""LoRA (arXiv:2106.09685) by PEFT, on the linear layers of the language model and of a trained vision encoder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from grasp_rl.config.errors import ConfigError
from grasp_rl.policies.compat import quiet_peft

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def add_lora(
    model: Any,
    *,
    rank: int,
    alpha: int,
    seed: int = 0,
    targets: Sequence[str] = TARGETS,
    vision_encoder: Sequence[str] = (),
) -> Any:
    """``model`` wrapped with a fresh adapter that changes nothing yet, or ``model`` itself for rank 0.

    Args:
        model: a stock ...ForConditionalGeneration.
        rank: of the adapter's matrices.
        alpha: the adapter's scale is alpha / rank.
        seed: of its initialisation.
        targets: names of the language model's linear layers that get one.
        vision_encoder: parts of the body all of whose linear layers get one too.

    Raises:
        ConfigError: a target is no linear layer of the language model.
    """
    if rank == 0:
        return model
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    language = [name for name in linear if name.startswith("model.language_model.")]
    for target in targets:
        if not any(name.endswith(f".{target}") for name in language):
            result = ", ".join(sorted({name.rpartition(".")[2] for name in language}))
            raise ConfigError(f"policy.lora_targets: {target!r} is no linear layer here; must be of {result}")
    chosen = [name for name in language if name.rpartition(".")[2] in targets]
    chosen += [name for name in linear if name.startswith(tuple(f"model.{part}." for part in vision_encoder))]
    pattern = "|".join(sorted({re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(name)) for name in chosen}))
    with torch.random.fork_rng(), quiet_peft():
        torch.manual_seed(seed)
        return get_peft_model(
            model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=f"({pattern})", lora_dropout=0.0)
        )
