"""Hard drawn scenes: texture inside things, thin things, touching ones, cast shadows and clutter.

What a box or a point means is less plain than in the easy scenes: a bold texture may pass for a border, a thin thing
fills little of its box, a touching neighbour looks the same, and a shadow or a patch of the same colour is no part
of the object. The scene's geometry scales with the image, the sensor's noise does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from grasp_rl.data.rasterize import parts
from grasp_rl.data.synthetic import textures as t
from grasp_rl.data.synthetic.layout import Thing, lay_out
from grasp_rl.data.synthetic.scenes import OOD_STYLE, TRAIN_STYLE, Scene, SceneObject, Style
from grasp_rl.data.synthetic.shapes import Rng, noise
from grasp_rl.data.synthetic.themes import HEIGHTS, PART_OF
from grasp_rl.types import BoolMask

Picture = NDArray[np.float32]
"""[h, w, 3] RGB in grey levels, not cut to 0..255."""

PIECE = (0.1, 0.7)
"""Shares of its object that a piece of texture has."""


@dataclass(frozen=True, kw_only=True)
class HardStyle:
    """The look of a domain of hard scenes."""

    base: Style
    """Grounds, palette, contrast, grain and patches."""
    palette: dict[str, tuple[float, float, float]]
    """Of the categories that the base has none for, and for those that need another."""
    patterns: Mapping[str, tuple[t.Pattern, ...]]
    """Of each category, one of them for each object."""
    grounds: tuple[t.Pattern, ...]
    amplitude: tuple[float, float]
    """Range of the brightness of patterns, in grey levels."""
    period: tuple[float, float]
    """Range of what repeats, in units (a hundred-and-twelfth of the image's side)."""
    scale: tuple[float, float]
    """Range of the factor on sizes."""
    shadow: tuple[float, float]
    """Range of the share of the light that a shadow takes."""


_BOTH: dict[str, tuple[t.Pattern, ...]] = {
    "path": (t.grain,), "fence": (t.planks,), "jetty": (t.planks,), "marking": (t.plain,)
}  # fmt: skip

TRAIN_HARD = HardStyle(
    base=TRAIN_STYLE,
    palette={
        "path": (196, 178, 140), "fence": (222, 214, 200), "jetty": (160, 124, 88), "runway": (120, 120, 128),
        "marking": (236, 236, 230), "wood": (48, 82, 42),
    },
    patterns={
        "roof": (t.gable, t.hip), "water": (t.ripples,), "tank": (t.lid,), "court": (t.pitch,), "field": (t.furrows,),
        "lot": (t.bays,), "vessel": (t.deck,), "vehicle": (t.cabin,), "road": (t.lane,), "wood": (t.crowns,),
        "runway": (t.strip,), **_BOTH,
    },
    grounds=(t.tufts, t.mown),
    amplitude=(10.0, 20.0),
    period=(2.6, 4.2),
    scale=(0.7, 1.05),
    shadow=(0.3, 0.5),
)  # fmt: skip

OOD_HARD = HardStyle(
    base=OOD_STYLE,
    palette={
        "path": (206, 196, 184), "fence": (90, 70, 58), "jetty": (186, 180, 170), "runway": (164, 158, 152),
        "marking": (240, 214, 120), "wood": (64, 92, 62),
    },
    patterns={
        "roof": (t.parapet, t.sheds), "water": (t.swell,), "tank": (t.seams,), "court": (t.halves,),
        "field": (t.terraces, t.beds), "lot": (t.slabs,), "vessel": (t.cargo,), "vehicle": (t.cargo,),
        "road": (t.cracked,), "wood": (t.orchard,), "runway": (t.grooves,), **_BOTH,
    },
    grounds=(t.dunes, t.stones),
    amplitude=(13.0, 25.0),
    period=(3.4, 6.0),
    scale=(0.58, 1.2),
    shadow=(0.4, 0.6),
)  # fmt: skip


def draw_hard_scene(rng: Rng, style: HardStyle, size: int = 112, pieces: bool = False) -> Scene:
    """One hard scene of ``size`` x ``size`` pixels; its objects' masks are disjoint but for those of ``PART_OF``.

    With ``pieces``, the bright and the dark pieces of textures that make up a fair part of their object are listed as
    well; the scene is the same.
    """
    base = style.base
    things = lay_out(rng, size, rng.uniform(*style.scale))
    unit, bare = size / 112, np.array(base.grounds[int(rng.integers(len(base.grounds)))])
    look = _Look(
        rng=rng,
        style=style,
        unit=unit,
        ground=bare + rng.normal(0, 9) + rng.normal(0, 4, 3),
        contrast=rng.uniform(*base.contrast),
        amplitude=rng.uniform(*style.amplitude),
        period=max(rng.uniform(*style.period) * unit, 2.2),
    )
    image = look.bare_ground(size)
    look.clutter(image)
    lights: list[tuple[tuple[slice, slice], t.Light]] = []
    bearing, share = rng.uniform(0, 2 * np.pi), rng.uniform(*style.shadow)
    for thing in things:
        length = HEIGHTS.get(thing.category, 0.0) * unit * rng.uniform(0.7, 1.3)
        if length:
            _shade(image, thing.mask, bearing, length, share)
        lights.append(look.paint(image, thing))
    image += base.patches * 0.8 * noise(rng, size, 5)[..., None]
    image += 0.45 * rng.uniform(*base.grain) * rng.standard_normal((size, size, 1)).astype(np.float32)
    seen = _visible(things)
    fragments = [
        piece
        for item, light in zip(seen, lights, strict=True)
        if pieces and item is not None and item.category not in PART_OF
        for piece in _pieces(item.mask, *light)
    ]
    objects = tuple(item for item in seen if item is not None)
    return Scene(image=np.clip(image, 0, 255).astype(np.uint8), objects=objects, pieces=tuple(fragments))


def _pieces(mask: BoolMask, window: tuple[slice, slice], light: t.Light) -> Iterator[BoolMask]:
    """The 8-connected parts of a mask [H, W] where ``light`` of its ``window`` is above, or below, its mean there."""
    inside = mask[window]
    bright = light > light[inside].mean()
    for side in (inside & bright, inside & ~bright):
        for part in parts(side):
            if PIECE[0] <= np.count_nonzero(part) / np.count_nonzero(inside) <= PIECE[1]:
                whole = np.zeros_like(mask)
                whole[window] = part
                yield whole


def _visible(things: list[Thing]) -> list[SceneObject | None]:
    """What can be seen of each thing, None of nothing; later ones hide earlier ones unless they are parts of them."""
    objects: list[SceneObject | None] = []
    covered = np.zeros_like(things[0].mask) if things else np.zeros(0, dtype=np.bool_)
    parts = {whole: np.zeros_like(covered) for whole in PART_OF.values()}
    for thing in reversed(things):
        mask = thing.mask & ~covered
        mask = mask | (thing.mask & parts[thing.category]) if thing.category in parts else mask
        whole = PART_OF.get(thing.category)
        if whole is not None:
            parts[whole] |= mask
        covered = covered | thing.mask
        rows, columns = np.nonzero(mask)
        seen = None
        if len(rows):
            centre = (float(columns.mean()) + 0.5, float(rows.mean()) + 0.5)
            seen = SceneObject(category=thing.category, mask=mask, centre=centre, on=thing.on)
        objects.append(seen)
    return objects[::-1]


def _window(mask: BoolMask, margin: int) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = max(0, int(rows[0]) - margin), max(0, int(columns[0]) - margin)
    return slice(top, int(rows[-1]) + 1 + margin), slice(left, int(columns[-1]) + 1 + margin)


def _shade(image: Picture, mask: BoolMask, bearing: float, length: float, share: float) -> None:
    """Darken what lies within ``length`` pixels of ``mask`` [H, W] on the side of ``bearing``."""
    reach = int(np.ceil(length)) + 2
    window = _window(mask, reach)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), dtype=np.uint8)
    tip = (round(reach - length * np.cos(bearing)), round(reach - length * np.sin(bearing)))
    cv2.line(kernel, (reach, reach), tip, 1, 1)
    cast = cv2.dilate(mask[window].astype(np.uint8), kernel)
    soft = cv2.GaussianBlur(cast.astype(np.float32), (0, 0), 0.8)
    image[window] *= 1 - share * soft[..., None]


@dataclass(kw_only=True)
class _Look:
    """What things of one scene have in common."""

    rng: Rng
    style: HardStyle
    unit: float
    ground: NDArray[np.float64]
    contrast: float
    amplitude: float
    period: float

    def bare_ground(self, size: int) -> Picture:
        place = np.arange(size, dtype=np.float32) - size / 2
        turn = self.rng.uniform(0, np.pi)
        x, y = place[None], place[:, None]
        frame = t.Frame(
            along=(x * np.cos(turn) + y * np.sin(turn)).astype(np.float32),
            across=(y * np.cos(turn) - x * np.sin(turn)).astype(np.float32),
            half=(size / 2, size / 2),
            period=self.period,
            unit=self.unit,
        )
        pattern = self.style.grounds[int(self.rng.integers(len(self.style.grounds)))]
        light = 0.7 * self.amplitude * pattern(self.rng, frame) + self.style.base.patches * noise(self.rng, size, 6)
        return (self.ground + light[..., None]).astype(np.float32)

    def clutter(self, image: Picture) -> None:
        """Spots, stains, tracks and heaps on the ground, some in the colours of categories; nobody asks for them."""
        size = image.shape[0]
        colours = list(self.style.base.palette.values())
        for _ in range(int(self.rng.integers(8, 18))):
            x, y = self.rng.uniform(0, size, 2)
            at = (round(16 * x), round(16 * y))
            likeness = self.contrast * self.rng.uniform(0.4, 0.9)
            colour = np.array(colours[int(self.rng.integers(len(colours)))])
            shade = tuple(float(v) for v in self.ground + likeness * (colour - self.ground))
            kind = self.rng.random()
            radius = self.rng.uniform(0.8, 3.2) * self.unit
            if kind < 0.35:
                axes = (round(16 * radius), round(16 * radius * self.rng.uniform(0.4, 1)))
                cv2.ellipse(image, at, axes, float(self.rng.uniform(0, 180)), 0, 360, shade, -1, cv2.LINE_AA, 4)
            elif kind < 0.6:
                dark = tuple(float(v) for v in self.ground - 22)
                axes = (round(16 * 9 * radius), round(16 * 5 * radius))
                start = float(self.rng.uniform(0, 270))
                cv2.ellipse(image, at, axes, start, 0, 80, dark, max(1, round(0.7 * self.unit)), cv2.LINE_AA, 4)
            elif kind < 0.8:
                cv2.circle(image, at, round(32 * radius), shade, max(1, round(self.unit)), cv2.LINE_AA, 4)
            else:
                for dx, dy in self.rng.uniform(-2.5, 2.5, (5, 2)) * radius:
                    low = (round(x + dx), round(y + dy))
                    high = (low[0] + max(1, round(self.unit)), low[1] + max(1, round(self.unit)))
                    cv2.rectangle(image, low, high, shade, -1)

    def paint(self, image: Picture, thing: Thing) -> tuple[tuple[slice, slice], t.Light]:
        """Paint ``thing``, its border softened as by a lens; gives its window and the light of its texture there."""
        rng, base = self.rng, self.style.base
        window = _window(thing.mask, 2)
        mask = thing.mask[window]
        top, left = window[0].start, window[1].start
        y = np.arange(top, top + mask.shape[0], dtype=np.float32)[:, None] + 0.5 - thing.centre[1]
        x = np.arange(left, left + mask.shape[1], dtype=np.float32)[None] + 0.5 - thing.centre[0]
        cos, sin = np.float32(np.cos(thing.angle)), np.float32(np.sin(thing.angle))
        frame = t.Frame(
            along=x * cos + y * sin, across=y * cos - x * sin, half=thing.half, period=self.period, unit=self.unit
        )
        own = self.style.palette.get(thing.category) or base.palette[thing.category]
        tint = rng.normal(0, base.tint) + rng.normal(0, 0.35 * base.tint, 3)
        colour = self.ground + self.contrast * (np.array(own) - self.ground) + tint
        patterns = self.style.patterns[thing.category]
        light = self.amplitude * patterns[int(rng.integers(len(patterns)))](rng, frame)
        paint = (colour + light[..., None]).astype(np.float32)
        soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.6)[..., None]
        image[window] += soft * (paint - image[window])
        return window, light
