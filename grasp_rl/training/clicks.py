"""Clicks simulated through the segmenter: what an annotator who sees the true mask would click on, one after another.

After Sosa et al. (arXiv 2602.17799, no code public): a positive click where the segmenter's mask misses the object, a
negative one where it covers something else, placed by a distance transform, again and again. Their sequence is what a
policy is taught to say. Not published, and chosen here:

- first click: the point of the instance that is deepest in it;
- which error next: the largest 8-connected part of what is missed or covered wrongly; at equal areas what is missed;
- where in it: its deepest point, the image's edge counting as an edge of it;
- stop: the mask is good enough (``stop_iou``), an error is gone, a click would repeat one, or all clicks are made;
- clicks are made for one instance at a time; what its mask covers of other instances of the answer is no error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.rasterize import parts
from grasp_rl.geometry import interior_points, mask_iou, mask_to_box
from grasp_rl.interfaces import Segmenter
from grasp_rl.segmenters.segment import FAILURES
from grasp_rl.types import BoolMask, Point, Sample, SpatialPrompt

Segment = Callable[[SpatialPrompt], BoolMask]
"""The segmenter's mask [H, W] for a prompt, on one image."""


class ClickSimulator:
    """The clicks of each sample's instances, simulated once a sample and process.

    Args:
        segmenter: frozen and promptable.
        count: clicks an instance at most.
        stop_iou: no click follows a mask that has this IoU with its instance.
    """

    def __init__(self, segmenter: Segmenter, count: int, stop_iou: float) -> None:
        self.segmenter, self.count, self.stop_iou = segmenter, count, stop_iou
        self._known: dict[str, tuple[SpatialPrompt, ...]] = {}

    @property
    def on_gpu(self) -> bool:
        """Whether the segmenter's device cannot be used in a forked process."""
        return str(getattr(self.segmenter, "device", "cpu")).startswith("cuda")

    def __call__(self, sample: Sample) -> tuple[SpatialPrompt, ...]:
        """One prompt per instance of ``sample``, left to right: its tight box, and the clicks in their order.

        Raises:
            ConfigError: the sample has no mask, or the segmenter failed on it.
        """
        if sample.sample_id not in self._known:
            self._known[sample.sample_id] = self._simulated(sample)
        return self._known[sample.sample_id]

    def _simulated(self, sample: Sample) -> tuple[SpatialPrompt, ...]:
        where = f"sft.clicks.source=simulated: sample {sample.sample_id} of {sample.dataset}"
        if sample.target_mask is None:
            raise ConfigError(f"{where} has no mask to click on; use data with masks, or sft.clicks.source=weak_labels")
        masks = sample.instance_masks() if sample.instance_masks is not None else list(parts(sample.target_mask))
        free = sample.target_mask if sample.ignore_mask is None else sample.target_mask | sample.ignore_mask
        try:
            embedding = self.segmenter.encode(sample.image)
            segment = partial(_segmented, self.segmenter, embedding)
            made = [clicks_of(mask, segment, self.count, self.stop_iou, free=free) for mask in masks if mask.any()]
        except FAILURES as error:
            raise ConfigError(
                f"{where}: the segmenter failed ({type(error).__name__}: {error}); mend that, or take "
                "sft.clicks.source=weak_labels"
            ) from error
        return tuple(sorted(made, key=lambda item: item.box or ()))


def clicks_of(
    mask: BoolMask, segment: Segment, count: int, stop_iou: float = 1.0, *, free: BoolMask | None = None
) -> SpatialPrompt:
    """The box of one instance, and 1 to ``count`` clicks on it in their order.

    Args:
        mask: [H, W] of the instance, not empty.
        segment: what the clicks so far give.
        count: >= 1.
        stop_iou: see :class:`ClickSimulator`.
        free: [H, W] pixels that may be covered without an error, beside the instance's own.
    """
    free = mask if free is None else free | mask
    points, labels = [_deepest(mask)], [1]
    while True:
        prompt = SpatialPrompt(box=mask_to_box(mask), point_coords=tuple(points), point_labels=tuple(labels))
        if len(points) == count:
            return prompt
        predicted = segment(SpatialPrompt(point_coords=prompt.point_coords, point_labels=prompt.point_labels))
        missed, wrong = _largest(mask & ~predicted), _largest(predicted & ~free)
        label = int(missed.sum() >= wrong.sum())
        error = missed if label else wrong
        if not error.any() or mask_iou(mask, predicted & (mask | ~free)) >= stop_iou:
            return prompt
        point = _deepest(error)
        if point in points:
            return prompt
        points.append(point)
        labels.append(label)


def _segmented(segmenter: Segmenter, embedding: Any, prompt: SpatialPrompt) -> BoolMask:
    return segmenter.decode(embedding, [prompt]).union


def _deepest(mask: BoolMask) -> Point:
    """The centre of the pixel that is farthest from the outside of ``mask`` [H, W], which is not empty."""
    return interior_points(mask, 1)[0]


def _largest(mask: BoolMask) -> BoolMask:
    """The largest 8-connected part of ``mask`` [H, W]; of an empty one itself."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count < 2:
        return mask
    areas: Sequence[int] = stats[1:, cv2.CC_STAT_AREA]
    return np.asarray(labels == 1 + int(np.argmax(areas)), dtype=np.bool_)
