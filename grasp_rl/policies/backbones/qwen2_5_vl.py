"""Qwen2.5-VL (arXiv:2502.13923): absolute pixels of the resized picture, M-RoPE, patches merged two by two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grasp_rl.policies.backbones.base import Backbone, ImageSize, Picture, PictureFeatures, PictureInputs
from grasp_rl.types import Image


class Qwen25VL(Backbone):
    """``Qwen2_5_VLForConditionalGeneration``."""

    coordinates = "absolute"
    tower = ("visual",)

    def __init__(self, image_processor: Any, size: ImageSize, config: Any) -> None:
        super().__init__(image_processor, size, config)
        bounds = {"shortest_edge": size.min_pixels, "longest_edge": size.max_pixels}  # the processor means areas
        image_processor.size = {**dict(image_processor.size), **{k: v for k, v in bounds.items() if v is not None}}

    @property
    def step(self) -> int:
        return int(self.image_processor.patch_size * self.image_processor.merge_size)

    def _see(self, image: Image, core: Any, image_token: str) -> Picture:
        fixed = {"do_resize": False} if self.size.resize == "square" else {}
        inputs = self.image_processor(images=[image], return_tensors="pt", input_data_format="channels_last", **fixed)
        rows, columns = self.grid(inputs)
        return Picture(
            inputs={name: inputs[name] for name in ("pixel_values", "image_grid_thw")},
            tokens=image_token * (rows * columns),
            canvas=(columns * self.step, rows * self.step),
        )

    def features(self, core: Any, inputs: Sequence[PictureInputs]) -> list[PictureFeatures]:
        pixels, grids = (torch.cat([i[name] for i in inputs]) for name in ("pixel_values", "image_grid_thw"))
        found = core.get_image_features(pixels, grids, return_dict=True)
        layers = getattr(found, "deepstack_features", None) or ()
        deepstack = list(zip(*layers, strict=True)) or [()] * len(inputs)
        return [PictureFeatures(tokens=t, deepstack=d) for t, d in zip(found.pooler_output, deepstack, strict=True)]

    def positions(self, core: Any, ids: Tensor, visual: Tensor, inputs: PictureInputs) -> Tensor:
        positions, _ = core.get_rope_index(
            ids[None],
            image_grid_thw=inputs["image_grid_thw"],
            mm_token_type_ids=visual[None].int(),
            attention_mask=torch.ones_like(ids[None]),
        )
        found: Tensor = positions[:, 0]
        return found

    def grid(self, inputs: PictureInputs) -> tuple[int, int]:
        rows, columns = (int(v) // self.image_processor.merge_size for v in inputs["image_grid_thw"][0, 1:])
        return rows, columns
