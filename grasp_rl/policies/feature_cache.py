"""What a frozen vision encoder made of images, kept in host memory from epoch to epoch."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import torch

from grasp_rl.policies.backbones.base import ImageFeatures
from grasp_rl.policies.transfer import to_device
from grasp_rl.types import Image


class FeatureCache:
    """The most recently used features, by the image's bytes. Valid while the vision encoder's weights and sizes stay.

    Args:
        limit_gib: of host memory; 0 keeps nothing.
    """

    def __init__(self, limit_gib: float) -> None:
        self.limit = int(limit_gib * 2**30)
        self.held = 0
        """Bytes."""
        self._features: OrderedDict[str, ImageFeatures] = OrderedDict()

    def key(self, image: Image) -> str:
        """What stands for ``image``; empty where nothing is kept."""
        if not self.limit:
            return ""
        return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()

    def get(self, key: str, device: torch.device) -> ImageFeatures | None:
        """The features of an image on ``device``, or None."""
        if key not in self._features:
            return None
        self._features.move_to_end(key)
        return _moved(self._features[key], device)

    def put(self, key: str, features: ImageFeatures) -> None:
        """Keep a copy, at the expense of what was not used for longest."""
        if not key or key in self._features or _size(features) > self.limit:
            return
        self._features[key] = _moved(features, torch.device("cpu"))
        self.held += _size(features)
        while self.held > self.limit:
            self.held -= _size(self._features.popitem(last=False)[1])

    def clear(self) -> None:
        """Forget all: the vision encoder has other weights."""
        self._features.clear()
        self.held = 0


def _size(features: ImageFeatures) -> int:
    return sum(tensor.nbytes for tensor in (features.tokens, *features.deepstack))


def _moved(features: ImageFeatures, device: torch.device) -> ImageFeatures:
    return ImageFeatures(
        tokens=to_device(features.tokens, device),
        deepstack=tuple(to_device(layer, device) for layer in features.deepstack),
    )
