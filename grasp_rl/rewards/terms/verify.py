"""A term that asks a verifier whether what the boxes show is what the question asks for: no label is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from grasp_rl.config.errors import ConfigError
from grasp_rl.geometry import pixel_window
from grasp_rl.interfaces import Labels, Verifier, WeakLabels
from grasp_rl.rewards.terms.base import AnswerTerm
from grasp_rl.rewards.terms.boxes import AreaSaved
from grasp_rl.types import Answer, Box, Image, MaskPrediction


@dataclass(frozen=True, kw_only=True)
class CropVerify(AnswerTerm):
    """How sure a verifier is that the image around the predicted boxes satisfies the question (RemoteZero, 2605.04451).

    The crop is the smallest that holds all boxes and ``margin`` around them. An answer that was not read, or has no
    box, earns 0: without a label nobody knows that there is nothing to find.
    """

    verifier: Any = None
    """A :class:`~grasp_rl.interfaces.Verifier`, such as grasp_rl.policies.verifier.PolicyVerifier."""
    margin: float = 0.25
    """Of the crop on every side, as a fraction of the boxes' common longer side."""
    accuracy: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"image"})
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"margin": (0, 10)}

    def check(self, key: str) -> None:
        """See the base.

        Raises:
            ConfigError: an argument is out of range, or there is no verifier.
        """
        super().check(key)
        if not isinstance(self.verifier, Verifier):
            raise ConfigError(
                f"{key}.verifier={self.verifier!r}: must be an option with the _target_ of a verifier, such as "
                "grasp_rl.policies.verifier.PolicyVerifier"
            )

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        """Raises:

        ValueError: the labels have no image.
        """
        boxes = [item.box for item in answer.prompts if item.box is not None and all(map(math.isfinite, item.box))]
        if not answer.ok or not boxes:
            return 0.0
        if labels.image is None:
            raise ValueError("CropVerify: the labels have no image")
        score = self.verifier.verify(crop(labels.image, boxes, self.margin), labels.query)
        return min(max(float(score), 0.0), 1.0)


@dataclass(frozen=True, kw_only=True)
class CropArea(AreaSaved):
    """:class:`AreaSaved` of any answer, whatever the labels say: nothing is known of the target."""

    accuracy: ClassVar[bool] = False


def crop(image: Image, boxes: list[Box], margin: float) -> Image:
    """The part of ``image`` [H, W, 3] around ``boxes`` and ``margin`` of their longer side; at least a pixel."""
    height, width = image.shape[:2]
    x0, y0 = min(box[0] for box in boxes), min(box[1] for box in boxes)
    x1, y1 = max(box[2] for box in boxes), max(box[3] for box in boxes)
    extra = margin * max(x1 - x0, y1 - y0)
    left, top, _, _ = pixel_window((x0 - extra, y0 - extra, 0, 0))
    left, top = min(left, width - 1), min(top, height - 1)
    right, bottom = min(width, math.ceil(x1 + extra)), min(height, math.ceil(y1 + extra))
    return np.ascontiguousarray(image[top : max(bottom, top + 1), left : max(right, left + 1)])
