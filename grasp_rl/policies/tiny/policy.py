"""The tiny policies: real Qwen3-VLs of 0.6 to 3.6 M parameters; tokenizer, processor and chat template are built here.

It speaks absolute pixels of a 112 x 112 image. The vision encoder keeps absolute position embeddings (a rotary-only
vision encoder of this size barely learns to localise). Numbers and the fixed pieces of the answer are single tokens,
so a completion with one box and two points has about 24 of them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from grasp_rl.config.errors import ConfigError
from grasp_rl.policies.backbones.base import ImageSize
from grasp_rl.policies.backbones.qwen3_vl import Qwen3VL
from grasp_rl.policies.lora import add_lora
from grasp_rl.policies.vlm import VlmPolicy

SIDE, PATCH = 112, 14
WARM_START = Path(__file__).parent / "weights"
"""Shipped weights of size ``base``; those of another size stand in a folder of its name beside them."""


@dataclass(frozen=True)
class Size:
    """Width and depth of the language model and of the vision encoder."""

    hidden: int
    layers: int
    vision_hidden: int
    vision_layers: int


SIZES = {"small": Size(96, 3, 64, 2), "base": Size(128, 4, 96, 3), "large": Size(192, 6, 144, 4)}
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
PIECES = (
    "<think>", "</think>\n<answer>```json\n[", "]\n```</answer>", '{"bbox_2d":[', '{"positive_points":[[',
    '],"positive_points":[[', ']],"negative_points":[[', "],[", "]},", "]]},", "]}", "]]}", ",",
    "bbox_2d", "positive_points", "negative_points",
)  # fmt: skip
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def warm_start(size: str) -> Path:
    """The folder of the shipped weights of ``size``."""
    return WARM_START if size == "base" else WARM_START.parent / f"weights_{size}"


def build_tokenizer(texts: list[str], vocabulary: int = 640) -> PreTrainedTokenizerFast:
    """Byte-level BPE over words, trained on the project's own questions and thoughts.

    Structure is added as whole tokens, longest match first, and so is every number 0..112.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    numbers = [str(n) for n in range(SIDE + 1)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(PIECES) - len(numbers),
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in (*PIECES, *numbers)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[s for s in SPECIAL if s not in ("<|im_end|>", "<|endoftext|>")],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_corpus() -> list[str]:
    """The project's own text: every training question and thought (out-of-domain phrasings stay unseen)."""
    from grasp_rl.data.synthetic.questions import NOUNS, PREFERENCES, RELATIONS, TRAIN_PHRASES

    questions = [p for phrases in TRAIN_PHRASES.values() for p in phrases]
    questions += [text for _, text, _ in PREFERENCES]
    questions += [text.format(noun=noun) for text, noun in itertools.product(RELATIONS.values(), NOUNS.values())]
    thoughts = [f"{count} {noun}" for count, noun in itertools.product(("no", "1", "2", "3"), NOUNS.values())]
    thoughts += [f"1 {relation} {noun}" for relation, noun in itertools.product(RELATIONS, NOUNS.values())]
    return questions * 4 + thoughts + ["user\n", "assistant\n"] * 50


def build_image_processor() -> Qwen2VLImageProcessorPil:
    """Qwen's image processor with one-pixel-group merging, so that 112 x 112 gives 8 x 8 image tokens."""
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=1,
        temporal_patch_size=1,
        min_pixels=SIDE * SIDE,
        max_pixels=SIDE * SIDE,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def build_model(tokenizer: Any, seed: int = 0, size: Size = SIZES["base"]) -> Qwen3VLForConditionalGeneration:
    """A random Qwen3-VL of a tiny ``size``.

    Initialisation matters at this size: position embeddings of standard deviation 0.5 and linear layers of
    0.7 / sqrt(fan-in) learn to localise; the library's 0.02 does not within the warm start's budget.
    """
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("im_end", "endoftext", "image_pad")}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": size.hidden,
            "intermediate_size": 3 * size.hidden,
            "num_hidden_layers": size.layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
                "rope_theta": 10000.0,
            },
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": ids["im_end"],
            "pad_token_id": ids["endoftext"],
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_hidden,
            "intermediate_size": 8 * size.vision_hidden // 3,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": 1,
            "temporal_patch_size": 1,
            "out_hidden_size": size.hidden,
            "in_channels": 3,
            "num_position_embeddings": (SIDE // PATCH) ** 2,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=ids["image_pad"],
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen3VLForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pos_embed" in name:
                parameter.normal_(0, 0.5, generator=generator)
            elif ("patch_embed" in name and parameter.ndim > 1) or "embed_tokens" in name:
                parameter.normal_(0, 0.05, generator=generator)
            elif parameter.ndim == 2:
                parameter.normal_(0, 0.7 / parameter.shape[1] ** 0.5, generator=generator)
        numbers = [tokenizer.convert_tokens_to_ids(str(n)) for n in range(SIDE + 1)]
        model.get_input_embeddings().weight[numbers] = number_embeddings(size.hidden, generator)
    return model


def number_embeddings(width: int, generator: torch.Generator) -> torch.Tensor:
    """[113, width] starting embeddings of the numbers 0..112: neighbours look alike.

    Cosines and sines of growing frequency and falling amplitude, plus a little noise. The embedding is tied to the
    output, so a coordinate that is nearly right is nearly as likely from the start, and one example teaches many.
    """
    waves = torch.arange(1, width // 4 + 1)
    angle = torch.arange(SIDE + 1)[:, None] * waves[None] * (torch.pi / (SIDE + 16))
    amplitude = 1 / waves.sqrt()
    code = torch.cat([angle.cos() * amplitude, angle.sin() * amplitude], 1)
    code = 0.6 * code / code.norm(dim=1, keepdim=True)
    noise = 0.02 * torch.randn(SIDE + 1, width, generator=generator)
    return torch.nn.functional.pad(code, (0, width - code.shape[1])) + noise


class TinyPolicy(VlmPolicy):
    """What ``policy=tiny``, ``tiny_small`` and ``tiny_large`` instantiate.

    Args:
        weights: ``warm_start`` (shipped), ``random`` or a folder written by :meth:`save`.
        size: ``small``, ``base`` or ``large``; weights of a folder have the size that they were saved with.
        prompt_template: the words it was trained with; read by conf/prompt.
        train_vision_encoder: whether gradients reach the vision encoder.
        lora_rank: 0 for full fine-tuning.
        lora_alpha: scale of the adapter is lora_alpha / lora_rank.
        seed: of the random initialisation.

    Raises:
        ConfigError: the weights are not there, or there is no such size.
    """

    def __init__(
        self,
        weights: str = "warm_start",
        size: str = "base",
        prompt_template: str = "compact",
        train_vision_encoder: bool = True,
        lora_rank: int = 0,
        lora_alpha: int = 16,
        seed: int = 0,
    ) -> None:
        if size not in SIZES:
            raise ConfigError(f"policy.size={size!r}: must be one of {', '.join(SIZES)}")
        folder = warm_start(size) if weights == "warm_start" else Path(weights)
        if weights == "random":
            tokenizer: Any = build_tokenizer(build_corpus())
            model = build_model(tokenizer, seed, SIZES[size])
            processor = build_image_processor()
        else:
            if not (folder / "config.json").is_file():
                raise ConfigError(
                    f"policy.weights={weights!r}: no config.json there; must be warm_start, random or a folder written "
                    "by a run (its checkpoints/<step>/policy)"
                )
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, clean_up_tokenization_spaces=False)
            model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
            processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
        # measured on a CPU, bf16 fine-tuning step of 16 packed rows: eager 0.37, sdpa 0.51 CPU-seconds
        model.set_attn_implementation({"text_config": "eager", "vision_config": "eager"})
        super().__init__(
            add_lora(model, rank=lora_rank, alpha=lora_alpha, seed=seed),
            tokenizer,
            Qwen3VL(processor, ImageSize(max_pixels=SIDE * SIDE, resize="square"), model.config),
            coordinates="absolute",  # its numbers are single tokens 0..112
            train_vision_encoder=train_vision_encoder,
        )
        self.prompt_template = prompt_template

    @property
    def base_name(self) -> str:
        """The shipped weights have no hub id; the model card says where they are."""
        return "grasp_rl-tiny"
