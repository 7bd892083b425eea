"""LLaVA-1.5 (arXiv:2310.03744): one square of 336 pixels. It was taught coordinates 0..1; 0..1000 is the nearest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from grasp_rl.config.errors import ConfigError
from grasp_rl.policies.backbones.base import Backbone, ImageFeatures, ImageInputs, ImageSize, ProcessedImage, squash
from grasp_rl.types import Image


class Llava(Backbone):
    """``LlavaForConditionalGeneration``.

    The port's processor cuts the middle out of an image that is not square, and what is cut off cannot be pointed at.
    Here the whole image is squashed to the vision encoder's square.
    """

    processor = "CLIPImageProcessorPil"

    def __init__(self, image_processor: Any, size: ImageSize, config: Any) -> None:
        super().__init__(image_processor, size, config)
        if size.resize == "keep" and (size.min_pixels or size.max_pixels):
            raise ConfigError("policy.image.max_pixels: this backbone sees one size only; leave both bounds null")

    def _preprocess(self, image: Image, core: Any, image_token: str) -> ProcessedImage:
        vision = self.config.vision_config
        square = squash(image, vision.image_size)
        inputs = self.image_processor(
            images=[square], return_tensors="pt", input_data_format="channels_last", do_resize=False,
            do_center_crop=False,
        )  # fmt: skip
        rows, columns = self.grid(inputs)
        extra = 0 if self.config.vision_feature_select_strategy == "default" else 1
        return ProcessedImage(
            inputs={"pixel_values": inputs["pixel_values"]},
            tokens=image_token * (rows * columns + extra),
            canvas=(image.shape[1], image.shape[0]),
        )

    def features(self, core: Any, inputs: Sequence[ImageInputs]) -> list[ImageFeatures]:
        pixels = torch.cat([i["pixel_values"] for i in inputs])
        result = core.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
        return [ImageFeatures(tokens=tokens) for tokens in result]

    def grid(self, inputs: ImageInputs) -> tuple[int, int]:
        side = int(self.config.vision_config.image_size // self.config.vision_config.patch_size)
        return side, side
