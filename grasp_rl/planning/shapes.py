"""The policy in numbers: parameters by part, and what one image and one token cost. No weights are read."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForImageTextToText

from grasp_rl.config.errors import ConfigError
from grasp_rl.policies.backbones.base import Backbone, ImageSize, backbone_of
from grasp_rl.policies.lora import TARGETS, add_lora
from grasp_rl.policies.published import PUBLISHED
from grasp_rl.policies.tiny.policy import SIDE, build_model
from grasp_rl.utils.files import Record

TILED = {"internvl": 448, "llava_onevision": 384}
"""Side in pixels of a tile, for families that cut an image into tiles and add a small copy of the whole."""


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """A policy, as far as cost depends on it."""

    vision_encoder: int
    """Parameters between the pixels and the language model's input."""
    language: int
    """Parameters of the language model's layers."""
    words: int
    """Parameters of embeddings and head; tied ones once."""
    trained: int
    """Parameters with a gradient."""
    adapter: int
    """Those of them in a LoRA adapter."""
    bytes_each: int
    """Of a parameter, adapters apart."""
    hidden: int
    layers: int
    kv_width: int
    """Width of the keys of one token and layer: key-value heads times their size."""
    query_width: int
    """Width of its queries."""
    inner: int
    """Width of the MLP."""
    vocabulary: int
    patches: int
    """Vision encoder tokens of an image."""
    image_tokens: int
    """Language tokens of an image."""
    merger: int
    """Parameters of the vision encoder that meet an image's language tokens instead of its patches."""
    qk_norm: bool
    """Whether queries and keys are normed."""
    vision_trained: bool
    vision_hidden: int
    vision_layers: int
    vision_inner: int
    vision_gated: bool
    """Whether the vision encoder's MLP is gated, as Qwen2.5-VL's is."""
    patch_values: int
    """Numbers in a patch of pixels."""
    vision_pairs: float
    """Queries times the keys they see, over an image and all layers of the vision encoder."""

    @property
    def total(self) -> int:
        """All parameters of the base model."""
        return self.vision_encoder + self.language + self.words


def shapes_of(policy: Record, image: tuple[int, int]) -> Shapes:
    """The shapes of a component config of conf/policy for images of (width, height) pixels.

    Raises:
        ConfigError: there is no config.json for it here, and it is not one of the published models; or its class is
            not one of ours.
    """
    if policy["_target_"].endswith(".TinyPolicy"):
        return _tiny(policy)
    if "path" not in policy:
        raise ConfigError(f"policy._target_={policy['_target_']!r}: only what policy.path names can be planned")
    config, source = _config(str(policy["path"]), policy.get("revision"))
    family = backbone_of(config.model_type)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    size = ImageSize(**{k: v for k, v in (policy.get("image") or {}).items() if k != "_target_"})
    tokens, patches = _image(family, config, size, image, source)
    return _counted(model, family, policy, tokens, patches, 4 if policy.get("dtype") == "float32" else 2)


def _tiny(policy: Record) -> Shapes:
    from grasp_rl.policies.tiny.policy import FAMILIES, SIZES, build_corpus, build_tokenizer

    family = policy.get("family") or "qwen3_vl"
    model: Any = build_model(build_tokenizer(build_corpus()), 0, SIZES[policy.get("size") or "base"], family)
    vision = model.config.vision_config
    patches = (SIDE // vision.patch_size) ** 2
    settings = {
        "train_vision_encoder": not policy.get("lora_rank")
    } | policy  # its adapters leave the vision encoder alone
    return _counted(model, FAMILIES[family].backbone, settings, patches // vision.spatial_merge_size**2, patches, 4)


def _counted(model: Any, family: type[Backbone], policy: Record, tokens: int, patches: int, bytes_each: int) -> Shapes:
    config, vision = model.config.text_config, model.config.vision_config
    depth = int(getattr(vision, "depth", None) or vision.num_hidden_layers)
    parts = tuple(f"{name}." for name in family.vision_encoder)
    vision_encoder = sum(p.numel() for n, p in model.model.named_parameters() if f"{n}.".startswith(parts))
    merger = sum(p.numel() for n, p in model.model.named_parameters() if "merger" in n or "multi_modal_projector" in n)
    layers = sum(p.numel() for p in model.model.language_model.layers.parameters())
    total = sum(p.numel() for p in model.parameters())
    rank, frees_vision_encoder = int(policy.get("lora_rank") or 0), bool(policy.get("train_vision_encoder"))
    trained = total if frees_vision_encoder else total - vision_encoder
    adapter = 0
    if rank:
        with torch.device("meta"):
            peft = add_lora(
                model, rank=rank, alpha=rank, targets=policy.get("lora_targets") or TARGETS,
                vision_encoder=family.vision_encoder if frees_vision_encoder else (),
            )  # fmt: skip
        trained = adapter = sum(p.numel() for p in peft.parameters() if p.requires_grad)
    heads = config.num_attention_heads
    each = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Shapes(
        vision_encoder=vision_encoder,
        language=layers,
        words=total - vision_encoder - layers,
        trained=trained,
        adapter=adapter,
        bytes_each=bytes_each,
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        kv_width=config.num_key_value_heads * each,
        query_width=heads * each,
        inner=config.intermediate_size,
        vocabulary=config.vocab_size,
        patches=patches,
        image_tokens=tokens,
        merger=merger,
        qk_norm=any("q_norm" in name for name, _ in model.model.language_model.named_parameters()),
        vision_trained=frees_vision_encoder,
        vision_hidden=vision.hidden_size,
        vision_layers=depth,
        vision_inner=vision.intermediate_size,
        vision_gated=any("gate_proj" in name and "language_model" not in name for name, _ in model.named_parameters()),
        patch_values=3 * getattr(vision, "temporal_patch_size", 1) * _side(vision.patch_size) ** 2,
        vision_pairs=_vision_pairs(vision, patches, depth),
    )


def _vision_pairs(vision: Any, patches: int, depth: int) -> float:
    """Pairs of query and key in all layers: a patch sees its window, its tile or the image."""
    patch = _side(vision.patch_size)
    if whole := getattr(vision, "fullatt_block_indexes", None):
        window = min(patches, (vision.window_size // patch) ** 2)
        return float(patches * (len(whole) * patches + (depth - len(whole)) * window))
    tile = getattr(vision, "image_size", None)
    seen = patches if tile is None else min(patches, (_side(tile) // patch) ** 2)
    return float(patches * seen * depth)


def _side(size: Any) -> int:
    return int(size if isinstance(size, int) else size[0])


def _config(path: str, revision: str | None) -> tuple[Any, str | None]:
    """The transformers config of ``path`` and where its processor is, or None where only its shape is known."""
    if (Path(path) / "config.json").is_file():
        return transformers.AutoConfig.from_pretrained(path, local_files_only=True), path
    try:
        return transformers.AutoConfig.from_pretrained(path, revision=revision, local_files_only=True), path
    except OSError:
        known = next((p for p in PUBLISHED.values() if p.hub_id == path), None)
    if known is None:
        raise ConfigError(
            f"policy.path={path!r}: no config.json in a folder of that name or in the hub's cache; download it, "
            "or plan with one of " + ", ".join(p.hub_id for p in PUBLISHED.values())
        )
    return transformers.AutoConfig.for_model(known.model_type, **json.loads(json.dumps(known.config))), None


def _image(
    family: type[Backbone], config: Any, size: ImageSize, image: tuple[int, int], source: str | None
) -> tuple[int, int]:
    """(language tokens, image tokens) of an image of (width, height): counted by the family, or by its rule."""
    vision = config.vision_config
    patch = _side(vision.patch_size)
    if source is not None:
        with torch.device("meta"):
            core = AutoModelForImageTextToText.from_config(config).model
        seen = family(family.load_processor(source), size, config).preprocess(
            np.zeros((image[1], image[0], 3), np.uint8), core, "@"
        )
        tokens = seen.tokens.count("@")
        pixels = seen.inputs["pixel_values"]
        return tokens, len(pixels) if pixels.ndim == 2 else pixels[..., 0, :, :].numel() // patch**2
    area = min(image[0] * image[1], size.max_pixels or image[0] * image[1])
    if merge := getattr(vision, "spatial_merge_size", None):
        patches = max(merge**2, round(area / (patch * merge) ** 2) * merge**2)
        return patches // merge**2, patches
    side = TILED.get(config.model_type)
    frame = _side(vision.image_size)
    tiles = 1 if side is None else max(1, math.ceil(area / side**2)) + 1
    patches = tiles * (frame // patch) ** 2
    shrunk = config.downsample_ratio**2 if config.model_type == "internvl" else 1.0
    return round(patches * shrunk), patches
