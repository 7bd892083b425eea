"""Qwen3-VL (arXiv:2511.21631): coordinates 0..1000, interleaved M-RoPE, DeepStack features."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from grasp_rl.policies.backbones.qwen2_5_vl import Qwen25VL


class Qwen3VL(Qwen25VL):
    """``Qwen3VLForConditionalGeneration``; its image goes in as Qwen2.5-VL's does."""

    coordinates = "thousand"

    def layout(self, visual: Any, grids: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        indices, weights = get_vision_interpolation_indices_and_weights(
            grids,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=visual.spatial_merge_size,
        )
        places = get_vision_position_ids(grids, visual.spatial_merge_size)
        result = {"position_ids": places, "interp_indices": indices, "interp_weights": weights}
        return result, {"cu_seqlens": get_vision_cu_seqlens(grids)}
