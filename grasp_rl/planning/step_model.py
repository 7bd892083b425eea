"""What `grasp-rl bench step` measures and `plan --calibrate` predicts: the question, and a random Qwen2.5-VL.

It is small enough for one core, in the proportions of Qwen2.5-VL-3B.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

from grasp_rl.config.schema import PromptConfig
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.policies.tiny.policy import build_corpus, build_tokenizer
from grasp_rl.prompts.render import build_messages

QUESTION = "Where could a helicopter land after the flood?"
PROMPT = PromptConfig(template="think2seg")
LORA_RANK = 16
"""Of the adapter where one is trained."""

PATCH, MERGE = 14, 2
WINDOW = 112


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a Qwen2.5-VL.

    The defaults keep what decides where the time of a step goes in Qwen2.5-VL-3B (arXiv:2502.13923 and the hub's
    config.json: language model 36 layers of 2048, MLP 11008, 16 query and 2 key-value heads; vision encoder 32 layers
    of 1280, MLP 3420, 4 of them with full attention): the vision encoder over an image of 840 x 840 costs
    0.7 to 0.8 of the language model over its prompt of 1200 tokens, eight
    query heads share a key-value head, and MLP to width, vision encoder width to language width and one full attention
    in eight layers are the same. Depth is kept rather than width.
    """

    hidden: int = 256
    layers: int = 10
    heads: int = 8
    kv_heads: int = 1
    intermediate: int = 1376
    vision_hidden: int = 160
    vision_layers: int = 8
    vision_heads: int = 4
    vision_intermediate: int = 428
    vision_full_attention_every: int = 8
    vocabulary: int | None = None
    """Entries of the embeddings; None for as many as the words of the prompt need."""

    @property
    def vision_full_attention(self) -> list[int]:
        """Layers of the vision encoder with full instead of windowed attention; the last one is among them."""
        every = self.vision_full_attention_every
        return list(range(every - 1, self.vision_layers, every)) or [self.vision_layers - 1]

    def vision_flops(self, patches: int) -> float:
        """Floating-point operations of a vision encoder's forward over ``patches`` patches of 14 x 14 pixels."""
        width, full = self.vision_hidden, len(self.vision_full_attention)
        merged = MERGE**2 * width
        linear = 2 * patches * self.vision_layers * (4 * width**2 + 3 * width * self.vision_intermediate)
        merger = 2 * (patches / MERGE**2) * merged * (merged + self.hidden)
        per_window = (WINDOW / PATCH) ** 2
        attention = 4 * patches * width * (full * patches + (self.vision_layers - full) * per_window)
        return linear + merger + attention

    def language_flops(self, tokens: int) -> float:
        """Floating-point operations of one causal forward of the language model over ``tokens``, without its head."""
        head = self.hidden // self.heads
        block = self.hidden * (2 * self.hidden + 2 * self.kv_heads * head + 3 * self.intermediate)
        return self.layers * (2 * tokens * block + 2 * tokens**2 * self.hidden)


STANDARD = Shape()
SMOKE = Shape(
    hidden=64, layers=2, intermediate=128, vision_hidden=32, vision_layers=2, vision_intermediate=64,
    vision_full_attention_every=2,
)  # fmt: skip
"""Runs in seconds; its times mean nothing."""
REAL_3B = Shape(
    hidden=2048, layers=36, heads=16, kv_heads=2, intermediate=11008, vision_hidden=1280, vision_layers=32,
    vision_heads=16, vision_intermediate=3420, vision_full_attention_every=8, vocabulary=151936,
)  # fmt: skip
"""Qwen2.5-VL-3B itself, with random weights, saved in bfloat16: 7.5 GB, for a GPU."""
SHAPES = {"standard": STANDARD, "smoke": SMOKE, "3b": REAL_3B}


def messages(side: int) -> list[dict[str, Any]]:
    """The chat messages that ask the question about an image of ``side`` x ``side`` pixels."""
    frame = CoordinateFrame(width=side, height=side, image_width=side, image_height=side)
    return build_messages(QUESTION, frame, PROMPT)


def build_prompt_tokenizer() -> Any:
    """A tokenizer that knows the words of the prompt, so that they take about as many tokens as in Qwen's own."""
    prompt = [part["text"] for message in messages(840) for part in message["content"] if "text" in part]
    return build_tokenizer(build_corpus() + prompt * 8, vocabulary=2048)


def build(folder: Path, shape: Shape = STANDARD, *, seed: int = 0, device: str = "cpu") -> Path:
    """Save a random model of ``shape`` with tokenizer and image processor into ``folder``, as the hub would.

    They are drawn on ``device``: seconds on a GPU for what takes a CPU a minute. The weights are float32 (bfloat16 with
    a vocabulary of its own) and so small (standard deviation 0.02, the library's own) that sampling is nearly uniform.
    """
    config = save_config(folder, shape)
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    if shape.vocabulary:
        model = model.to(torch.bfloat16)
    model.save_pretrained(folder)
    del model
    if device != "cpu":
        torch.cuda.empty_cache()  # the measured processes want the whole card
    return folder


def save_config(folder: Path, shape: Shape) -> Qwen2_5_VLConfig:
    """Save config, tokenizer and image processor of a model of ``shape`` into ``folder``, without weights."""
    tokenizer = build_prompt_tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    head = shape.hidden // shape.heads
    sections = [head // 2 - 2 * (3 * head // 16), 3 * head // 16, 3 * head // 16]  # 16, 24, 24 of 64, as published
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": shape.vocabulary or len(tokenizer),
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "max_position_embeddings": 32768,
            "rope_parameters": {"rope_type": "default", "mrope_section": sections, "rope_theta": 1e6},
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": shape.vision_layers,
            "hidden_size": shape.vision_hidden,
            "intermediate_size": shape.vision_intermediate,
            "num_heads": shape.vision_heads,
            "out_hidden_size": shape.hidden,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": WINDOW,
            "fullatt_block_indexes": shape.vision_full_attention,
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    bounds = {"min_pixels": (PATCH * MERGE) ** 2, "max_pixels": 4096**2}
    Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=MERGE, **bounds).save_pretrained(folder)
    return config
