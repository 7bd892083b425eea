"""The segmenter that fills: every box is its mask, every lone point a disc. The floor any real segmenter must beat."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from grasp_rl.config.errors import ConfigError
from grasp_rl.types import Image, MaskPrediction, SpatialPrompt


class BoxFillSegmenter:
    """Boxes to filled boxes; positive points without a box to filled discs.

    Args:
        radius: of a disc, as a fraction of the image's longer side.

    Raises:
        ConfigError: ``radius`` is out of range.
    """

    def __init__(self, radius: float = 0.05) -> None:
        if not 0 < radius <= 1:
            raise ConfigError(f"segmenter.radius={radius!r}: must be in (0, 1]")
        self.radius = radius

    def encode(self, image: Image) -> tuple[int, int]:
        """The (height, width) of ``image`` is all that is needed."""
        return image.shape[0], image.shape[1]

    def decode(self, embedding: tuple[int, int], prompts: Sequence[SpatialPrompt]) -> MaskPrediction:
        """Masks [N, H, W]: pixels whose centre lies in the box, or within the radius of a positive point."""
        height, width = embedding
        masks = np.zeros((len(prompts), height, width), dtype=np.bool_)
        for mask, prompt in zip(masks, prompts, strict=True):
            if prompt.box is not None:
                x0, y0, x1, y1 = (max(0, round(v)) for v in prompt.box)
                mask[y0:y1, x0:x1] = True
                continue
            canvas = np.zeros((height, width), dtype=np.uint8)
            for x, y in prompt.positive_points:
                cv2.circle(canvas, (int(x), int(y)), max(1, round(self.radius * max(height, width))), 1, -1)
            mask[:] = canvas > 0
        return MaskPrediction(masks=masks, iou_predictions=np.ones(len(prompts), dtype=np.float32))
