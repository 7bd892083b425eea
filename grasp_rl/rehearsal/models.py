"""Checkpoints of the real classes at a few hundred thousand parameters, with tokenizer and processor, as hubs have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPImageProcessorPil,
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from grasp_rl.policies.tiny.policy import TinyPolicy

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "internvl", "llava", "llava_onevision")

TOKENS = ("image_pad", "video_pad", "vision_start", "vision_end")
"""Qwen's special tokens around an image."""
CHAT = (
    "{%- for m in messages %}{{ m.role }}:{% for part in m.content %}{% if part.type == 'image' %}{{ '<IMAGE>' }}"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
    "{%- if add_generation_prompt %}assistant:{% endif %}"
)


def tokenizer(image_token: str, *more: str, template: str | None = None) -> Any:
    """The tiny policy's tokenizer with a chat template that sets ``image_token`` where an image is."""
    made = TinyPolicy(weights="random").tokenizer
    made.add_special_tokens({"additional_special_tokens": [image_token, *more]}, replace_extra_special_tokens=False)
    made.chat_template = template or CHAT.replace("<IMAGE>", image_token)
    return made


def text_config(words: Any, **more: Any) -> dict[str, Any]:
    """The language model of every family: two layers of width 64."""
    return {
        "vocab_size": len(words), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192, "bos_token_id": None,
        "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id, "initializer_range": 0.15,
    } | more  # fmt: skip


def _qwen(folder: Path, config_class: Any, model_class: Any, rope: dict[str, Any], vision: dict[str, Any]) -> None:
    words = TinyPolicy(weights="random").tokenizer
    ids = {name: words.convert_tokens_to_ids(f"<|{name}|>") for name in TOKENS}
    head = {"head_dim": 16} if "mrope_interleaved" in rope else {}
    config = config_class(
        text_config=text_config(words, rope_parameters=rope | {"rope_type": "default", "rope_theta": 1e6}, **head),
        vision_config={
            "initializer_range": 0.15, "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4,
            "out_hidden_size": 64, "spatial_merge_size": 2, "temporal_patch_size": 2,
        } | vision,
        image_token_id=ids["image_pad"], video_token_id=ids["video_pad"], vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"], tie_word_embeddings=True,
    )  # fmt: skip
    model_class(config).save_pretrained(folder)
    words.save_pretrained(folder)
    patch = vision["patch_size"]
    bounds = {"min_pixels": 4 * (2 * patch) ** 2, "max_pixels": 64 * (2 * patch) ** 2}
    Qwen2VLImageProcessorPil(patch_size=patch, merge_size=2, **bounds).save_pretrained(folder)


def qwen2_5_vl(folder: Path) -> None:
    """Write a random Qwen2.5-VL to ``folder``."""
    rope = {"mrope_section": [2, 3, 3]}
    vision = {"patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1]}
    _qwen(folder, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, rope, vision)


def qwen3_vl(folder: Path) -> None:
    """Write a random Qwen3-VL to ``folder``."""
    rope = {"mrope_section": [3, 3, 2], "mrope_interleaved": True}
    vision = {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    _qwen(folder, Qwen3VLConfig, Qwen3VLForConditionalGeneration, rope, vision)


def internvl(folder: Path) -> None:
    """Write a random InternVL3, tiles of 56 x 56 to ``folder``."""
    words = tokenizer("<IMG_CONTEXT>", "<img>", "</img>")
    config = InternVLConfig(
        text_config=text_config(words, model_type="qwen2"),
        vision_config={
            "hidden_size": 32, "initializer_range": 0.15, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 64, "image_size": [56, 56], "patch_size": [14, 14],
        },
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        tie_word_embeddings=False,
    )  # fmt: skip
    InternVLForConditionalGeneration(config).save_pretrained(folder)
    words.save_pretrained(folder)
    GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}, max_patches=6).save_pretrained(folder)


def llava(folder: Path) -> None:
    """Write a random LLaVA-1.5 to ``folder``."""
    words = tokenizer("<image>")
    config = LlavaConfig(
        text_config=text_config(words, model_type="llama", num_key_value_heads=4),
        vision_config={
            "model_type": "clip_vision_model", "hidden_size": 32, "initializer_range": 0.15, "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 64, "image_size": 56, "patch_size": 14, "projection_dim": 32,
        },
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    words.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}).save_pretrained(folder)


def llava_onevision(folder: Path) -> None:
    """Write a random LLaVA-OneVision to ``folder``."""
    words = tokenizer("<image>", "<video>")
    points = [[56 * a, 56 * b] for a in (1, 2, 3) for b in (1, 2, 3)]
    config = LlavaOnevisionConfig(
        text_config=text_config(words, model_type="qwen2"),
        vision_config={
            "model_type": "siglip_vision_model", "hidden_size": 32, "initializer_range": 0.15, "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64, "image_size": 56, "patch_size": 14, "vision_use_head": False,
        },
        image_token_id=words.convert_tokens_to_ids("<image>"),
        video_token_id=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=points,
        tie_word_embeddings=False,
    )  # fmt: skip
    LlavaOnevisionForConditionalGeneration(config).save_pretrained(folder)
    words.save_pretrained(folder)
    LlavaOnevisionImageProcessorPil(size={"height": 56, "width": 56}, image_grid_pinpoints=points).save_pretrained(
        folder
    )


BUILDERS: dict[str, Callable[[Path], None]] = {
    "qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl, "internvl": internvl, "llava": llava,
    "llava_onevision": llava_onevision,
}  # fmt: skip


def build(family: str, folder: Path) -> Path:
    """A random checkpoint of ``family`` in ``folder``, its weights large enough for every part to matter."""
    torch.manual_seed(0)
    BUILDERS[family](folder)
    return folder


def loud(model: Any) -> Any:
    """``model`` with weights large enough for every part to matter; a library's 0.02 leaves tiny models mute."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1.0 / parameter[0].numel() ** 0.5, generator=generator)
        if hasattr(model, "shared_image_embedding"):  # SAM encodes places in images and prompts by one code
            code = model.shared_image_embedding.positional_embedding
            model.prompt_encoder.shared_embedding.positional_embedding.copy_(code)
    return model
