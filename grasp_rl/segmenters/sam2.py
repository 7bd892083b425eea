"""SAM 2 as ported to transformers: one encoder pass per picture, all prompts of an answer in bucketed decoder calls.

No torchvision: the preprocessing (square resize, ImageNet mean and deviation) is a few lines of torch. Prompts come and
masks go at original resolution.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Sam2Model

from grasp_rl.config import ConfigError
from grasp_rl.types import Image, MaskPrediction, SpatialPrompt

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PAD_LABEL = -10
"""The label that transformers' SAM ports ignore; -1 would add an attended token."""


@dataclass(frozen=True, kw_only=True)
class Sam2Embedding:
    """One encoded picture."""

    features: Any
    """Image embeddings of all levels, as Sam2Model.get_image_embeddings returns them."""
    size: tuple[int, int]
    """(height, width) of the original picture."""


class Sam2Segmenter:
    """A frozen ``Sam2Model``.

    Args:
        path: a hub id (``facebook/sam2.1-hiera-small``) or a local folder of a saved Sam2Model.
        revision: hub revision; pin it for a result to be reproducible.
        mask_threshold: logit above which a pixel belongs to the mask.
        multimask: take the best of three masks by predicted IoU, as Seg-Zero does for evaluation.
        device: auto | cpu | cuda

    Raises:
        ConfigError: there is no such model here.
    """

    def __init__(
        self,
        path: str,
        revision: str | None = None,
        mask_threshold: float = 0.0,
        multimask: bool = False,
        device: str = "auto",
    ) -> None:
        if device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"segmenter.device={device!r}: must be one of auto, cpu, cuda")
        try:
            model = Sam2Model.from_pretrained(path, revision=revision, use_safetensors=True)
        except OSError as error:
            kind = "folder" if Path(path).exists() else "hub id or folder"
            raise ConfigError(f"segmenter.path={path!r}: no Sam2Model in this {kind}: {error}") from error
        chosen = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
        self.model = model.to(chosen).eval().requires_grad_(False)
        self.mask_threshold, self.multimask = mask_threshold, multimask
        self.side = int(model.config.prompt_encoder_config.image_size)

    @torch.inference_mode()
    def encode(self, image: Image) -> Sam2Embedding:
        """One pass of the image encoder over ``image`` [H, W, 3] uint8 RGB."""
        pixels = (
            torch.from_numpy(np.ascontiguousarray(image)).to(self.model.device).permute(2, 0, 1)[None].float() / 255
        )
        pixels = torch.nn.functional.interpolate(
            pixels, (self.side, self.side), mode="bilinear", antialias=True, align_corners=False
        )
        mean, deviation = (pixels.new_tensor(v)[:, None, None] for v in (MEAN, DEVIATION))
        features = self.model.get_image_embeddings((pixels - mean) / deviation)
        return Sam2Embedding(features=features, size=(image.shape[0], image.shape[1]))

    @torch.inference_mode()
    def decode(self, embedding: Sam2Embedding, prompts: Sequence[SpatialPrompt]) -> MaskPrediction:
        """Masks [N, H, W] for N prompts; those with and without a box go in one decoder call each."""
        height, width = embedding.size
        masks = np.zeros((len(prompts), height, width), dtype=np.bool_)
        quality = np.zeros(len(prompts), dtype=np.float32)
        buckets: dict[bool, list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            if prompt.box is not None or prompt.point_coords:
                buckets[prompt.box is not None].append(index)
        for indices in buckets.values():
            logits, scores = self._decode([prompts[i] for i in indices], embedding)
            upsampled = torch.nn.functional.interpolate(
                logits[:, None], (height, width), mode="bilinear", align_corners=False
            )[:, 0]
            masks[indices] = (upsampled > self.mask_threshold).cpu().numpy()
            quality[indices] = scores.float().clamp(0, 1).cpu().numpy()
        return MaskPrediction(masks=masks, iou_predictions=quality)

    def _decode(self, prompts: Sequence[SpatialPrompt], embedding: Sam2Embedding) -> tuple[Tensor, Tensor]:
        """Low-resolution logits [N, h, w] and predicted IoU [N] of prompts that all have a box, or all have none."""
        scale = torch.tensor([self.side / embedding.size[1], self.side / embedding.size[0]])
        device = self.model.device
        inputs: dict[str, Tensor] = {}
        longest = max(len(p.point_coords) for p in prompts)
        if longest:
            points = torch.zeros(1, len(prompts), longest, 2)
            labels = torch.full((1, len(prompts), longest), PAD_LABEL, dtype=torch.int)
            for index, prompt in enumerate(prompts):
                count = len(prompt.point_coords)
                if count:
                    points[0, index, :count] = torch.tensor(prompt.point_coords) * scale
                    labels[0, index, :count] = torch.tensor(prompt.point_labels, dtype=torch.int)
            inputs |= {"input_points": points.to(device), "input_labels": labels.to(device)}
        if prompts[0].box is not None:
            boxes = torch.tensor([p.box for p in prompts]) * scale.repeat(2)
            inputs["input_boxes"] = boxes[None].to(device)
        output = self.model(image_embeddings=embedding.features, multimask_output=self.multimask, **inputs)
        logits, scores = output.pred_masks[0], output.iou_scores[0]  # (N, K, h, w), (N, K)
        best = scores.argmax(1)
        row = torch.arange(len(prompts), device=device)
        return logits[row, best], scores[row, best]
