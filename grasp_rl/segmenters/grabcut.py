"""GrabCut as a promptable segmenter: no weights, no GPU, a few milliseconds a prompt.

OpenCV's GrabCut (Rother et al. 2004) fits two colour mixtures and cuts a graph. Boxes and points become its trimap:
outside the box is background, a ring just inside the box is probable background, the rest probable foreground, and
points are hard evidence. Its generator is global and its mixtures start from k-means with random centres, so it is
seeded per call from the image and the prompt, under a lock: equal input gives equal masks in any order and thread.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from grasp_rl.config.errors import ConfigError
from grasp_rl.types import BoolMask, Box, Image, MaskPrediction, Point, SpatialPrompt

_GENERATOR_LOCK = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class GrabCutEmbedding:
    """What decoding needs of one image."""

    image: Image
    """[H, W, 3] uint8, smoothed."""
    digest: int
    """Checksum of the original pixels; part of the seed."""


class GrabCutSegmenter:
    """Boxes, points or both to masks; see the module docstring.

    Args:
        iterations: GrabCut iterations for each prompt.
        ring: width of the probable-background ring inside the box, as a fraction of the box's shorter side.
        context: background context around the box, as a fraction of the box's longer side.
        point_radius: radius of the disc of hard evidence at a point, as a fraction of the image's longer side.
        reaches: without a box, how far from its points an object may extend, as fractions of the longer side; the cut
            with the strongest edge wins.
        smooth: standard deviation in pixels of the blur that quiets sensor noise before the colour models are fitted.
        floor: a result covering less than this fraction of the box is taken for a failed cut, and the box is filled.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(
        self,
        iterations: int = 1,
        ring: float = 0.0,
        context: float = 0.25,
        point_radius: float = 0.018,
        reaches: Sequence[float] = (0.1, 0.16, 0.25, 0.4),
        smooth: float = 0.8,
        floor: float = 0.15,
    ) -> None:
        for name, value, low, high in (
            ("iterations", iterations, 1, 20),
            ("ring", ring, 0, 0.45),
            ("context", context, 0, 4),
            ("point_radius", point_radius, 0, 0.2),
            ("smooth", smooth, 0, 10),
            ("floor", floor, 0, 1),
        ):
            if not low <= value <= high:
                raise ConfigError(f"segmenter.{name}={value!r}: must be in [{low}, {high}]")
        self.iterations, self.ring, self.context = iterations, ring, context
        self.reaches = tuple(reaches)
        self.point_radius, self.smooth, self.floor = point_radius, smooth, floor

    def encode(self, image: Image) -> GrabCutEmbedding:
        """Smooth ``image`` [H, W, 3] uint8 RGB once and take its checksum."""
        smoothed = cv2.GaussianBlur(image, (0, 0), self.smooth) if self.smooth else image
        return GrabCutEmbedding(
            image=np.ascontiguousarray(smoothed, dtype=np.uint8), digest=zlib.crc32(image.tobytes())
        )

    def decode(self, embedding: GrabCutEmbedding, prompts: Sequence[SpatialPrompt]) -> MaskPrediction:
        """Masks [N, H, W] for N prompts in original-image pixels."""
        height, width = embedding.image.shape[:2]
        masks = np.zeros((len(prompts), height, width), dtype=np.bool_)
        for mask, prompt in zip(masks, prompts, strict=True):
            mask[:] = self._segment(embedding, prompt)
        return MaskPrediction(masks=masks, iou_predictions=np.ones(len(prompts), dtype=np.float32))

    def _segment(self, embedding: GrabCutEmbedding, prompt: SpatialPrompt) -> BoolMask:
        image = embedding.image
        if prompt.box is not None:
            return self._cut_within(embedding, prompt, prompt.box)
        if not prompt.positive_points:
            return np.zeros(image.shape[:2], dtype=np.bool_)
        longer = max(image.shape[:2])
        windows = [_around(prompt.positive_points, reach * longer) for reach in self.reaches]
        cuts = [self._cut_within(embedding, prompt, window) for window in windows]
        return max(cuts, key=lambda cut: _edge_contrast(image, cut))

    def _cut_within(self, embedding: GrabCutEmbedding, prompt: SpatialPrompt, window: Box) -> BoolMask:
        """The cut with everything outside ``window`` taken for background."""
        image = embedding.image
        radius = max(1.0, self.point_radius * max(image.shape[:2]))
        inner = _clip_box(window, image.shape[:2])
        x0, y0, x1, y1 = _clip_box(_grow(inner, self.context), image.shape[:2])
        patch = image[y0:y1, x0:x1]
        trimap = np.full(patch.shape[:2], cv2.GC_BGD, dtype=np.uint8)
        bx0, by0, bx1, by1 = inner[0] - x0, inner[1] - y0, inner[2] - x0, inner[3] - y0
        trimap[by0:by1, bx0:bx1] = cv2.GC_PR_BGD
        if prompt.box is not None:
            ring = round(self.ring * min(bx1 - bx0, by1 - by0))
            trimap[by0 + ring : by1 - ring, bx0 + ring : bx1 - ring] = cv2.GC_PR_FGD
        else:
            alike = _alike(patch, prompt.positive_points, 1.5 * radius, (x0, y0))
            trimap[(trimap == cv2.GC_PR_BGD) & alike] = cv2.GC_PR_FGD
        _draw_discs(trimap, prompt.negative_points, radius, (x0, y0), cv2.GC_BGD)
        _draw_discs(trimap, prompt.positive_points, radius, (x0, y0), cv2.GC_FGD)
        evidence = trimap.copy()
        cut = self._cut(patch, trimap, _seed(prompt, window, embedding.digest))
        if prompt.positive_points:
            cut = _components_with(cut, evidence == cv2.GC_FGD)
        if cut.sum() < self.floor * (bx1 - bx0) * (by1 - by0) and prompt.box is not None:
            cut = (evidence == cv2.GC_PR_FGD) | (evidence == cv2.GC_FGD)
        result = np.zeros(image.shape[:2], dtype=np.bool_)
        result[y0:y1, x0:x1] = cut
        return result

    def _cut(self, patch: NDArray[np.uint8], trimap: NDArray[np.uint8], seed: int) -> BoolMask:
        foreground = (trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD)
        if foreground.all() or not foreground.any():
            return np.asarray(foreground, dtype=np.bool_)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        with _GENERATOR_LOCK:
            cv2.setRNGSeed(seed & 0x7FFFFFFF)
            cv2.grabCut(patch, trimap, None, *models, self.iterations, cv2.GC_INIT_WITH_MASK)
        return np.asarray((trimap == cv2.GC_FGD) | (trimap == cv2.GC_PR_FGD), dtype=np.bool_)


def _seed(prompt: SpatialPrompt, window: Box, digest: int) -> int:
    """Of what is drawn and where: the same cut again, whatever the instance is called.

    The words are those of the record when it held nothing else, so that the masks of earlier runs come again.
    """
    drawn = f"box={prompt.box!r}, point_coords={prompt.point_coords!r}, point_labels={prompt.point_labels!r}"
    return zlib.crc32(f"(SpatialPrompt({drawn}), {window!r})".encode(), digest)


def _grow(box: tuple[int, int, int, int], fraction: float) -> Box:
    margin = fraction * max(box[2] - box[0], box[3] - box[1]) + 3
    return box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin


def _around(points: Sequence[Point], reach: float) -> Box:
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    return min(xs) - reach, min(ys) - reach, max(xs) + reach, max(ys) + reach


def _clip_box(box: Box, size: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Whole pixels inside an image of ``size`` (height, width); at least one pixel."""
    x0, y0 = min(max(0, round(box[0])), size[1] - 1), min(max(0, round(box[1])), size[0] - 1)
    return x0, y0, max(x0 + 1, min(size[1], round(box[2]))), max(y0 + 1, min(size[0], round(box[3])))


def _draw_discs(
    trimap: NDArray[np.uint8], points: Sequence[Point], radius: float, origin: tuple[int, int], value: int
) -> None:
    for x, y in points:
        cv2.circle(trimap, (int(x - origin[0]), int(y - origin[1])), max(1, round(radius)), int(value), -1)


def _alike(patch: Image, points: Sequence[Point], radius: float, origin: tuple[int, int]) -> BoolMask:
    """Pixels of ``patch`` [H, W, 3] nearer in colour to the surroundings of a point than Otsu's threshold."""
    lab = cv2.cvtColor(cv2.GaussianBlur(patch, (0, 0), 1.5), cv2.COLOR_RGB2LAB).astype(np.float32)
    alike = np.zeros(patch.shape[:2], dtype=np.bool_)
    for point in points:
        disc = np.zeros(patch.shape[:2], dtype=np.uint8)
        _draw_discs(disc, (point,), radius, origin, 1)
        if disc.any():
            distance = np.linalg.norm(lab - lab[disc > 0].mean(axis=0), axis=2)
            grey = np.clip(distance * 2, 0, 255).astype(np.uint8)
            threshold, _ = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
            alike |= grey <= threshold
    return alike


def _edge_contrast(image: Image, mask: BoolMask) -> float:
    """Mean colour step over the mask's border, against the spread of colours inside; 0 for an empty mask."""
    kernel = np.ones((3, 3), dtype=np.uint8)
    grown = cv2.dilate(mask.astype(np.uint8), kernel, iterations=2).astype(bool) & ~mask
    core = mask & ~cv2.erode(mask.astype(np.uint8), kernel, iterations=2).astype(bool)
    if not core.any() or not grown.any():
        return 0.0
    inside, outside = image[core].astype(np.float32), image[grown].astype(np.float32)
    spread = float(np.sqrt((image[mask].astype(np.float32).var(axis=0) + outside.var(axis=0)).sum())) + 1.0
    return float(np.linalg.norm(inside.mean(axis=0) - outside.mean(axis=0))) / spread


def _components_with(mask: BoolMask, seeds: BoolMask) -> BoolMask:
    """The connected parts of ``mask`` [H, W] that hold a seed pixel."""
    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    seeded = np.unique(labels[seeds & mask])
    return np.isin(labels, seeded[seeded > 0])
