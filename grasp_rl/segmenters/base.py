"""What SAM, SAM 2 and SAM 3's tracker share: one encoder pass an image, prompts of many answers in one decoder call.

Prompts come and masks go at original resolution; a family scales prompts once on the way in and logits once on the way
out. Masks stay on the model's device. No torchvision: preprocessing is a few lines of torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grasp_rl.config.errors import ConfigError
from grasp_rl.segmenters.embedding_cache import Features, cache_of
from grasp_rl.segmenters.postprocess import tidy
from grasp_rl.segmenters.weights import Weights, fingerprint, load
from grasp_rl.types import Image, MaskPrediction, SpatialPrompt
from grasp_rl.utils.out_of_memory import halved, is_out_of_memory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """One encoded image."""

    features: Features
    """The image embeddings, coarsest last, on the model's device."""
    size: tuple[int, int]
    """(height, width) of the original image."""


class PromptableSegmenter:
    """A frozen member of the SAM family.

    Args:
        path: a hub id, a local folder of the port, one of Meta's original ``.pt`` / ``.pth`` files, ``packaged:NAME``
            for small weights that come with the package, or ``random:NAME`` for a small model to be trained.
        revision: hub branch, tag or commit; pin a commit for a reproducible result.
        architecture: published architecture of an original file; see the family's ``ARCHITECTURES``.
        allow_pickle_weights: read original files, which are pickles (``weights_only``: no code in them is run).
        mask_threshold: logit above which a pixel belongs to the mask.
        multimask: take the best of three masks by predicted IoU, as Seg-Zero does for evaluation.
        fill_holes: holes of at most this many pixels (original resolution) inside a mask are filled.
        min_region: connected regions of a mask of fewer pixels are dropped, the largest one always stays.
        decode_chunk: prompts decoded together at most; halved, once and for all, when memory runs out.
        cache: none | ram | disk, where image embeddings of images seen before are kept.
        cache_mb: mebibytes of embeddings kept; the least recently used go first.
        cache_dir: folder of the disk cache.
        dtype: float32 | bfloat16 | float16, of the encoder and decoder.
        device: auto | cpu | cuda

    Raises:
        ConfigError: there is no such model here, its weights do not fit, or an argument is out of range.
    """

    MODEL = ""
    """Name of the model class in transformers."""
    ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {}
    """Published architectures by name: what the port's config class takes."""
    MEAN: tuple[float, float, float] = (0.485, 0.456, 0.406)
    DEVIATION: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __init__(
        self,
        path: str,
        revision: str | None = None,
        architecture: str | None = None,
        allow_pickle_weights: bool = False,
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
        for key, value, choices in (("device", device, ("auto", "cpu", "cuda")), ("dtype", dtype, tuple(DTYPES))):
            if value not in choices:
                raise ConfigError(f"segmenter.{key}={value!r}: must be one of {', '.join(choices)}")
        for key, number, least in (("fill_holes", fill_holes, 0), ("min_region", min_region, 0),
                                   ("decode_chunk", decode_chunk, 1), ("cache_mb", cache_mb, 1)):  # fmt: skip
            if number < least:
                raise ConfigError(f"segmenter.{key}={number!r}: must be >= {least}")
        self.cache = cache_of(cache, cache_mb, cache_dir)
        weights = Weights(path=path, revision=revision, architecture=architecture, allow_pickle=allow_pickle_weights)
        model, self.revision = self._build(weights)
        chosen = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
        self.dtype, self.device = DTYPES[dtype], torch.device(chosen)
        self.model = model.to(device=self.device, dtype=self.dtype).eval().requires_grad_(False)
        self.mask_threshold, self.multimask = mask_threshold, multimask
        self.fill_holes, self.min_region, self.decode_chunk = fill_holes, min_region, decode_chunk
        self.identity = fingerprint(self.model) if self.cache.persistent else ""

    def _build(self, weights: Weights) -> tuple[Any, str | None]:
        """The model and the hub commit that it came from, if any."""
        return load(weights, self.MODEL, self.ARCHITECTURES, self.rename)

    @staticmethod
    def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Meta's original keys in the port's words."""
        raise NotImplementedError

    @property
    def side(self) -> int:
        """Side in pixels of the square that the encoder sees."""
        return int(self.model.config.prompt_encoder_config.image_size)

    @torch.inference_mode()
    def encode(self, image: Image) -> Embedding:
        """One pass of the image encoder over ``image`` [H, W, 3] uint8 RGB, or none where the cache knows it."""
        size = (image.shape[0], image.shape[1])
        key = self.cache.key_of(image, self.identity, str(self.dtype))
        result = self.cache.get(key)
        if result is None:
            result = self._features(image)
            self.cache.put(key, result)
        return Embedding(features=tuple(f.to(self.device) for f in result), size=size)

    def _features(self, image: Image) -> Features:
        embeddings = self.model.get_image_embeddings(self.prepare(image).to(self.dtype))
        return tuple(embeddings) if isinstance(embeddings, list | tuple) else (embeddings,)

    def prepare(self, image: Image) -> Tensor:
        """What the encoder sees of ``image`` [H, W, 3] uint8 RGB: [1, 3, S, S] float32, normalised, padded with 0."""
        pixels = torch.from_numpy(np.ascontiguousarray(image)).to(self.device).permute(2, 0, 1)[None].float() / 255
        resized = torch.nn.functional.interpolate(
            pixels, self.seen_size(image.shape[:2]), mode="bilinear", antialias=True, align_corners=False
        )
        mean, deviation = (resized.new_tensor(v)[:, None, None] for v in (self.MEAN, self.DEVIATION))
        normal = (resized - mean) / deviation
        return torch.nn.functional.pad(normal, (0, self.side - normal.shape[3], 0, self.side - normal.shape[2]))

    def embed(self, pixels: Tensor) -> Features:
        """Image embeddings of ``pixels`` [B, 3, S, S], coarsest last, with gradients; what training calls.

        Raises:
            ConfigError: this family cannot be trained here.
        """
        raise ConfigError(f"segmenter: {type(self).__name__} cannot be trained; take one of SAM or SAM 2")

    def seen_size(self, size: Sequence[int]) -> tuple[int, int]:
        """(height, width) that an image of ``size`` (height, width) fills of the encoder's square: all of it."""
        return self.side, self.side

    @torch.inference_mode()
    def decode(self, embedding: Embedding, prompts: Sequence[SpatialPrompt]) -> MaskPrediction:
        """Masks [N, H, W] for N prompts in original-image pixels, on the model's device.

        Prompts of one signature (box or not, number of points) go to the decoder together, ``decode_chunk`` at a time;
        a prompt scheme has one. None is padded: the ports' padding label still adds a token that is attended.
        Coordinates outside the image are clipped to it. A prompt without box and foreground point has an empty mask.
        """
        height, width = embedding.size
        masks = torch.zeros(len(prompts), height, width, dtype=torch.bool, device=self.device)
        quality = np.zeros(len(prompts), dtype=np.float32)
        buckets: dict[tuple[bool, int], list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            if prompt.box is not None or prompt.positive_points:
                buckets[prompt.box is not None, len(prompt.point_coords)].append(index)
        for indices in buckets.values():
            for chunk, logits, scores in self._in_chunks(indices, prompts, embedding):
                quality[chunk] = scores.float().clamp(0, 1).cpu().numpy()
                for index, low in zip(chunk, logits, strict=True):  # an image-sized block at a time stays in cache
                    masks[index] = self.enlarge(low.float()[None, None], embedding.size)[0, 0] > self.mask_threshold
        if self.fill_holes or self.min_region:
            masks = tidy(masks, fill_holes=self.fill_holes, min_region=self.min_region)
        return MaskPrediction(masks=masks, iou_predictions=quality)

    def _in_chunks(
        self, indices: list[int], prompts: Sequence[SpatialPrompt], embedding: Embedding
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """(indices, logits, predicted IoU) of so many prompts at a time as memory allows."""
        done = 0
        while done < len(indices):
            chunk = indices[done : done + self.decode_chunk]
            try:
                logits, scores = self.decode_prompts([prompts[i] for i in chunk], embedding)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                remedy = "choose a smaller segmenter, or another segmenter.device"
                self.decode_chunk = halved(
                    error, len(chunk), unit="prompts", key="segmenter.decode_chunk", remedy=remedy
                )
                continue
            yield chunk, logits, scores
            done += len(chunk)

    def enlarge(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits [N, 1, h, w] at ``size`` (height, width) of the original image."""
        return torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)

    def decode_prompts(self, prompts: Sequence[SpatialPrompt], embedding: Embedding) -> tuple[Tensor, Tensor]:
        """Low-resolution logits [N, h, w] and predicted IoU [N] of prompts of one signature."""
        inputs = self.inputs_of(prompts, embedding.size)
        output = self.model(image_embeddings=self.joined(embedding.features), multimask_output=self.multimask, **inputs)
        logits, scores = output.pred_masks[0], output.iou_scores[0]  # (N, K, h, w), (N, K)
        best = scores.argmax(1)
        row = torch.arange(len(prompts), device=self.device)
        return logits[row, best], scores[row, best]

    def inputs_of(self, prompts: Sequence[SpatialPrompt], size: tuple[int, int]) -> dict[str, Tensor]:
        """The stock model's keywords for prompts of one signature about an image of ``size`` (height, width)."""
        height, width = size
        seen = self.seen_size(size)
        scale = torch.tensor([seen[1] / width, seen[0] / height])
        limit = torch.tensor([width, height], dtype=torch.float32)
        inputs: dict[str, Tensor] = {}
        if prompts[0].point_coords:
            points = torch.tensor([p.point_coords for p in prompts]).clamp(min=0).minimum(limit) * scale
            labels = torch.tensor([p.point_labels for p in prompts], dtype=torch.int)
            inputs |= {"input_points": points[None].to(self.device), "input_labels": labels[None].to(self.device)}
        if prompts[0].box is not None:
            boxes = torch.tensor([p.box for p in prompts]).reshape(-1, 2, 2).clamp(min=0).minimum(limit) * scale
            inputs["input_boxes"] = boxes.reshape(1, -1, 4).to(self.device)
        if self.dtype != torch.float32:
            inputs = {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        return inputs

    def joined(self, features: Features) -> Any:
        """The embeddings as the stock model takes them."""
        return list(features)
