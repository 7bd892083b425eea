"""LLaVA-OneVision (arXiv:2408.03326): a thumbnail and any-resolution tiles of 384 pixels, coordinates 0..1000."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from grasp_rl.config.errors import ConfigError
from grasp_rl.policies.backbones.base import Backbone, ImageFeatures, ImageInputs, ImageSize, ProcessedImage
from grasp_rl.types import Image


class LlavaOnevision(Backbone):
    """``LlavaOnevisionForConditionalGeneration``; bounds choose among the checkpoint's canvases."""

    processor = "LlavaOnevisionImageProcessorPil"
    vision_encoder = ("vision_tower", "multi_modal_projector", "image_newline")

    def __init__(self, image_processor: Any, size: ImageSize, config: Any) -> None:
        super().__init__(image_processor, size, config)
        low, high = size.min_pixels or 0, size.max_pixels or float("inf")
        allowed = [list(p) for p in config.image_grid_pinpoints if low <= p[0] * p[1] <= high]
        if not allowed:
            areas = sorted({p[0] * p[1] for p in config.image_grid_pinpoints})
            raise ConfigError(
                f"policy.image.max_pixels={size.max_pixels!r}: no canvas of this checkpoint has an area from {low} to "
                f"{high}; the smallest has {areas[0]}, the largest {areas[-1]} pixels"
            )
        config.image_grid_pinpoints = image_processor.image_grid_pinpoints = allowed  # model and processor must agree

    def _preprocess(self, image: Image, core: Any, image_token: str) -> ProcessedImage:
        inputs = self.image_processor(images=[image], return_tensors="pt", input_data_format="channels_last")
        tiles, sizes = inputs["pixel_values"][0], inputs["image_sizes"]
        vision = self.config.vision_config
        blank = torch.zeros(len(tiles), (vision.image_size // vision.patch_size) ** 2, 1)
        _, lengths = core.pack_image_features(  # the model's own layout, counted on a single channel
            [blank], sizes, image_newline=torch.zeros(1), vision_aspect_ratio=self.config.vision_aspect_ratio
        )
        return ProcessedImage(
            inputs={"pixel_values": tiles, "image_sizes": sizes},
            tokens=image_token * int(lengths[0]),
            canvas=(image.shape[1], image.shape[0]),
        )

    def features(self, core: Any, inputs: Sequence[ImageInputs]) -> list[ImageFeatures]:
        tiles, sizes = (torch.cat([i[name] for i in inputs]) for name in ("pixel_values", "image_sizes"))
        result = core.get_image_features(pixel_values=tiles, image_sizes=sizes, return_dict=True).pooler_output
        return [ImageFeatures(tokens=tokens) for tokens in result]
