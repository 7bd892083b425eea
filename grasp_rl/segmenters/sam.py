"""SAM (arXiv:2304.02643): the first Segment Anything, transformers' port."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grasp_rl.segmenters.base import PromptableSegmenter
from grasp_rl.segmenters.embedding_cache import Features


def _vit(width: int, layers: int, heads: int, attend: list[int]) -> Any:
    return {
        "vision_config": {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "global_attn_indexes": attend,
            "mlp_dim": 4 * width,
        }
    }


class SamSegmenter(PromptableSegmenter):
    """``SamModel``. The longer side fills the encoder's square and the rest is padding, below or to the right."""

    MODEL = "SamModel"
    ARCHITECTURES = {
        "vit_b": _vit(768, 12, 12, [2, 5, 8, 11]),
        "vit_l": _vit(1024, 24, 16, [5, 11, 17, 23]),
        "vit_h": _vit(1280, 32, 16, [7, 15, 23, 31]),
    }

    @property
    def side(self) -> int:
        return int(self.model.config.vision_config.image_size)

    def seen_size(self, size: Sequence[int]) -> tuple[int, int]:
        """(height, width) of the resized image inside the square; at least one pixel."""
        scale = self.side / max(size)
        return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))

    def enlarge(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """To the square, off with the padding, to the original: in these two steps, as the original does it."""
        square = torch.nn.functional.interpolate(logits, (self.side, self.side), mode="bilinear", align_corners=False)
        height, width = self.seen_size(size)
        return torch.nn.functional.interpolate(square[..., :height, :width], size, mode="bilinear", align_corners=False)

    def embed(self, pixels: Tensor) -> Features:
        return (self.model.vision_encoder(pixels).last_hidden_state,)

    def joined(self, features: Features) -> Tensor:
        return features[0]

    @staticmethod
    def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Meta's original keys in the port's words."""
        renamed = {_renamed(name): value for name, value in state.items() if not name.startswith("pixel_")}
        code = "prompt_encoder.shared_embedding.positional_embedding"
        if code in renamed:
            renamed["shared_image_embedding.positional_embedding"] = renamed[code]
        return renamed


_NECK = {"0": "conv1", "1": "layer_norm1", "2": "conv2", "3": "layer_norm2"}
_MASK_EMBED = {"0": "conv1", "1": "layer_norm1", "3": "conv2", "4": "layer_norm2", "6": "conv3"}
_UPSCALE = {"0": "upscale_conv1", "1": "upscale_layer_norm", "3": "upscale_conv2"}
_HEAD = {"0": "proj_in", "1": "layers.0", "2": "proj_out"}


def _renamed(name: str) -> str:
    """One original key in the port's words."""
    for old, new in (
        ("image_encoder.", "vision_encoder."),
        ("patch_embed.proj.", "patch_embed.projection."),
        (".blocks.", ".layers."),
        ("pe_layer.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
        (".point_embeddings.", ".point_embed."),
    ):
        name = name.replace(old, new)
    name = re.sub(r"\.norm(\d|_)", r".layer_norm\1", name)
    name = re.sub(r"\.neck\.(\d)\.", lambda m: f".neck.{_NECK[m[1]]}.", name)
    name = re.sub(r"mask_downscaling\.(\d)\.", lambda m: f"mask_embed.{_MASK_EMBED[m[1]]}.", name)
    name = re.sub(r"output_upscaling\.(\d)\.", lambda m: f"{_UPSCALE[m[1]]}.", name)
    if re.search(r"(hypernetworks_mlps\.\d|iou_prediction_head)\.layers\.", name):
        name = re.sub(r"\.layers\.(\d)\.", lambda m: f".{_HEAD[m[1]]}.", name)
    return name
