"""Any Qwen2.5-VL or Qwen3-VL by hub id or local folder, without torchvision."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil

from grasp_rl.config import ConfigError
from grasp_rl.policies.lora import add_lora
from grasp_rl.policies.vlm import VlmPolicy

COORDINATES = {"qwen2_5_vl": "absolute", "qwen3_vl": "thousand"}
"""The frame each model type was trained to speak: pixels of the resized picture, or 0..1000."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class HfVlmPolicy(VlmPolicy):
    """What ``policy=hf_vlm`` instantiates.

    Args:
        path: hub id (``Qwen/Qwen2.5-VL-3B-Instruct``) or a folder of a saved model with tokenizer and image processor.
        revision: hub revision; pin it for a result to be reproducible.
        prompt_template: the words of the question; read by conf/prompt.
        dtype: float32 | bfloat16
        min_pixels: smallest area of the resized picture; null leaves the checkpoint's own.
        max_pixels: largest area of the resized picture, the knob against out-of-memory.
        train_tower: whether gradients reach the vision tower.
        lora_rank: 0 for full fine-tuning.
        lora_alpha: scale of the adapter is lora_alpha / lora_rank.
        attention: attention implementation of transformers, for example sdpa or eager.
        seed: of a fresh adapter.

    Raises:
        ConfigError: there is no such model here, or it is of another type.
    """

    def __init__(
        self,
        path: str,
        revision: str | None = None,
        prompt_template: str = "think2seg",
        dtype: str = "bfloat16",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        train_tower: bool = False,
        lora_rank: int = 0,
        lora_alpha: int = 16,
        attention: str = "sdpa",
        seed: int = 0,
    ) -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"policy.dtype={dtype!r}: must be one of {', '.join(DTYPES)}")
        source: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
        try:
            kind = AutoConfig.from_pretrained(path, **source).model_type
            if kind not in COORDINATES:
                raise ConfigError(f"policy.path={path!r}: is a {kind}; must be one of {', '.join(COORDINATES)}")
            tokenizer = AutoTokenizer.from_pretrained(path, **source)
            pixels = {k: v for k, v in (("min_pixels", min_pixels), ("max_pixels", max_pixels)) if v is not None}
            processor = Qwen2VLImageProcessorPil.from_pretrained(path, revision=revision, **pixels)
            model = AutoModelForImageTextToText.from_pretrained(
                path, dtype=DTYPES[dtype], attn_implementation=attention, use_safetensors=True, **source
            )
        except OSError as error:
            raise ConfigError(f"policy.path={path!r}: cannot be loaded: {error}") from error
        super().__init__(
            add_lora(model, rank=lora_rank, alpha=lora_alpha, seed=seed),
            tokenizer,
            processor,
            coordinates=COORDINATES[kind],
            train_tower=train_tower,
        )
        self.prompt_template = prompt_template
