"""Procedurally drawn overhead scenes: what is on the ground, with exact masks. Pure NumPy and OpenCV.

A scene is a textured ground with a handful of objects on it. The contrast is low, surfaces are noisy and objects of
the same class may touch, so that a segmenter driven by a sloppy prompt pays for it: with clean, high-contrast
drawings GrabCut heals any loose box and nothing would be left to learn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from grasp_rl.data.synthetic.shapes import Rng, canvas, noise, polygon, rectangle
from grasp_rl.types import BoolMask, Image

Colour = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Style:
    """The look of a domain; the out-of-domain style shares no number with the training one."""

    grounds: tuple[Colour, ...]
    palette: dict[str, Colour]
    contrast: tuple[float, float]
    """Range of the share of the palette colour in an object; the rest is the ground's mean colour."""
    grain: tuple[float, float]
    """Range of the standard deviation of fine noise, in grey levels."""
    patches: float
    """Amplitude of coarse brightness patches, in grey levels."""
    scale: tuple[float, float]
    """Range of the factor on object sizes."""
    tint: float
    """Standard deviation of the colour of single objects around the palette, in grey levels."""


TRAIN_STYLE = Style(
    grounds=((96, 112, 78), (128, 118, 92), (110, 104, 96)),
    palette={
        "roof": (172, 84, 70),
        "water": (52, 92, 142),
        "tank": (208, 208, 204),
        "court": (64, 142, 116),
        "field": (176, 158, 78),
        "lot": (92, 92, 100),
        "vessel": (226, 222, 232),
        "vehicle": (196, 60, 136),
        "road": (150, 146, 150),
        "wood": (42, 72, 40),
    },
    contrast=(0.45, 0.85),
    grain=(7.0, 13.0),
    patches=9.0,
    scale=(0.85, 1.15),
    tint=9.0,
)

OOD_STYLE = Style(
    grounds=((150, 126, 96), (84, 96, 100), (134, 138, 118)),
    palette={
        "roof": (146, 104, 88),
        "water": (66, 112, 122),
        "tank": (228, 214, 190),
        "court": (92, 132, 168),
        "field": (158, 170, 96),
        "lot": (72, 74, 78),
        "vessel": (240, 236, 214),
        "vehicle": (168, 48, 84),
        "road": (172, 164, 150),
        "wood": (58, 84, 66),
    },
    contrast=(0.42, 0.75),
    grain=(10.0, 17.0),
    patches=15.0,
    scale=(0.7, 1.35),
    tint=14.0,
)


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One thing on the ground."""

    category: str
    mask: BoolMask
    """[size, size] bool, visible pixels."""
    centre: tuple[float, float]
    """(x, y) in pixels."""
    on: str = ""
    """In hard scenes the category of what it stands on; "" for the ground, ``shore`` for a vessel that lies half on the
    water and half on the ground."""

    @property
    def area(self) -> int:
        return int(self.mask.sum())


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An image and all that is on it."""

    image: Image
    """[size, size, 3] uint8 RGB."""
    objects: tuple[SceneObject, ...]
    pieces: tuple[BoolMask, ...] = ()
    """[size, size] bool each: pieces of the textures of objects, where they were asked for."""


def _box_shape(rng: Rng, size: int, cx: float, cy: float, w: float, h: float) -> BoolMask:
    return polygon(size, rectangle((cx, cy), w, h, rng.uniform(-0.2, 0.2)))


def _blob_shape(rng: Rng, size: int, cx: float, cy: float, w: float, h: float) -> BoolMask:
    angles = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    radii = 1 + 0.12 * rng.standard_normal(14)
    radii = np.clip((radii + np.roll(radii, 1)) / 2, 0.7, 1.25)
    return polygon(size, np.stack([cx + w / 2 * radii * np.cos(angles), cy + h / 2 * radii * np.sin(angles)], 1))


def _disc_shape(rng: Rng, size: int, cx: float, cy: float, w: float, h: float) -> BoolMask:
    drawn = canvas(size)
    cv2.circle(drawn, (round(cx * 16), round(cy * 16)), round(min(w, h) * 8), 1, -1, shift=4)
    return drawn.astype(bool)


def _hull_shape(rng: Rng, size: int, cx: float, cy: float, w: float, h: float) -> BoolMask:
    outline = np.array([[-0.5, -0.34], [0.2, -0.5], [0.5, 0.0], [0.2, 0.5], [-0.5, 0.34]]) * (w, h)
    return polygon(size, outline * rng.choice([-1, 1]) + (cx, cy))


@dataclass(frozen=True, kw_only=True)
class _Kind:
    shape: Callable[[Rng, int, float, float, float, float], BoolMask]
    width: tuple[int, int]
    height: tuple[int, int]
    herd: float
    """Chance that the category comes as several touching or near instances."""


KINDS: dict[str, _Kind] = {
    "roof": _Kind(shape=_box_shape, width=(20, 38), height=(20, 38), herd=0.55),
    "water": _Kind(shape=_blob_shape, width=(30, 58), height=(26, 50), herd=0.1),
    "tank": _Kind(shape=_disc_shape, width=(18, 30), height=(18, 30), herd=0.6),
    "court": _Kind(shape=_box_shape, width=(24, 40), height=(18, 28), herd=0.4),
    "field": _Kind(shape=_box_shape, width=(34, 58), height=(30, 54), herd=0.25),
    "lot": _Kind(shape=_box_shape, width=(28, 48), height=(24, 42), herd=0.15),
    "vessel": _Kind(shape=_hull_shape, width=(22, 34), height=(11, 16), herd=0.5),
    "vehicle": _Kind(shape=_box_shape, width=(15, 20), height=(9, 12), herd=0.55),
    "wood": _Kind(shape=_blob_shape, width=(26, 50), height=(26, 50), herd=0.2),
}


def _surface(rng: Rng, size: int, colour: NDArray[np.float64], grain: float, patches: float) -> NDArray[np.float32]:
    light = patches * noise(rng, size, 6) + 0.8 * grain * noise(rng, size, size // 4)
    light = light + 0.5 * grain * rng.standard_normal((size, size)).astype(np.float32)
    return np.asarray(colour[None, None] + light[..., None], dtype=np.float32)


def _detail(rng: Rng, category: str, paint: NDArray[np.float32], box: tuple[int, int, int, int]) -> None:
    """Marks that belong to a category: ridges, furrows, court lines, bays. Faint, as seen from above."""
    x0, y0, x1, y1 = box
    w, h = x1 - x0, y1 - y0
    if category == "roof":
        paint[y0 : y0 + h // 2, x0:x1] += 9
    elif category == "field":
        paint[:, x0 + int(rng.integers(5)) : x1 : 5] -= 9
    elif category == "court":
        cv2.rectangle(paint, (x0 + w // 6, y0 + h // 6), (x1 - w // 6, y1 - h // 6), (200, 205, 200), 1)
        cv2.line(paint, (x0 + w // 2, y0 + h // 6), (x0 + w // 2, y1 - h // 6), (200, 205, 200), 1)
    elif category == "lot":
        paint[y0 + 3 : y1 - 3 : 8, x0 + 4 : x1 - 4] += 26
    elif category == "tank":
        cv2.circle(paint, (x0 + w // 2, y0 + h // 2), max(2, w // 3), (178, 178, 176), 1)


def _place(
    rng: Rng, size: int, kind: _Kind, scale: float, taken: BoolMask, near: SceneObject | None
) -> tuple[BoolMask, tuple[float, float]] | None:
    for _ in range(12):
        w = rng.uniform(*kind.width) * scale
        h = w if kind.shape is _disc_shape else rng.uniform(*kind.height) * scale
        if near is None:
            cx, cy = rng.uniform(w / 2 + 2, size - w / 2 - 2), rng.uniform(h / 2 + 2, size - h / 2 - 2)
        else:
            side = int(rng.integers(4))
            gap = rng.uniform(0.0, 3.0)
            rows, columns = np.flatnonzero(near.mask.any(1)), np.flatnonzero(near.mask.any(0))
            cx, cy = near.centre
            if side % 2:
                cx = columns[-1] + 1 + gap + w / 2 if side == 1 else columns[0] - gap - w / 2
            else:
                cy = rows[-1] + 1 + gap + h / 2 if side == 2 else rows[0] - gap - h / 2
        if not (w / 2 < cx < size - w / 2 and h / 2 < cy < size - h / 2):
            continue
        mask = kind.shape(rng, size, cx, cy, w, h)
        if mask.any() and not (mask & taken).any():
            return mask, (cx, cy)
    return None


def _road(rng: Rng, size: int, scale: float) -> SceneObject:
    drawn = canvas(size)
    offset, slope = rng.uniform(0.2, 0.8) * size, rng.uniform(-0.25, 0.25) * size
    ends = [(-8, round(offset - slope)), (size + 8, round(offset + slope))]
    if rng.random() < 0.5:
        ends = [(y, x) for x, y in ends]
    cv2.line(drawn, ends[0], ends[1], 1, round(rng.uniform(10, 15) * scale))
    return SceneObject(category="road", mask=drawn.astype(bool), centre=(size / 2, offset))


def draw_scene(rng: Rng, style: Style, size: int = 112) -> Scene:
    """One scene of ``size`` x ``size`` pixels with two to four categories, up to three instances each."""
    scale = rng.uniform(*style.scale) * size / 112
    grain = rng.uniform(*style.grain)
    contrast = rng.uniform(*style.contrast)
    ground = np.array(style.grounds[int(rng.integers(len(style.grounds)))]) + rng.normal(0, 8, 3)
    image = _surface(rng, size, ground, grain, style.patches)
    objects: list[SceneObject] = []
    taken = np.zeros((size, size), dtype=bool)
    if rng.random() < 0.25:
        objects.append(_road(rng, size, scale))
        taken |= objects[0].mask
    categories = rng.choice(list(KINDS), int(rng.integers(2, 5)), replace=False)
    for category in categories.tolist():
        kind = KINDS[category]
        count = int(rng.integers(2, 4)) if rng.random() < kind.herd else 1
        near: SceneObject | None = None
        for _ in range(count):
            placed = _place(rng, size, kind, scale, taken, near)
            if placed is None:
                break
            near = SceneObject(category=category, mask=placed[0], centre=placed[1])
            objects.append(near)
            taken |= near.mask
    for item in objects:
        colour = ground + contrast * (np.array(style.palette[item.category]) - ground) + rng.normal(0, style.tint, 3)
        paint = _surface(rng, size, colour, grain, style.patches * 0.6)
        rows, columns = np.flatnonzero(item.mask.any(1)), np.flatnonzero(item.mask.any(0))
        _detail(rng, item.category, paint, (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        soft = cv2.GaussianBlur(item.mask.astype(np.float32), (0, 0), 0.7)[..., None]
        image = image * (1 - soft) + paint * soft
    return Scene(image=np.clip(image, 0, 255).astype(np.uint8), objects=tuple(objects))
