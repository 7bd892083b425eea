"""Patterns of drawn things as seen from above: furrows, roof ridges, tree crowns, ripples, bays, planks.

A pattern is brightness around 0, of about -1 to 1, in an object's own frame: ``along`` its length and ``across`` it.
Those of the training domain and those of the out-of-domain split are different functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from grasp_rl.data.synthetic.shapes import Rng

Light = NDArray[Any]
"""[h, w] floats: brightness of a window of the image."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """An object's own coordinates in a window of the image."""

    along: Light
    """[h, w] pixels from the object's centre along its length."""
    across: Light
    """[h, w] pixels from the object's centre across its length."""
    half: tuple[float, float]
    """Half the length and half the width in pixels."""
    period: float
    """Of what repeats, in pixels, never under 2.2."""
    unit: float
    """Pixels of a hundred-and-twelfth of the image's side."""


Pattern = Callable[[Rng, Frame], Light]


def _wave(rng: Rng, place: Light, period: float, sharpness: float = 1.6) -> Light:
    return np.asarray(np.tanh(sharpness * np.sin(2 * np.pi * place / period + rng.uniform(0, 6.3))), dtype=np.float32)


def _smooth(rng: Rng, frame: Frame, cell: float) -> Light:
    """Normal values at places ``cell`` pixels apart, smooth in between."""
    h, w = frame.along.shape
    coarse = rng.standard_normal((max(2, round(h / cell)) + 1, max(2, round(w / cell)) + 1)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (w, h), interpolation=cv2.INTER_LINEAR))


def _line(distance: Light, width: float) -> Light:
    """1 where ``distance`` is under half a ``width`` (at least 0.9 pixels in all)."""
    return np.asarray(np.abs(distance) < max(width, 0.9) / 2, dtype=np.float32)


def _border(frame: Frame) -> Light:
    """Pixels to the nearest side of the object's rectangle, negative outside it."""
    return np.minimum(frame.half[0] - np.abs(frame.along), frame.half[1] - np.abs(frame.across))


# ------------------------------------------------------------------------------------------------------- both domains
def grain(rng: Rng, frame: Frame) -> Light:
    """Gravel, soil."""
    return 0.8 * _smooth(rng, frame, max(1.5 * frame.unit, 2))


def planks(rng: Rng, frame: Frame) -> Light:
    """Boards across the length, posts of a fence."""
    return _wave(rng, frame.along, frame.period)


def plain(rng: Rng, frame: Frame) -> Light:
    """Paint."""
    return 0.3 * _smooth(rng, frame, 3 * frame.unit)


# ---------------------------------------------------------------------------------------------------- training domain
def furrows(rng: Rng, frame: Frame) -> Light:
    """Straight rows of a crop with a tractor's lane every few rows."""
    bent = frame.across + 0.4 * frame.period * _smooth(rng, frame, 16 * frame.unit)
    lanes = _line(np.mod(bent + rng.uniform(0, 50), 5.5 * frame.period) - frame.period, 0.8 * frame.period)
    return _wave(rng, bent, frame.period) - 1.1 * lanes


def gable(rng: Rng, frame: Frame) -> Light:
    """Two slopes, one in the sun, a ridge between them and courses of tiles."""
    slopes = np.where(frame.across * rng.choice([-1, 1]) < 0, 1.0, -0.9).astype(np.float32)
    ridge = _line(frame.across, 1.1 * frame.unit)
    return np.where(ridge > 0, 2.0, slopes) + 0.35 * _wave(rng, frame.across, max(2.4 * frame.unit, 2.2))


def hip(rng: Rng, frame: Frame) -> Light:
    """Four slopes in four tones."""
    la, lb = frame.half
    long_side = np.abs(frame.across) - lb > np.abs(frame.along) - la
    tones = rng.permutation(np.array([1.1, 0.3, -0.5, -1.2], dtype=np.float32))
    sides, ends = np.where(frame.across > 0, *tones[:2]), np.where(frame.along > 0, *tones[2:])
    slopes: Light = np.where(long_side, sides, ends)
    return slopes + 0.25 * _wave(rng, frame.across, max(2.4 * frame.unit, 2.2))


def crowns(rng: Rng, frame: Frame) -> Light:
    """Trees of a closed wood: lit crowns with dark gaps."""
    h, w = frame.along.shape
    radius = max(1.1 * frame.period, 2.0)
    light = np.full((h, w), -1.3, dtype=np.float32)
    number = int(1.5 * h * w / (np.pi * radius * radius)) + 1
    places = rng.uniform(0, 1, (number, 2)) * (w, h)
    radii, tones = rng.uniform(0.7, 1.25, number) * radius, rng.uniform(-0.6, 0.5, number)
    for (x, y), r, tone in zip(places, radii, tones, strict=True):
        at = (round(x * 16), round(y * 16))
        cv2.circle(light, at, round(r * 16), float(tone), -1, shift=4)
        cv2.circle(light, (at[0] - round(4 * r), at[1] - round(4 * r)), round(r * 8), float(tone + 0.9), -1, shift=4)
    return light


def ripples(rng: Rng, frame: Frame) -> Light:
    """Short waves of one wind, here stronger, there weaker."""
    bent = frame.along + 1.2 * frame.period * _smooth(rng, frame, 7 * frame.unit)
    return 0.8 * _wave(rng, bent, frame.period, 1.0) * (0.7 + 0.5 * _smooth(rng, frame, 12 * frame.unit))


def bays(rng: Rng, frame: Frame) -> Light:
    """Two rows of parking bays with a lane between them."""
    lines = _line(np.mod(frame.along + rng.uniform(0, 9), 1.7 * frame.period) - 1, 0.8 * frame.unit)
    outer = np.abs(frame.across) > 0.32 * frame.half[1]
    return np.where(outer, 2.2 * lines, -0.5).astype(np.float32) + 0.5 * _smooth(rng, frame, 5 * frame.unit)


def pitch(rng: Rng, frame: Frame) -> Light:
    """A court with side lines, a centre line and a circle on a darker apron."""
    lb = frame.half[1]
    inside = _border(frame) - 0.22 * lb
    lines = np.maximum(_line(inside, 0.9 * frame.unit), np.where(inside > 0, _line(frame.along, 0.9 * frame.unit), 0))
    ring = _line(np.hypot(frame.along, frame.across) - 0.3 * lb, 0.9 * frame.unit)
    return np.where(np.maximum(lines, ring) > 0, 2.6, np.where(inside > 0, 0.4, -0.9)).astype(np.float32)


def lid(rng: Rng, frame: Frame) -> Light:
    """A tank's roof with a rim, lit from one side."""
    r, radius = np.hypot(frame.along, frame.across), frame.half[0]
    return frame.along / radius - 1.2 * _line(r - 0.75 * radius, 0.9 * frame.unit) - _line(r, 2 * frame.unit)


def lane(rng: Rng, frame: Frame) -> Light:
    """A road with a dashed centre line and lines along its edges."""
    dash = (np.mod(frame.along + rng.uniform(0, 20), 9 * frame.unit) < 5 * frame.unit) * 1.0
    edges = _line(np.abs(frame.across) - 0.84 * frame.half[1], 0.8 * frame.unit)
    return (2.4 * dash * _line(frame.across, 0.9 * frame.unit) + 1.3 * edges).astype(np.float32)


def cabin(rng: Rng, frame: Frame) -> Light:
    """A vehicle with a dark windscreen and rear window."""
    ahead = frame.along / frame.half[0] * rng.choice([-1, 1])
    return np.where(np.abs(ahead - 0.4) < 0.16, -2.4, np.where(np.abs(ahead + 0.72) < 0.1, -1.6, 0.5)).astype(
        np.float32
    )


def deck(rng: Rng, frame: Frame) -> Light:
    """A boat's deck with a dark cabin and a bright line along it."""
    a, b = frame.along / frame.half[0], frame.across / frame.half[1]
    house = (np.abs(a + 0.2) < 0.25) & (np.abs(b) < 0.5)
    return np.where(house, -2.0, 0.4 + 0.9 * _line(frame.across, 0.8 * frame.unit)).astype(np.float32)


def strip(rng: Rng, frame: Frame) -> Light:
    """A runway with bars at its thresholds, lines along its edges and marks of tyres."""
    la, lb = frame.half
    ends = (np.abs(np.abs(frame.along) - 0.86 * la) < 3 * frame.unit) & (np.abs(frame.across) < 0.7 * lb)
    bars = ends & (np.mod(frame.across, 3 * frame.unit) < 1.5 * frame.unit)
    edges = _line(np.abs(frame.across) - 0.86 * lb, 0.8 * frame.unit)
    tyres = np.exp(-((np.abs(frame.across) - 0.3 * lb) ** 2) / (0.1 * lb * lb)) * (0.8 + 0.4 * _smooth(rng, frame, 9))
    return (2.0 * np.maximum(bars, edges) - 0.8 * tyres).astype(np.float32)


def tufts(rng: Rng, frame: Frame) -> Light:
    """Grass: small dark tufts and pale spots."""
    fine = _smooth(rng, frame, max(2.2 * frame.unit, 2))
    return 0.5 * fine - 1.2 * (fine < -1.3)


def mown(rng: Rng, frame: Frame) -> Light:
    """A meadow mown in faint wide stripes."""
    return 0.35 * _wave(rng, frame.across, 4 * frame.period) + 0.45 * _smooth(rng, frame, 3 * frame.unit)


# ------------------------------------------------------------------------------------------------------ out of domain
def terraces(rng: Rng, frame: Frame) -> Light:
    """Rows that follow a slope: arcs about a place outside the field."""
    far = np.hypot(frame.along - 1.7 * frame.half[0], frame.across - rng.uniform(-1, 1) * frame.half[1])
    return _wave(rng, far, 1.3 * frame.period, 3.0)


def beds(rng: Rng, frame: Frame) -> Light:
    """Beds of vegetables: dots in rows."""
    return _wave(rng, frame.across, frame.period) * _wave(rng, frame.along, 1.2 * frame.period)


def parapet(rng: Rng, frame: Frame) -> Light:
    """A flat roof with a bright rim and machines on it."""
    light = np.where(_border(frame) < 1.5 * frame.unit, 1.7, -0.4).astype(np.float32)
    for _ in range(int(rng.integers(1, 4))):
        a, b = (rng.uniform(-0.6, 0.6) * side for side in frame.half)
        box = np.maximum(np.abs(frame.along - a), np.abs(frame.across - b)) < rng.uniform(1.2, 2.4) * frame.unit
        light[box] = rng.choice([-2.2, 1.8])
    return light


def sheds(rng: Rng, frame: Frame) -> Light:
    """A sawtooth roof: sheds from bright to dark, again and again."""
    return (1.5 - 3 * np.mod(frame.along + rng.uniform(0, 9), 1.8 * frame.period) / (1.8 * frame.period)).astype(
        np.float32
    )


def orchard(rng: Rng, frame: Frame) -> Light:
    """Trees planted in a lattice on bare soil."""
    lattice = np.cos(2 * np.pi * frame.along / (1.9 * frame.period)) + np.cos(
        2 * np.pi * frame.across / (1.9 * frame.period)
    )
    return np.where(lattice > 0.45, 0.7 - 0.3 * frame.along / frame.half[0], -1.3).astype(np.float32)


def swell(rng: Rng, frame: Frame) -> Light:
    """Two long waves that cross."""
    turned = 0.6 * frame.along + 0.8 * frame.across
    return 0.5 * _wave(rng, frame.along, 2.2 * frame.period, 0.9) + 0.5 * _wave(rng, turned, 1.7 * frame.period, 0.9)


def slabs(rng: Rng, frame: Frame) -> Light:
    """Concrete slabs with dark joints."""
    side = 2.4 * frame.period
    tone = _smooth(rng, frame, side)
    joints = np.minimum(np.mod(frame.along + 50, side), np.mod(frame.across + 50, side)) < max(0.8 * frame.unit, 0.9)
    return np.where(joints, -1.8, 0.5 * tone).astype(np.float32)


def halves(rng: Rng, frame: Frame) -> Light:
    """A court of two tones with lines across it."""
    lines = _line(np.mod(frame.along, 0.66 * frame.half[0]) - 0.33 * frame.half[0], 0.9 * frame.unit)
    rim = _line(_border(frame) - 1.2 * frame.unit, 0.9 * frame.unit)
    tones = np.where(frame.across > 0, 0.9, -0.9)
    return np.where(np.maximum(lines, rim) > 0, 2.3, tones).astype(np.float32)


def seams(rng: Rng, frame: Frame) -> Light:
    """A tank's roof with a sunken middle and radial seams."""
    r = np.hypot(frame.along, frame.across)
    rays = np.cos(7 * np.arctan2(frame.across, frame.along)) > 0.75
    return np.where(r < 0.5 * frame.half[0], -1.5, np.where(rays, -0.9, 0.9)).astype(np.float32)


def cracked(rng: Rng, frame: Frame) -> Light:
    """An old road: patches of tar, a worn double line."""
    tar = _smooth(rng, frame, 6 * frame.unit) > 0.9
    double = _line(np.abs(frame.across) - 1.1 * frame.unit, 0.8 * frame.unit)
    return (1.8 * double - 1.6 * tar).astype(np.float32)


def cargo(rng: Rng, frame: Frame) -> Light:
    """A lorry or a barge: a slatted load behind a plain front."""
    load = frame.along * rng.choice([-1, 1]) < 0.35 * frame.half[0]
    return np.where(load, 1.4 * _wave(rng, frame.along, max(0.8 * frame.period, 2.2)), -0.9).astype(np.float32)


def grooves(rng: Rng, frame: Frame) -> Light:
    """A runway with grooves across it and patches."""
    return 0.7 * _wave(rng, frame.along, frame.period) - 0.9 * (_smooth(rng, frame, 11 * frame.unit) > 0.8)


def dunes(rng: Rng, frame: Frame) -> Light:
    """Sand blown into waves."""
    bent = frame.across + 1.8 * frame.period * _smooth(rng, frame, 14 * frame.unit)
    return 0.6 * _wave(rng, bent, 1.8 * frame.period, 0.9)


def stones(rng: Rng, frame: Frame) -> Light:
    """Stony ground: bright and dark cells."""
    fine = _smooth(rng, frame, max(2.8 * frame.unit, 2))
    return 0.9 * np.sign(fine) * (np.abs(fine) > 1.1) + 0.3 * fine
