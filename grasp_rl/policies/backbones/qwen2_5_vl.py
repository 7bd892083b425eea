"""Qwen2.5-VL (arXiv:2502.13923): absolute pixels of the resized image, M-RoPE, patches merged two by two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

from grasp_rl.policies.attention import prepare_vision_encoder
from grasp_rl.policies.backbones.base import Backbone, ImageFeatures, ImageInputs, ImageSize, ProcessedImage
from grasp_rl.policies.transfer import together
from grasp_rl.types import Image


class Qwen25VL(Backbone):
    """``Qwen2_5_VLForConditionalGeneration``."""

    coordinates = "absolute"
    vision_encoder = ("visual",)

    def __init__(self, image_processor: Any, size: ImageSize, config: Any) -> None:
        super().__init__(image_processor, size, config)
        bounds = {"shortest_edge": size.min_pixels, "longest_edge": size.max_pixels}  # the processor means areas
        image_processor.size = {**dict(image_processor.size), **{k: v for k, v in bounds.items() if v is not None}}

    @property
    def step(self) -> int:
        return int(self.image_processor.patch_size * self.image_processor.merge_size)

    def _preprocess(self, image: Image, core: Any, image_token: str) -> ProcessedImage:
        fixed = {"do_resize": False} if self.size.resize == "square" else {}
        inputs = self.image_processor(images=[image], return_tensors="pt", input_data_format="channels_last", **fixed)
        rows, columns = self.grid(inputs)
        return ProcessedImage(
            inputs={name: inputs[name] for name in ("pixel_values", "image_grid_thw")},
            tokens=image_token * (rows * columns),
            canvas=(columns * self.step, rows * self.step),
        )

    def features(self, core: Any, inputs: Sequence[ImageInputs]) -> list[ImageFeatures]:
        prepare_vision_encoder(core.visual)
        pixels, grids = (torch.cat([i[name] for i in inputs]) for name in ("pixel_values", "image_grid_thw"))
        result = core.get_image_features(pixels, grids, return_dict=True, **self._read_on_host(core.visual, grids))
        layers = getattr(result, "deepstack_features", None) or ()
        deepstack = list(zip(*layers, strict=True)) or [()] * len(inputs)
        return [ImageFeatures(tokens=t, deepstack=d) for t, d in zip(result.pooler_output, deepstack, strict=True)]

    def _read_on_host(self, visual: Any, grids: Tensor) -> dict[str, Any]:
        """What the stock vision encoder derives from the grids, by its keyword, so that it reads nothing back.

        Ends of sequences stay on the CPU, where every layer reads them; flash attention wants them on the device.
        """
        indices, ends = self.layout(visual, grids)
        result: dict[str, Any] = dict(ends)
        if "flash" in visual.config._attn_implementation:
            indices |= ends
            longest = {name.replace("cu_", "max_").removesuffix("s"): int(x.diff().max()) for name, x in ends.items()}
            result = dict(longest)
        result |= together(indices, visual.device)
        return {f"image_{name}": value for name, value in result.items()}

    def layout(self, visual: Any, grids: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Indices of patches, and ends of the sequences within which patches see one another, by stock keyword."""
        index, windows = get_vision_window_index(
            grids, visual.spatial_merge_size, visual.window_size, visual.patch_size
        )
        places = get_vision_position_ids(grids, visual.spatial_merge_size)
        return (
            {"position_ids": places, "window_index": index},
            {"cu_seqlens": get_vision_cu_seqlens(grids), "cu_window_seqlens": windows},
        )

    def positions(self, core: Any, ids: Tensor, visual: Tensor, inputs: ImageInputs) -> Tensor:
        positions, _ = core.get_rope_index(
            ids[None],
            image_grid_thw=inputs["image_grid_thw"],
            mm_token_type_ids=visual[None].int(),
            attention_mask=torch.ones_like(ids[None]),
        )
        result: Tensor = positions[:, 0]
        return result

    def grid(self, inputs: ImageInputs) -> tuple[int, int]:
        rows, columns = (int(v) // self.image_processor.merge_size for v in inputs["image_grid_thw"][0, 1:])
        return rows, columns
