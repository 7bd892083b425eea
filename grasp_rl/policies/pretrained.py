"""A pretrained vision-language model by hub id or local folder, without torchvision."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import ClassVar

import torch

from grasp_rl.config.errors import ConfigError
from grasp_rl.policies.backbones.base import Backbone, ImageSize, backbone_of
from grasp_rl.policies.hub import Source, first_line, load_config, load_model, load_tokenizer
from grasp_rl.policies.lora import TARGETS, add_lora
from grasp_rl.policies.vlm import VlmPolicy

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class HfVlmPolicy(VlmPolicy):
    """What the options of ``conf/policy`` instantiate, ``tiny`` apart.

    The family is found by the ``model_type`` in the checkpoint's config; see grasp_rl.policies.backbones.base.

    Args:
        path: hub id (``Qwen/Qwen2.5-VL-3B-Instruct``) or a folder of a saved model with tokenizer and image processor.
        image: bounds and shape of the resized image.
        revision: hub branch, tag or commit; pin a commit for a reproducible result. What it meant is logged and kept
            as ``commit``.
        prompt_template: the words of the question; read by conf/prompt.
        coordinates: absolute | thousand; None takes the frame that the family was trained to speak.
        dtype: float32 | bfloat16
        train_vision_encoder: whether gradients reach the vision encoder (with LoRA: whether it gets adapters too).
        lora_rank: 0 for full fine-tuning.
        lora_alpha: scale of the adapter is lora_alpha / lora_rank.
        lora_targets: names of the language model's linear layers that get an adapter.
        checkpoint_activations: none keeps every activation for the backward pass; full recomputes whole layers: least
            memory, about a third more time; selective keeps the results of attention and matrix products.
        attention: attention implementation of transformers, for example sdpa, eager or flash_attention_2.
        packed_attention: two_calls | mask, for packed rows; see grasp_rl.policies.attention.
        decoding: auto | growing | static; see grasp_rl.policies.generation.static.
        fused_head: on a GPU, score completions with Liger's fused kernel (``pip install 'grasp-rl[liger]'``).
        feature_cache_gib: host memory for a frozen vision encoder's features of images seen in earlier steps.
        allow_pickle_weights: read pytorch_model.bin where there are no safetensors (``weights_only``).
        seed: of a fresh adapter.

    Raises:
        ConfigError: there is no such model here, it is of an unknown family, or its weights do not fit.
    """

    family: ClassVar[type[Backbone] | None] = None
    """A subclass outside this package names its own family here; None finds it by ``model_type``."""

    def __init__(
        self,
        path: str,
        image: ImageSize,
        revision: str | None = None,
        prompt_template: str = "think2seg",
        coordinates: str | None = None,
        dtype: str = "bfloat16",
        train_vision_encoder: bool = False,
        lora_rank: int = 0,
        lora_alpha: int = 16,
        lora_targets: list[str] | None = None,
        checkpoint_activations: str = "none",
        attention: str = "sdpa",
        packed_attention: str = "two_calls",
        decoding: str = "auto",
        fused_head: bool = False,
        feature_cache_gib: float = 0.0,
        allow_pickle_weights: bool = False,
        seed: int = 0,
    ) -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"policy.dtype={dtype!r}: must be one of {', '.join(DTYPES)}")
        source = Source(path=path, revision=revision, allow_pickle=allow_pickle_weights)
        config = load_config(source)
        family = self.family or backbone_of(config.model_type)
        tokenizer = load_tokenizer(source)
        try:
            processor = family.load_processor(path, revision=revision)
        except (OSError, ValueError) as error:
            raise ConfigError(f"policy.path={path!r}: has no image processor: {first_line(error)}") from error
        model = load_model(source, dtype=DTYPES[dtype], attention=attention)
        backbone = family(processor, image, model.config)
        vision_encoder = family.vision_encoder if train_vision_encoder else ()
        super().__init__(
            add_lora(
                model,
                rank=lora_rank,
                alpha=lora_alpha,
                seed=seed,
                targets=lora_targets or TARGETS,
                vision_encoder=vision_encoder,
            ),
            tokenizer,
            backbone,
            coordinates=coordinates,
            train_vision_encoder=train_vision_encoder,
            checkpoint_activations=checkpoint_activations,
            packed_attention=packed_attention,
            decoding=decoding,
            fused_head=fused_head,
            feature_cache_gib=feature_cache_gib,
        )
        self.prompt_template = prompt_template
        self.commit: str | None = getattr(config, "_commit_hash", None)
        """The hub commit that was loaded; None for a local folder."""
        if self.commit and not revision:
            log.warning("policy.path=%s: not pinned; this run uses policy.revision=%s", path, self.commit)
        elif not Path(path).is_dir():
            log.info("policy.path=%s: commit %s", path, self.commit)
