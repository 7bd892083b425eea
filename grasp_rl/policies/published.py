"""Architectures as the checkpoints' config.json state them, and the sizes that their model pages give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Published:
    """One option of conf/policy."""

    hub_id: str
    model_type: str
    parameters: float
    config: dict[str, Any]


def _language(
    hidden: int, layers: int, heads: int, kv: int, inner: int, vocabulary: int, tied: bool = False, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
        "intermediate_size": inner, "vocab_size": vocabulary, "tie_word_embeddings": tied,
    } | more  # fmt: skip


def _qwen2_5(language: dict[str, Any]) -> dict[str, Any]:
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14,
        "out_hidden_size": language["hidden_size"], "spatial_merge_size": 2, "temporal_patch_size": 2,
        "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
    }  # fmt: skip
    return {
        "text_config": language, "vision_config": vision, "tie_word_embeddings": language["tie_word_embeddings"]
    }  # fmt: skip


def _qwen3(language: dict[str, Any], depth: int, hidden: int, inner: int, deep: list[int]) -> dict[str, Any]:
    vision = {
        "depth": depth, "hidden_size": hidden, "intermediate_size": inner, "num_heads": 16, "patch_size": 16,
        "out_hidden_size": language["hidden_size"], "spatial_merge_size": 2, "temporal_patch_size": 2,
        "num_position_embeddings": 2304, "deepstack_visual_indexes": deep,
    }  # fmt: skip
    return {
        "text_config": language, "vision_config": vision, "tie_word_embeddings": language["tie_word_embeddings"]
    }  # fmt: skip


def _internvl(language: dict[str, Any]) -> dict[str, Any]:
    vision = {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
        "image_size": [448, 448], "patch_size": [14, 14], "attention_bias": True,
    }  # fmt: skip
    return {"text_config": language | {"model_type": "qwen2"}, "vision_config": vision, "tie_word_embeddings": False}


_CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip
_SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26,
    "num_attention_heads": 16, "image_size": 384, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip

PUBLISHED = {
    "qwen2_5_vl_3b": Published(
        "Qwen/Qwen2.5-VL-3B-Instruct", "qwen2_5_vl", 3.75e9, _qwen2_5(_language(2048, 36, 16, 2, 11008, 151936, True))
    ),
    "qwen2_5_vl_7b": Published(
        "Qwen/Qwen2.5-VL-7B-Instruct", "qwen2_5_vl", 8.29e9, _qwen2_5(_language(3584, 28, 28, 4, 18944, 152064))
    ),
    "qwen3_vl_2b": Published(
        "Qwen/Qwen3-VL-2B-Instruct", "qwen3_vl", 2.13e9,
        _qwen3(_language(2048, 28, 16, 8, 6144, 151936, True, head_dim=128), 24, 1024, 4096, [5, 11, 17]),
    ),
    "qwen3_vl_4b": Published(
        "Qwen/Qwen3-VL-4B-Instruct", "qwen3_vl", 4.44e9,
        _qwen3(_language(2560, 36, 32, 8, 9728, 151936, True, head_dim=128), 24, 1024, 4096, [5, 11, 17]),
    ),
    "qwen3_vl_8b": Published(
        "Qwen/Qwen3-VL-8B-Instruct", "qwen3_vl", 8.77e9,
        _qwen3(_language(4096, 36, 32, 8, 12288, 151936, head_dim=128), 27, 1152, 4304, [8, 16, 24]),
    ),
    "internvl3_2b": Published(
        "OpenGVLab/InternVL3-2B-hf", "internvl", 2.09e9, _internvl(_language(1536, 28, 12, 2, 8960, 151674))
    ),
    "internvl3_8b": Published(
        "OpenGVLab/InternVL3-8B-hf", "internvl", 7.94e9, _internvl(_language(3584, 28, 28, 4, 18944, 151674))
    ),
    "llava_1_5_7b": Published(
        "llava-hf/llava-1.5-7b-hf", "llava", 7.06e9,
        {"text_config": _language(4096, 32, 32, 32, 11008, 32064, model_type="llama"), "vision_config": _CLIP},
    ),
    "llava_onevision_7b": Published(
        "llava-hf/llava-onevision-qwen2-7b-ov-hf", "llava_onevision", 8.03e9,
        {
            "text_config": _language(3584, 28, 28, 4, 18944, 152000, model_type="qwen2"),
            "vision_config": _SIGLIP, "tie_word_embeddings": False,
        },
    ),
}  # fmt: skip
