"""Small members of the SAM family: the stock classes with few channels, and where trained weights of them lie.

All see a canvas of 112 x 112 and draw masks at half its side: a quarter, the published models' share, would cap the IoU
on the drawn scenes' small objects. The initialisation differs from the ports' where these do not learn at this size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from grasp_rl.config.errors import ConfigError

SIDE, PATCH = 112, 8
RANDOM, PACKAGED = "random:", "packaged:"
"""Beginnings of a ``segmenter.path`` that names an architecture here, or the trained weights of one."""
QUIET = 0.05
"""Scale of the image features at the start: the decoder first learns what a prompt is, then looks at the image."""


def _decoder(width: int) -> dict[str, Any]:
    return {"hidden_size": width, "mlp_dim": 2 * width, "num_attention_heads": 4, "iou_head_hidden_dim": width}


def _prompts(width: int) -> dict[str, Any]:
    return {"hidden_size": width, "image_size": SIDE, "patch_size": PATCH, "mask_input_channels": 8}


def _sam2(width: int, widths: list[int], blocks: list[int]) -> dict[str, Any]:
    """SAM 2 with a Hiera whose patches are 2 x 2, so that masks have half the canvas's side.

    Args:
        width: channels of the decoder.
        widths: channels of the encoder's four stages.
        blocks: blocks of each stage.
    """
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": widths[0],
        "num_attention_heads": 1,
        "blocks_per_stage": blocks,
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [1, 2, 4, 4],
        "window_size_per_stage": [8, 4, 14, 7],
        "global_attention_blocks": [],
        "window_positional_embedding_background_size": [7, 7],
        "image_size": [SIDE, SIDE],
        "patch_kernel_size": [3, 3],
        "patch_stride": [2, 2],
        "patch_padding": [1, 1],
    }
    return {
        "vision_config": {
            "backbone_config": backbone,
            "backbone_channel_list": widths[::-1],
            "backbone_feature_sizes": [[SIDE // n, SIDE // n] for n in (2, 4, 8)],
            "fpn_hidden_size": width,
        },
        "prompt_encoder_config": _prompts(width),
        # with it an unsure single mask is swapped for one of the three others
        "mask_decoder_config": _decoder(width) | {"dynamic_multimask_via_stability": False},
    }


def _sam(width: int, hidden: int, layers: int) -> dict[str, Any]:
    """SAM with a ViT of patches of 8 x 8.

    Args:
        width: channels of the decoder.
        hidden: channels of the encoder.
        layers: of the encoder, all with attention over the whole canvas.
    """
    vision = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "mlp_dim": 4 * hidden,
        "output_channels": width,
        "image_size": SIDE,
        "patch_size": PATCH,
        "window_size": 7,
        "global_attn_indexes": list(range(layers)),
        "num_pos_feats": width // 2,
        "initializer_range": 0.02,  # the port's default is 1e-10
    }
    return {
        "vision_config": vision,
        "prompt_encoder_config": _prompts(width),
        "mask_decoder_config": _decoder(width),
    }


ARCHITECTURES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "sam2_tiny": ("Sam2Model", _sam2(32, [12, 16, 32, 48], [1, 1, 2, 1])),
    "sam2_small": ("Sam2Model", _sam2(64, [16, 32, 64, 96], [1, 1, 2, 1])),
    "sam2_large": ("Sam2Model", _sam2(64, [32, 64, 128, 192], [1, 2, 4, 1])),
    "sam_base": ("SamModel", _sam(64, 64, 4)),
    "sam_huge": ("SamModel", _sam(64, 144, 5)),
}
"""Name: the stock class and what its config class takes."""


def packaged(name: str) -> Path:
    """The folder of the trained weights called ``name``.

    Raises:
        ConfigError: none of that name is shipped.
    """
    shipped = sorted(path.parent.name for path in Path(__file__).parent.glob("*/config.json"))
    if name not in shipped:
        raise ConfigError(f"segmenter.path={PACKAGED + name!r}: must be {PACKAGED}NAME of {', '.join(shipped)}")
    return Path(__file__).parent / name


def build(name: str, model_class: str, seed: int = 0) -> Any:
    """A model of the architecture ``name`` with random weights.

    Args:
        name: of ``ARCHITECTURES``.
        model_class: the stock class that it must be of.
        seed: of the draw.

    Raises:
        ConfigError: there is no such architecture, or it is of another class.
    """
    fitting = [known for known, (kind, _) in ARCHITECTURES.items() if kind == model_class]
    if name not in fitting:
        valid = ", ".join(fitting) or f"none; there is no small {model_class}"
        raise ConfigError(f"segmenter.path={RANDOM + name!r}: must be {RANDOM}NAME of {valid}")
    kind = getattr(transformers, model_class)
    model = kind(kind.config_class(**ARCHITECTURES[name][1]))
    initialise(model, torch.Generator().manual_seed(seed))
    return model


def initialise(model: Any, generator: torch.Generator) -> None:
    """Draw all weights again as these sizes learn.

    Linear layers by fan-in; label embeddings with deviation 1 as in Meta's code (the ports' 0.02 drowns in the position
    codes); queries and keys of cross-attention alike, so that like positions attend to each other from the start; image
    features quiet. SAM's port draws its position code with deviation width / 2, which makes coordinates noise: here 1.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.weight.normal_(0, 1, generator=generator)
            elif isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                weight = module.weight
                fan_in = weight.shape[0] if isinstance(module, nn.ConvTranspose2d) else weight[0].numel()
                weight.normal_(0, fan_in**-0.5, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
        for name, module in model.mask_decoder.named_modules():
            if hasattr(module, "q_proj") and "self_attn" not in name:
                module.k_proj.weight.copy_(module.q_proj.weight)
        neck = model.vision_encoder.neck
        if hasattr(neck, "convs"):
            for conv in neck.convs:
                conv.weight.mul_(QUIET)
        else:
            neck.layer_norm2.weight.fill_(QUIET)
        code = model.shared_image_embedding.positional_embedding
        code.normal_(0, 1, generator=generator)
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(code)
