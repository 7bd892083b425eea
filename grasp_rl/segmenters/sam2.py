"""SAM 2 and 2.1 (arXiv:2408.00714): transformers' port, or the ``sam2`` package behind the same protocol."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from grasp_rl.config.errors import ConfigError
from grasp_rl.segmenters.base import PromptableSegmenter
from grasp_rl.segmenters.embedding_cache import Features
from grasp_rl.segmenters.weights import Weights

VIDEO = ("memory_", "obj_ptr_", "maskmem_", "mask_downsample", "no_mem_pos_enc", "no_obj_ptr", "no_obj_embed_spatial")
"""Beginnings of the original keys that only video needs."""


def _hiera(width: int, heads: int, blocks: list[int], attend: list[int], background: int, windows: list[int]) -> Any:
    widths = [width * 2**i for i in range(4)]
    return {
        "vision_config": {
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": width,
                "num_attention_heads": heads,
                "blocks_per_stage": blocks,
                "embed_dim_per_stage": widths,
                "num_attention_heads_per_stage": [heads * 2**i for i in range(4)],
                "global_attention_blocks": attend,
                "window_positional_embedding_background_size": [background, background],
                "window_size_per_stage": windows,
            },
            "backbone_channel_list": widths[::-1],
        }
    }


class Sam2Segmenter(PromptableSegmenter):
    """``Sam2Model``. The original squashes every image to a square; so prompts scale by side / width, side / height.

    Args:
        path: a hub id (``facebook/sam2.1-hiera-small``), a local folder of the port, an original ``.pt`` file,
            ``packaged:NAME`` or ``random:NAME``.
        backend: transformers | sam2, the package of that name; it takes original files only.
        **options: as for :class:`~grasp_rl.segmenters.base.PromptableSegmenter`.
    """

    MODEL = "Sam2Model"
    ARCHITECTURES = {
        "hiera_tiny": _hiera(96, 1, [1, 2, 7, 2], [5, 7, 9], 7, [8, 4, 14, 7]),
        "hiera_small": _hiera(96, 1, [1, 2, 11, 2], [7, 10, 13], 7, [8, 4, 14, 7]),
        "hiera_base_plus": _hiera(112, 2, [2, 3, 16, 3], [12, 16, 20], 14, [8, 4, 14, 7]),
        "hiera_large": _hiera(144, 2, [2, 6, 36, 4], [23, 33, 43], 7, [8, 4, 16, 8]),
    }

    def __init__(
        self,
        path: str,
        revision: str | None = None,
        architecture: str | None = None,
        allow_pickle_weights: bool = False,
        backend: str = "transformers",
        mask_threshold: float = 0.0,
        multimask: bool = False,
        fill_holes: int = 0,
        min_region: int = 0,
        decode_chunk: int = 64,
        cache: str = "none",
        cache_mb: int = 2048,
        cache_dir: str = "outputs/embeddings",
        dtype: str = "float32",
        device: str = "auto",
    ) -> None:
        if backend not in ("transformers", "sam2"):
            raise ConfigError(f"segmenter.backend={backend!r}: must be one of transformers, sam2")
        self.backend = backend
        super().__init__(
            path, revision, architecture, allow_pickle_weights, mask_threshold, multimask, fill_holes, min_region,
            decode_chunk, cache, cache_mb, cache_dir, dtype, device,
        )  # fmt: skip

    def _build(self, weights: Weights) -> tuple[Any, str | None]:
        if self.backend == "transformers":
            return super()._build(weights)
        from grasp_rl.segmenters.sam2_package import load_package

        return load_package(weights), None

    def embed(self, pixels: Tensor) -> Features:
        if self.backend != "transformers":
            raise ConfigError(f"segmenter.backend={self.backend!r}: must be transformers to be trained")
        levels = list(self.model.get_image_features(pixels, return_dict=True).fpn_hidden_states)
        levels[-1] = levels[-1] + self.model.no_memory_embedding
        sizes = self.model.backbone_feature_sizes
        return tuple(
            level.permute(1, 2, 0).reshape(len(pixels), -1, *size) for level, size in zip(levels, sizes, strict=True)
        )

    @staticmethod
    def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Meta's original keys in the port's words; what only video needs is left out."""
        renamed: dict[str, Tensor] = {}
        points: dict[int, Tensor] = {}
        for name, value in state.items():
            point = re.fullmatch(r"sam_prompt_encoder\.point_embeddings\.(\d)\.weight", name)
            if point:
                points[int(point[1])] = value
            elif not name.startswith(VIDEO):
                renamed[_renamed(name)] = value
        if points:
            renamed["prompt_encoder.point_embed.weight"] = torch.cat([points[i] for i in sorted(points)])
        code = "prompt_encoder.shared_embedding.positional_embedding"
        if code in renamed:
            renamed["shared_image_embedding.positional_embedding"] = renamed[code]
        return renamed


_MASK_EMBED = {"0": "conv1", "1": "layer_norm1", "3": "conv2", "4": "layer_norm2", "6": "conv3"}
_UPSCALE = {"0": "upscale_conv1", "1": "upscale_layer_norm", "3": "upscale_conv2"}
_HEAD = {"0": "proj_in", "1": "layers.0", "2": "proj_out"}
_MLP = {"0": "proj_in", "1": "proj_out"}


def _renamed(name: str) -> str:
    """One original key in the port's words."""
    if name == "no_mem_embed":
        return "no_memory_embedding"
    for old, new in (
        ("image_encoder.trunk.", "vision_encoder.backbone."),
        ("image_encoder.neck.", "vision_encoder.neck."),
        ("sam_prompt_encoder.", "prompt_encoder."),
        ("sam_mask_decoder.", "mask_decoder."),
        ("patch_embed.proj.", "patch_embed.projection."),
        ("pe_layer.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
        (".out_proj.", ".o_proj."),
    ):
        name = name.replace(old, new)
    if name.startswith("vision_encoder.neck."):
        name = name.replace(".conv.", ".")
    name = re.sub(r"\.norm(\d|_)", r".layer_norm\1", name)
    name = re.sub(r"mask_downscaling\.(\d)\.", lambda m: f"mask_embed.{_MASK_EMBED[m[1]]}.", name)
    name = re.sub(r"output_upscaling\.(\d)\.", lambda m: f"{_UPSCALE[m[1]]}.", name)
    if re.search(r"(hypernetworks_mlps\.\d|iou_prediction_head|pred_obj_score_head)\.layers\.", name):
        return re.sub(r"\.layers\.(\d)\.", lambda m: f".{_HEAD[m[1]]}.", name)
    return re.sub(r"\.mlp\.layers\.(\d)\.", lambda m: f".mlp.{_MLP[m[1]]}.", name)
