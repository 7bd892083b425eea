"""Segmenters around a segmenter: two routes merged, another scale, masks cut to their boxes.

Each is a :class:`~grasp_rl.interfaces.Segmenter` itself and gives masks as NumPy arrays; what the inner one raises goes
through. From the inside out: best of three, routes, scale, clipping.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import InferenceConfig, RoutesConfig, ScaleConfig
from grasp_rl.geometry import clipped, mask_iou
from grasp_rl.interfaces import Segmenter
from grasp_rl.types import BoolMask, Image, MaskPrediction, SpatialPrompt

Masks = NDArray[np.bool_]
"""[N, H, W]."""


def segmenter_of(options: InferenceConfig, segmenter: Segmenter) -> Segmenter:
    """``segmenter`` as ``options`` want it; itself where they want nothing of it.

    Raises:
        ConfigError: it gives one mask a prompt and ``options`` want the best of three.
    """
    result = segmenter
    if options.multimask:
        result = best_of_three(result)
    if options.routes.merge != "none":
        result = RoutedSegmenter(inner=result, options=options.routes)
    if options.scale.mode != "native":
        result = ScaledSegmenter(inner=result, options=options.scale)
    if options.clip_to_box:
        result = ClippedSegmenter(inner=result)
    return result


def best_of_three(segmenter: Segmenter) -> Segmenter:
    """``segmenter``, its weights shared, taking the best of three masks by predicted IoU.

    Raises:
        ConfigError: it has no such option.
    """
    if not hasattr(segmenter, "multimask"):
        raise ConfigError(
            f"inference.multimask=true: {type(segmenter).__name__} gives one mask a prompt; take a segmenter of the "
            "SAM family, or inference.multimask=false"
        )
    result: Any = copy.copy(segmenter)
    result.multimask = True
    return result  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class RoutedSegmenter:
    """Dual-route prompting: the mask of an instance's points alone merged with that of its box.

    GeoSeg (arXiv 2603.03983) prompts by keypoints and by the text's meaning and merges by a consensus rule that is not
    published; here the second route is the box, and the rules are ours. An instance without points or without a box has
    one route.
    """

    inner: Segmenter
    options: RoutesConfig

    def encode(self, image: Image) -> Any:
        return self.inner.encode(image)

    def decode(self, embedding: Any, prompts: Sequence[SpatialPrompt]) -> MaskPrediction:
        routes = [self._routes(prompt) for prompt in prompts]
        prediction = self.inner.decode(embedding, [route for pair in routes for route in pair])
        masks, scores = on_host(prediction.masks), prediction.iou_predictions
        merged, quality, place = [], [], 0
        for pair in routes:
            rows = slice(place, place + len(pair))
            mask, score = merge(masks[rows], scores[rows], self.options)
            merged.append(mask)
            quality.append(score)
            place += len(pair)
        stacked = np.stack(merged) if merged else masks
        return MaskPrediction(masks=stacked, iou_predictions=np.array(quality, dtype=np.float32))

    def _routes(self, prompt: SpatialPrompt) -> list[SpatialPrompt]:
        """The points' prompt, then the box's."""
        if prompt.box is None or not prompt.positive_points:
            return [prompt]
        by_box = prompt if self.options.box_route == "box_points" else SpatialPrompt(box=prompt.box)
        return [replace(prompt, box=None), by_box]


def merge(masks: Masks, scores: NDArray[np.float32], options: RoutesConfig) -> tuple[BoolMask, float]:
    """One mask [H, W] and predicted IoU of the routes' masks [1 or 2, H, W], the box's last; see ``RoutesConfig``."""
    if len(masks) == 1:
        return masks[0], float(scores[0])
    points, box = masks
    if options.merge == "or":
        return points | box, float(scores.mean())
    if options.merge == "and" or mask_iou(points, box) >= options.min_iou:
        return points & box, float(scores.mean())
    chosen = 0 if scores[0] > scores[1] else 1
    return masks[chosen], float(scores[chosen])


@dataclass(frozen=True, kw_only=True)
class View:
    """The part of an image that the segmenter sees for one prompt, and how large."""

    region: tuple[int, int, int, int]
    """(x0, y0, x1, y1) in whole pixels of the original image."""
    size: tuple[int, int]
    """(height, width) that it is resized to."""

    @property
    def scale(self) -> tuple[float, float]:
        """Multiply (x, y) offsets from the region's corner by this to get pixels of the view."""
        x0, y0, x1, y1 = self.region
        return self.size[1] / (x1 - x0), self.size[0] / (y1 - y0)


def view_of(prompt: SpatialPrompt, size: tuple[int, int], options: ScaleConfig) -> View:
    """What is seen for ``prompt`` of an image of ``size`` (height, width).

    A crop holds the box with its margin and all foreground points; without a box it is the whole image.
    """
    height, width = size
    if options.mode == "side":
        scale = options.side / max(size)
        resized = max(1, round(height * scale)), max(1, round(width * scale))
        return View(region=(0, 0, width, height), size=resized)
    if options.mode == "native" or prompt.box is None:
        return View(region=(0, 0, width, height), size=size)
    x0, y0, x1, y1 = prompt.box
    margin_x, margin_y = options.margin * (x1 - x0), options.margin * (y1 - y0)
    xs, ys = [x for x, _ in prompt.positive_points], [y for _, y in prompt.positive_points]
    left, top = min([x0 - margin_x, *xs]), min([y0 - margin_y, *ys])
    right, bottom = max([x1 + margin_x, *xs]), max([y1 + margin_y, *ys])
    left, top = min(max(0, int(np.floor(left))), width - 1), min(max(0, int(np.floor(top))), height - 1)
    right, bottom = max(left + 1, min(width, int(np.ceil(right)))), max(top + 1, min(height, int(np.ceil(bottom))))
    return View(region=(left, top, right, bottom), size=(bottom - top, right - left))


@dataclass(frozen=True, kw_only=True)
class ScaledEmbedding:
    """An image and the inner segmenter's embeddings of its views, each encoded when it is first needed."""

    image: Image
    views: dict[View, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ScaledSegmenter:
    """The segmenter sees the image resized, or a crop around each box; masks come back at original resolution.

    A resized mask is interpolated and cut at one half.
    """

    inner: Segmenter
    options: ScaleConfig

    def encode(self, image: Image) -> ScaledEmbedding:
        return ScaledEmbedding(image=image)

    def decode(self, embedding: ScaledEmbedding, prompts: Sequence[SpatialPrompt]) -> MaskPrediction:
        size = (embedding.image.shape[0], embedding.image.shape[1])
        masks = np.zeros((len(prompts), *size), dtype=np.bool_)
        scores = np.zeros(len(prompts), dtype=np.float32)
        by_view: dict[View, list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            by_view[view_of(prompt, size, self.options)].append(index)
        for view, indices in by_view.items():
            if view not in embedding.views:
                embedding.views[view] = self.inner.encode(seen(embedding.image, view))
            prediction = self.inner.decode(embedding.views[view], [moved(prompts[index], view) for index in indices])
            scores[indices] = prediction.iou_predictions
            x0, y0, x1, y1 = view.region
            for index, mask in zip(indices, on_host(prediction.masks), strict=True):
                masks[index, y0:y1, x0:x1] = _back(mask, view)
        return MaskPrediction(masks=masks, iou_predictions=scores)


def seen(image: Image, view: View) -> Image:
    """The part of ``image`` [H, W, 3] uint8 that ``view`` shows, at its size."""
    x0, y0, x1, y1 = view.region
    part = np.ascontiguousarray(image[y0:y1, x0:x1])
    if part.shape[:2] == view.size:
        return part
    how = cv2.INTER_AREA if view.size[0] < y1 - y0 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(part, view.size[::-1], interpolation=how), dtype=np.uint8)


def moved(prompt: SpatialPrompt, view: View) -> SpatialPrompt:
    """``prompt`` in pixels of ``view``; background points outside it are left out."""
    (x0, y0, x1, y1), (across, down) = view.region, view.scale
    kept = [
        (((x - x0) * across, (y - y0) * down), label)
        for (x, y), label in zip(prompt.point_coords, prompt.point_labels, strict=True)
        if label == 1 or (x0 <= x < x1 and y0 <= y < y1)
    ]
    box = prompt.box
    if box is not None:
        box = ((box[0] - x0) * across, (box[1] - y0) * down, (box[2] - x0) * across, (box[3] - y0) * down)
    return SpatialPrompt(
        box=box, point_coords=tuple(point for point, _ in kept), point_labels=tuple(label for _, label in kept)
    )


def _back(mask: BoolMask, view: View) -> BoolMask:
    """A mask of the view at the region's own size."""
    x0, y0, x1, y1 = view.region
    if mask.shape == (y1 - y0, x1 - x0):
        return mask
    how = cv2.INTER_AREA if view.size[0] > y1 - y0 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(mask.astype(np.float32), (x1 - x0, y1 - y0), interpolation=how) > 0.5, dtype=np.bool_)


@dataclass(frozen=True, kw_only=True)
class ClippedSegmenter:
    """Each mask cut to its own box, whose edges are cut to whole pixels, as Geo-R1 scores it (arXiv 2509.21976)."""

    inner: Segmenter

    def encode(self, image: Image) -> Any:
        return self.inner.encode(image)

    def decode(self, embedding: Any, prompts: Sequence[SpatialPrompt]) -> MaskPrediction:
        prediction = self.inner.decode(embedding, prompts)
        masks = on_host(prediction.masks)
        cut = [clipped(mask, prompt.box) for mask, prompt in zip(masks, prompts, strict=True)]
        return MaskPrediction(masks=np.stack(cut) if cut else masks, iou_predictions=prediction.iou_predictions)


def on_host(masks: Any) -> Masks:
    """``masks`` [N, H, W] as an array in host memory."""
    return np.asarray(masks if isinstance(masks, np.ndarray) else masks.cpu().numpy(), dtype=np.bool_)
