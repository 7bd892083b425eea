"""What a model family does its own way: how an image enters, which tokens stand for it, which frame is spoken.

Everything else (packing, decoding, scoring, saving) is common. A family is one file in ``grasp_rl/policies/backbones``
called as transformers calls its ``model_type``, with one subclass of :class:`Backbone`.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import transformers
from torch import Tensor

from grasp_rl.config.errors import ConfigError
from grasp_rl.types import Image

FRAMES = ("absolute", "thousand")
ImageInputs = Mapping[str, Tensor]
"""The image's keywords of the stock ``get_image_features``, for one image."""


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """How large the policy sees an image; the knob against running out of memory.

    ``keep`` leaves the aspect ratio to the family's own image processor, within the bounds. ``square`` squashes every
    image to the largest square of the family's patches within ``max_pixels``; Think2Seg-RS (arXiv:2512.19302) trains
    on squares of 840 pixels, max_pixels = 705600.
    """

    min_pixels: int | None = None
    """Smallest area of the resized image in pixels; None leaves the checkpoint's own."""
    max_pixels: int | None = None
    """Largest area in pixels; None leaves the checkpoint's own."""
    resize: str = "keep"
    """keep | square"""

    def __post_init__(self) -> None:
        if self.resize not in ("keep", "square"):
            raise ConfigError(f"policy.image.resize={self.resize!r}: must be one of keep, square")
        for key in ("min_pixels", "max_pixels"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"policy.image.{key}={value!r}: must be >= 1 or null")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ConfigError(f"policy.image.min_pixels={self.min_pixels}: must be <= max_pixels={self.max_pixels}")
        if self.resize == "square" and not self.max_pixels:
            raise ConfigError("policy.image.max_pixels=null: resize=square takes its side from it; 705600 gives 840")


@dataclass(frozen=True, kw_only=True)
class ProcessedImage:
    """One image as a family takes it."""

    inputs: ImageInputs
    tokens: str
    """The text that stands for the image in the prompt: its image tokens, and what frames them."""
    canvas: tuple[float, float]
    """(width, height) of the frame that absolute coordinates are spoken in."""


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """What the vision encoder makes of one image."""

    tokens: Tensor
    """[T, D] embeddings, one for each image token."""
    deepstack: tuple[Tensor, ...] = ()
    """Per DeepStack layer [T, D]; () for families without."""


class Backbone:
    """A model family.

    Args:
        image_processor: the family's own, PIL back end (no torchvision needed).
        size: bounds and shape of the resized image.
        config: the stock model's config.

    Raises:
        ConfigError: ``size`` asks for what the family cannot do.
    """

    coordinates = "thousand"
    """The frame it was trained to speak: ``absolute`` pixels of the resized image, or ``thousand`` (0..1000)."""
    processor = "Qwen2VLImageProcessorPil"
    """Name of the image processor class in transformers."""
    vision_encoder: tuple[str, ...] = ("vision_tower", "multi_modal_projector")
    """Parts of the stock model's body between pixels and language model: what ``train_vision_encoder`` trains."""

    def __init__(self, image_processor: Any, size: ImageSize, config: Any) -> None:
        self.image_processor, self.size, self.config = image_processor, size, config

    @classmethod
    def load_processor(cls, path: str, **source: Any) -> Any:
        """The family's image processor with the checkpoint's settings."""
        return getattr(transformers, cls.processor).from_pretrained(path, **source)

    @property
    def step(self) -> int:
        """A square's side is a multiple of this many pixels."""
        return 1

    def preprocess(self, image: Image, core: Any, image_token: str) -> ProcessedImage:
        """``image`` [H, W, 3] uint8 RGB, resized as configured and cut up as the family wants it.

        Args:
            image: the image.
            core: the stock model's body, for families that ask it for its layout.
            image_token: text of one image token.

        Raises:
            ConfigError: the image is too long and thin to keep its aspect ratio.
        """
        return self._preprocess(self.prepare(image), core, image_token)

    def prepare(self, image: Image) -> Image:
        """``image`` as the family's own image processor gets it: squashed to a square, or as it is.

        Raises:
            ConfigError: the image is too long and thin to keep its aspect ratio.
        """
        if self.size.resize == "square":
            side = max(1, math.isqrt(self.size.max_pixels or 0) // self.step) * self.step
            return squash(image, side)
        if max(image.shape[:2]) > 200 * min(image.shape[:2]):
            raise ConfigError(
                f"policy.image.resize=keep: an image of {image.shape[1]} x {image.shape[0]} pixels is longer than "
                "200 times its width; cut it, or take policy.image.resize=square"
            )
        return image

    def _preprocess(self, image: Image, core: Any, image_token: str) -> ProcessedImage:
        raise NotImplementedError

    def features(self, core: Any, inputs: Sequence[ImageInputs]) -> list[ImageFeatures]:
        """One pass of the vision encoder over several images, whose pixels lie on its device, all else on the CPU."""
        raise NotImplementedError

    def positions(self, core: Any, ids: Tensor, visual: Tensor, inputs: ImageInputs) -> Tensor:
        """[A, P] positions of the prompt's tokens, on the CPU like ``ids``; A = 1, or 3 axes of M-RoPE."""
        return torch.arange(len(ids), device=ids.device)[None]

    def grid(self, inputs: ImageInputs) -> tuple[int, int]:
        """Rows and columns of the image's tokens.

        Raises:
            ConfigError: they do not lie on one grid.
        """
        raise ConfigError("sft.phases[].attention_weight: the image tokens of this backbone lie on no single grid")


def backbone_of(model_type: str) -> type[Backbone]:
    """The family of transformers' ``model_type``.

    Raises:
        ConfigError: there is no file for it.
    """
    from grasp_rl.policies import backbones

    known = sorted(module.name for module in pkgutil.iter_modules(backbones.__path__) if module.name != "base")
    if model_type not in known:
        raise ConfigError(f"policy.path: holds a model of type {model_type!r}; must be one of {', '.join(known)}")
    module = importlib.import_module(f"grasp_rl.policies.backbones.{model_type}")
    result = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
    return next(family for family in result if issubclass(family, Backbone))


def squash(image: Image, side: int) -> Image:
    """``image`` as a square of ``side`` pixels, aspect ratio given up; area-averaged where it shrinks."""
    if image.shape[:2] == (side, side):
        return image
    method = cv2.INTER_AREA if min(image.shape[:2]) > side else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (side, side), interpolation=method), dtype=np.uint8)
