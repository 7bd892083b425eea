"""InternVL3 (arXiv:2504.10479), HF port: tiles of 448 pixels and a thumbnail, coordinates 0..1000."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from grasp_rl.policies.backbones.base import Backbone, ImageFeatures, ImageInputs, ImageSize, ProcessedImage
from grasp_rl.types import Image


class InternVL(Backbone):
    """``InternVLForConditionalGeneration``; an area in pixels becomes a number of tiles."""

    processor = "GotOcr2ImageProcessorPil"

    def __init__(self, image_processor: Any, size: ImageSize, config: Any) -> None:
        super().__init__(image_processor, size, config)
        image_processor.crop_to_patches = True
        for name, area in (("min_patches", size.min_pixels), ("max_patches", size.max_pixels)):
            if area is not None:
                setattr(image_processor, name, max(1, area // self.step**2))
        image_processor.min_patches = min(image_processor.min_patches, image_processor.max_patches)

    @property
    def step(self) -> int:
        return int(self.config.vision_config.image_size[0])

    def _preprocess(self, image: Image, core: Any, image_token: str) -> ProcessedImage:
        pixels = self.image_processor(images=[image], return_tensors="pt", input_data_format="channels_last")
        patch = self.config.vision_config.patch_size[0]
        each = int(self.step // patch * self.config.downsample_ratio) ** 2
        tiles = pixels["pixel_values"]
        return ProcessedImage(
            inputs={"pixel_values": tiles},
            tokens=f"<img>{image_token * (each * len(tiles))}</img>",
            canvas=(image.shape[1], image.shape[0]),
        )

    def features(self, core: Any, inputs: Sequence[ImageInputs]) -> list[ImageFeatures]:
        tiles = torch.cat([i["pixel_values"] for i in inputs])
        result = core.get_image_features(pixel_values=tiles, return_dict=True).pooler_output  # (tiles, T, D)
        counts = [len(i["pixel_values"]) for i in inputs]
        return [ImageFeatures(tokens=part.flatten(0, 1)) for part in result.split(counts)]
