"""The tiny policies: real Qwen3-VLs of 0.6 to 3.6 M parameters, and a Qwen2.5-VL, with all that belongs to them.

They speak absolute pixels of a 112 x 112 image. Numbers and the fixed pieces of the answer are single tokens,
so a completion with one box and two points has about 24 of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.modeling_utils import set_zero3_state

from grasp_rl.config.errors import ConfigError
from grasp_rl.policies.backbones.base import Backbone, ImageSize
from grasp_rl.policies.backbones.qwen2_5_vl import Qwen25VL
from grasp_rl.policies.backbones.qwen3_vl import Qwen3VL
from grasp_rl.policies.lora import add_lora
from grasp_rl.policies.vlm import VlmPolicy

SIDE, PATCH = 112, 14
WARM_START = Path(__file__).parent / "weights"
"""Shipped weights of a Qwen3-VL of size ``base``; others stand in a folder of their name beside them."""


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


def name_of(size: str, family: str = "qwen3_vl") -> str:
    """What ``policy=`` calls the policy of ``size`` and ``family``."""
    parts = ("" if family == "qwen3_vl" else family.removesuffix("_vl"), "" if size == "base" else size)
    return "_".join(("tiny", *filter(None, parts)))


def warm_start(size: str, family: str = "qwen3_vl") -> Path:
    """The folder of the shipped weights of ``size`` and ``family``."""
    return WARM_START.parent / ("weights" + name_of(size, family).removeprefix("tiny"))


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


def build_model(tokenizer: Any, seed: int = 0, size: Size = SIZES["base"], family: str = "qwen3_vl") -> PreTrainedModel:
    """A random model of ``family`` and of a tiny ``size``.

    Initialisation matters at this size: position embeddings of standard deviation 0.5 and linear layers of
    0.7 / sqrt(fan-in) learn to localise; the library's 0.02 does not within the warm start's budget.
    """
    with set_zero3_state():  # whole, also where weights would be divided as they are read; the engine divides it later
        model = FAMILIES[family].build(tokenizer, size)
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


def _text(tokenizer: Any, size: Size, **rope: Any) -> dict[str, Any]:
    """The language model's config, whatever the family."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": size.hidden,
        "intermediate_size": 3 * size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "mrope_section": [6, 5, 5], "rope_theta": 10000.0, **rope},
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "pad_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    }


def _vision(size: Size) -> dict[str, Any]:
    """The vision encoder's config, whatever the family."""
    return {
        "depth": size.vision_layers,
        "hidden_size": size.vision_hidden,
        "intermediate_size": 8 * size.vision_hidden // 3,
        "num_heads": 4,
        "patch_size": PATCH,
        "spatial_merge_size": 1,
        "temporal_patch_size": 1,
        "out_hidden_size": size.hidden,
        "in_channels": 3,
    }


def _tokens(tokenizer: Any) -> dict[str, int]:
    names = {
        "image_token_id": "image_pad", "video_token_id": "video_pad", "vision_start_token_id": "vision_start",
        "vision_end_token_id": "vision_end",
    }  # fmt: skip
    return {key: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}


def _qwen3_vl(tokenizer: Any, size: Size) -> PreTrainedModel:
    """Its vision encoder has learned absolute positions beside the rotary ones."""
    text = _text(tokenizer, size, mrope_interleaved=True) | {"head_dim": 32}
    vision = _vision(size) | {"num_position_embeddings": (SIDE // PATCH) ** 2, "deepstack_visual_indexes": [0, 1]}
    tokens = _tokens(tokenizer)
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **tokens)
    return Qwen3VLForConditionalGeneration(config)


def _qwen2_5_vl(tokenizer: Any, size: Size) -> PreTrainedModel:
    """Its vision encoder has rotary positions alone; every layer sees the whole image, which is one window."""
    vision = _vision(size) | {"window_size": SIDE, "fullatt_block_indexes": list(range(size.vision_layers))}
    config = Qwen2_5_VLConfig(
        text_config=_text(tokenizer, size), vision_config=vision, tie_word_embeddings=True, **_tokens(tokenizer)
    )
    return Qwen2_5_VLForConditionalGeneration(config)


@dataclass(frozen=True)
class Family:
    """A model class of transformers, and how a tiny one is built."""

    model: type[PreTrainedModel]
    backbone: type[Backbone]
    build: Callable[[Any, Size], PreTrainedModel]


FAMILIES = {
    "qwen3_vl": Family(Qwen3VLForConditionalGeneration, Qwen3VL, _qwen3_vl),
    "qwen2_5_vl": Family(Qwen2_5_VLForConditionalGeneration, Qwen25VL, _qwen2_5_vl),
}


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
    """What ``policy=tiny``, ``tiny_small``, ``tiny_large`` and ``tiny_qwen2_5`` instantiate.

    Args:
        weights: ``warm_start`` (shipped), ``random`` or a folder written by :meth:`save`.
        size: ``small``, ``base`` or ``large``; weights of a folder have the size that they were saved with.
        family: ``qwen3_vl`` or ``qwen2_5_vl``.
        prompt_template: the words it was trained with; read by conf/prompt.
        train_vision_encoder: whether gradients reach the vision encoder.
        lora_rank: 0 for full fine-tuning.
        lora_alpha: scale of the adapter is lora_alpha / lora_rank.
        seed: of the random initialisation.

    Raises:
        ConfigError: the weights are not there or are of another family, or there is no such size or family.
    """

    def __init__(
        self,
        weights: str = "warm_start",
        size: str = "base",
        family: str = "qwen3_vl",
        prompt_template: str = "compact",
        train_vision_encoder: bool = True,
        lora_rank: int = 0,
        lora_alpha: int = 16,
        seed: int = 0,
    ) -> None:
        if size not in SIZES:
            raise ConfigError(f"policy.size={size!r}: must be one of {', '.join(SIZES)}")
        if family not in FAMILIES:
            raise ConfigError(f"policy.family={family!r}: must be one of {', '.join(FAMILIES)}")
        if weights == "random":
            tokenizer: Any = build_tokenizer(build_corpus())
            model = build_model(tokenizer, seed, SIZES[size], family)
            processor = build_image_processor()
        else:
            folder = warm_start(size, family) if weights == "warm_start" else Path(weights)
            _check_folder(folder, weights, family)
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, clean_up_tokenization_spaces=False)
            model = FAMILIES[family].model.from_pretrained(folder, dtype=torch.float32)
            processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
        # measured on a CPU, bf16 fine-tuning step of 16 packed rows: eager 0.37, sdpa 0.51 CPU-seconds
        model.set_attn_implementation({"text_config": "eager", "vision_config": "eager"})
        super().__init__(
            add_lora(model, rank=lora_rank, alpha=lora_alpha, seed=seed),
            tokenizer,
            FAMILIES[family].backbone(processor, ImageSize(max_pixels=SIDE * SIDE, resize="square"), model.config),
            coordinates="absolute",  # its numbers are single tokens 0..112
            train_vision_encoder=train_vision_encoder,
        )
        self.prompt_template = prompt_template

    @property
    def base_name(self) -> str:
        """The shipped weights have no hub id; the model card says where they are."""
        return "grasp_rl-tiny"


def _check_folder(folder: Path, weights: str, family: str) -> None:
    """Refuse a folder without a model, or with a model of another class, which would be read with random weights."""
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"policy.weights={weights!r}: no config.json there; must be warm_start, random or a folder written "
            "by a run (its checkpoints/<step>/policy)"
        )
    model_type = PreTrainedConfig.get_config_dict(folder)[0].get("model_type")
    if model_type != family:
        raise ConfigError(
            f"policy.weights={weights!r}: weights of model_type {model_type!r}, but policy.family={family}; "
            f"for tiny ones write policy.family={model_type}, for others policy=hf_vlm policy.path={weights}"
        )
