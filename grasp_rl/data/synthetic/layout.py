"""Where things stand in a hard scene: a theme, lines first, then areas, then what stands on and beside them.

Later things lie on earlier ones and hide them; all positions and sizes are in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from grasp_rl.data.synthetic.shapes import Points, Rng, band, blob, largest_part, outline, polygon, rectangle
from grasp_rl.data.synthetic.themes import SIZES, THEMES
from grasp_rl.types import BoolMask

CLUSTERS = ("roof", "tank", "court", "vehicle", "vessel")
_TRIES = 14
_SMALLEST = 14
"""Least area of an object, in square units."""
_AFLOAT = 0.75
"""Share of a vessel that must be on the water for it to be there and not half on the shore."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One thing as it is placed."""

    category: str
    mask: BoolMask
    """[size, size] bool, later things on top of it not taken out."""
    centre: tuple[float, float]
    """(x, y) of its own frame."""
    angle: float
    """Of its length against the image's x, radians."""
    half: tuple[float, float]
    """Half of length and width."""
    on: str = ""
    """As :attr:`~grasp_rl.data.synthetic.scenes.SceneObject.on`."""


@dataclass(kw_only=True)
class Layout:
    """Things in the order they are painted in."""

    rng: Rng
    size: int
    unit: float
    """Pixels of a hundred-and-twelfth of the image's side, times the scene's scale."""
    things: list[Thing] = field(default_factory=list)
    taken: BoolMask

    def add(
        self,
        category: str,
        mask: BoolMask,
        centre: tuple[float, float],
        angle: float,
        half: tuple[float, float],
        on: str = "",
    ) -> bool:
        """Keep a thing unless it is too small."""
        if np.count_nonzero(mask) < _SMALLEST * self.unit**2:
            return False
        self.things.append(Thing(category=category, mask=mask, centre=centre, angle=angle, half=half, on=on))
        self.taken = self.taken | mask
        return True

    def of(self, *categories: str) -> list[Thing]:
        """Those placed so far."""
        return [thing for thing in self.things if thing.category in categories]

    def uniform(self, low: float, high: float) -> float:
        """One number between the two."""
        return float(self.rng.uniform(low, high))

    def place(self, category: str, count: int) -> None:
        """Up to ``count`` things of ``category``."""
        if category in ("road", "runway"):
            self._way(category)
        elif category == "path":
            for _ in range(count):
                self._path()
        elif category == "fence":
            for _ in range(count):
                self._fence()
        elif category == "jetty":
            for _ in range(count):
                self._jetty()
        elif category == "field":
            self._fields(count)
        elif category in ("water", "wood", "lot"):
            for _ in range(count):
                self._area(category)
        else:
            self._group(category, count)

    # ------------------------------------------------------------------------------------------------------- lines
    def _across(self) -> Points:
        """[24, 2]: a straight line from beyond one side of the image to beyond the opposite one."""
        offset, slope = self.uniform(0.15, 0.85) * self.size, self.uniform(-0.25, 0.25) * self.size
        ends = np.array([[-0.1 * self.size, offset - slope], [1.1 * self.size, offset + slope]])
        line: Points = ends[0] + np.linspace(0, 1, 24)[:, None] * (ends[1] - ends[0])
        return line[:, ::-1] if self.rng.random() < 0.5 else line

    def _way(self, category: str) -> None:
        line = self._across()
        width = self.uniform(8, 13) if category == "road" else self.uniform(16, 21)
        centre, step = line.mean(0), line[-1] - line[0]
        angle, half = float(np.arctan2(step[1], step[0])), float(np.hypot(*step)) / 2
        if category == "runway":
            centre, half = centre + step * self.uniform(-0.08, 0.08), 0.4 * self.size
            line = centre + np.linspace(-1, 1, 24)[:, None] * half * step / np.hypot(*step)
        middle = (float(centre[0]), float(centre[1]))
        mask = band(self.size, line, width * self.unit)
        if self.add(category, mask, middle, angle, (half, width * self.unit / 2)) and category == "runway":
            self._markings(middle, angle, half)

    def _markings(self, centre: tuple[float, float], angle: float, half: float) -> None:
        count = int(self.rng.integers(2, 5))
        length, width = 1.2 * half / count * 0.55, max(self.uniform(2.0, 2.8) * self.unit, 2.0)
        for place in (np.arange(count) - (count - 1) / 2) * 1.2 * half / count:
            at = (centre[0] + place * np.cos(angle), centre[1] + place * np.sin(angle))
            mask = polygon(self.size, rectangle(at, length, width, angle))
            self.add("marking", mask, at, angle, (length / 2, width / 2))

    def _path(self) -> None:
        line = self._across()
        along = np.linspace(0, 1, len(line))
        bend = (
            np.sin(2 * np.pi * (self.uniform(0.6, 1.6) * along + self.uniform(0, 1))) * self.uniform(2, 8) * self.unit
        )
        step = line[-1] - line[0]
        line = line + bend[:, None] * np.array([-step[1], step[0]]) / np.hypot(*step)
        width = self.uniform(2.4, 3.6) * self.unit
        mask = largest_part(band(self.size, line, width) & ~self.taken)
        at = line.mean(0)
        if mask.any() and self._long(mask, 30):
            angle = float(np.arctan2(step[1], step[0]))
            self.add("path", mask, (float(at[0]), float(at[1])), angle, (self.size / 2, width / 2))

    def _long(self, mask: BoolMask, least: float) -> bool:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        return bool(max(rows[-1] - rows[0], columns[-1] - columns[0]) >= least * self.unit)

    def _fence(self) -> None:
        """Two or three sides around something, or a straight one."""
        inside = [
            thing for thing in self.of("field", "lot", "court", "tank", "roof") if max(thing.half) > 5 * self.unit
        ]
        width = max(self.uniform(1.7, 2.3) * self.unit, 1.8)
        if inside:
            thing = inside[int(self.rng.integers(len(inside)))]
            gap = self.uniform(3.5, 6) * self.unit
            corners = rectangle(thing.centre, 2 * (thing.half[0] + gap), 2 * (thing.half[1] + gap), thing.angle)
            turn = int(self.rng.integers(4))
            corners = np.roll(corners, turn, axis=0)[: int(self.rng.integers(3, 5))]
            angle = thing.angle
        else:
            start, angle = self.rng.uniform(0.1, 0.9, 2) * self.size, self.uniform(0, np.pi)
            corners = np.stack(
                [start, start + np.array([np.cos(angle), np.sin(angle)]) * self.uniform(30, 60) * self.unit]
            )
        mask = np.zeros_like(self.taken)
        for first, second in pairwise(corners):
            step = second - first
            middle, length = (first + second) / 2, float(np.hypot(*step)) + width
            side = rectangle((middle[0], middle[1]), length, width, float(np.arctan2(step[1], step[0])))
            mask |= polygon(self.size, side)
        mask = largest_part(mask & ~self.taken)
        at = corners.mean(0)
        if mask.any() and self._long(mask, 18):
            self.add("fence", mask, (float(at[0]), float(at[1])), angle, (self.size / 2, width / 2))

    def _jetty(self) -> None:
        """From the shore into the water."""
        waters = self.of("water")
        for _ in range(_TRIES if waters else 0):
            water = waters[int(self.rng.integers(len(waters)))]
            bearing = self.uniform(0, 2 * np.pi)
            ray = np.array([np.cos(bearing), np.sin(bearing)])
            steps = np.array(water.centre) + np.arange(0, 1.2 * max(water.half), 1.0)[:, None] * ray
            inner = steps[np.all((steps >= 0) & (steps < self.size - 1), axis=1)]
            wet = water.mask[inner[:, 1].astype(int), inner[:, 0].astype(int)] if len(inner) else np.zeros(0, bool)
            if not wet.any() or wet[-1]:
                continue
            shore = inner[int(np.flatnonzero(wet)[-1])]
            length, width = self.uniform(13, 26) * self.unit, max(self.uniform(2.6, 4.2) * self.unit, 2.4)
            middle = shore - ray * (length / 2 - 2 * self.unit)
            mask = polygon(self.size, rectangle((middle[0], middle[1]), length, width, bearing))
            others = self.taken & ~water.mask
            if not (mask & others).any() and self._free(mask, water):
                self.add("jetty", mask, (float(middle[0]), float(middle[1])), bearing, (length / 2, width / 2))
                return

    # ------------------------------------------------------------------------------------------------------- areas
    def _draw_size(self, category: str) -> tuple[float, float]:
        (low, high), ratio = SIZES[category]
        length = float(np.exp(self.uniform(np.log(low), np.log(high)))) * self.unit
        return length, length * self.uniform(*ratio)

    def _area(self, category: str) -> None:
        harbour = category == "water" and self.rng.random() < 0.4
        for _ in range(_TRIES):
            w, h = self._draw_size(category)
            if harbour:
                w, h = 1.5 * w, 1.5 * h
            low = 0.0 if harbour else 0.12
            cx, cy = (self.uniform(low, 1 - low) * self.size for _ in range(2))
            angle = self._angle(0.25)
            if category == "lot":
                whole = polygon(self.size, rectangle((cx, cy), w, h, angle))
            else:
                crowns = int(np.pi * (w + h) / 2 / (6 * self.unit)) if category == "wood" else 0
                whole = polygon(self.size, blob(self.rng, (cx, cy), (w, h), crowns))
            if self._keep(category, whole, (cx, cy), angle, (w / 2, h / 2)):
                return

    def _keep(
        self, category: str, whole: BoolMask, centre: tuple[float, float], angle: float, half: tuple[float, float]
    ) -> bool:
        """Keep what of ``whole`` is free, where that is most of it: an area ends at a road."""
        mask = largest_part(whole & ~self.taken)
        enough = np.count_nonzero(mask) >= 0.7 * np.count_nonzero(whole)
        return bool(enough) and self.add(category, mask, centre, angle, half)

    def _angle(self, spread: float) -> float:
        """Along the road or runway where there is one, give or take a quarter turn; else near upright."""
        ways = self.of("road", "runway")
        base = ways[0].angle if ways else 0.0
        return base + self.uniform(-spread, spread) * (0.3 if ways else 1.0) + int(self.rng.integers(2)) * np.pi / 2

    def _fields(self, count: int) -> None:
        """Touching strips of one large field."""
        for _ in range(_TRIES):
            w, h = self._draw_size("field")
            w *= 1.0 + 0.25 * (count - 1)
            cx, cy = (self.uniform(0.15, 0.85) * self.size for _ in range(2))
            angle = self._angle(0.3)
            cuts = np.concatenate([[0], np.sort(self.rng.dirichlet(np.full(count, 6.0)).cumsum()[:-1]), [1]])
            whole = polygon(self.size, rectangle((cx, cy), w, h, angle))
            if np.count_nonzero(whole & ~self.taken) < 0.75 * np.count_nonzero(whole):
                continue
            for low, high in pairwise(cuts):
                place, width = ((low + high) / 2 - 0.5) * w, (high - low) * w
                at = (cx + place * np.cos(angle), cy + place * np.sin(angle))
                strip = polygon(self.size, rectangle(at, width - self.unit, h, angle))
                turn = angle + int(self.rng.integers(2)) * np.pi / 2
                half = (width / 2, h / 2) if turn == angle else (h / 2, width / 2)
                self._keep("field", strip, at, turn, half)
            return

    # ------------------------------------------------------------------------------------------- what stands on them
    def _group(self, category: str, count: int) -> None:
        """``count`` things; each after the first touches, or nearly touches, the one before with an even chance."""
        before: Thing | None = None
        for _ in range(count):
            beside = before if category in CLUSTERS and self.rng.random() < 0.55 else None
            if not self._single(category, beside):
                continue
            before = self.things[-1]

    def _single(self, category: str, beside: Thing | None) -> bool:
        host = self._host(category)
        for _ in range(_TRIES):
            w, h = self._draw_size(category)
            angle = self._angle(0.3)
            if beside is not None and self.rng.random() < 0.7:
                angle = beside.angle
                if category != "tank" and self.rng.random() < 0.6:
                    w, h = 2 * beside.half[0], 2 * beside.half[1]
            if beside is not None:
                side = int(self.rng.integers(4))
                far = beside.half[side % 2] + (w, h)[side % 2] / 2 + self.uniform(0.2, 1.6) * self.unit
                bearing = beside.angle + side * np.pi / 2
                cx, cy = beside.centre[0] + far * np.cos(bearing), beside.centre[1] + far * np.sin(bearing)
            elif host is not None:
                rows, columns = np.nonzero(host.mask)
                pick = int(self.rng.integers(len(rows)))
                cx, cy = columns[pick] + 0.5, rows[pick] + 0.5
                angle = host.angle + (0.0 if host.category in ("road", "runway") else np.pi / 2)
            else:
                cx, cy = (self.uniform(0.06, 0.94) * self.size for _ in range(2))
            corners = rectangle((cx, cy), w, h, angle)
            if corners.min() < 1 or corners.max() > self.size - 1:
                continue
            mask = polygon(self.size, outline(self.rng, category, (float(cx), float(cy)), (w, h), angle, self.unit))
            if self._free(mask, host):
                return self.add(category, mask, (float(cx), float(cy)), angle, (w / 2, h / 2), _stands_on(mask, host))
        return False

    def _host(self, category: str) -> Thing | None:
        """What the thing stands on: vehicles on roads, lots and runways, vessels on water; None for the ground."""
        places = {"vehicle": ("road", "lot", "runway"), "vessel": ("water",)}.get(category, ())
        hosts = self.of(*places)
        chance = 0.65 if category == "vehicle" else 0.85
        return hosts[int(self.rng.integers(len(hosts)))] if hosts and self.rng.random() < chance else None

    def _free(self, mask: BoolMask, host: Thing | None) -> bool:
        """Whether nothing but ``host`` is under ``mask`` and all of it is on the host."""
        if host is None:
            return bool(mask.any()) and not bool((mask & self.taken).any())
        start = next(index for index, thing in enumerate(self.things) if thing is host)
        guests = any(bool((mask & later.mask).any()) for later in self.things[start + 1 :])
        dry = host.category != "water" and not bool((mask & ~host.mask).any())
        wet = host.category == "water" and np.count_nonzero(mask & host.mask) > 0.4 * np.count_nonzero(mask)
        return bool(mask.any()) and not guests and (dry or bool(wet))


def _stands_on(mask: BoolMask, host: Thing | None) -> str:
    if host is None:
        return ""
    within = np.count_nonzero(mask & host.mask) / np.count_nonzero(mask)
    return host.category if within >= _AFLOAT else "shore"


def lay_out(rng: Rng, size: int, scale: float) -> list[Thing]:
    """Things of one scene of a drawn theme on an image of ``size`` x ``size``, in the order they are painted in."""
    layout = Layout(rng=rng, size=size, unit=scale * size / 112, taken=np.zeros((size, size), dtype=np.bool_))
    theme = THEMES[str(rng.choice(sorted(THEMES)))]
    for category, (chance, (fewest, most)) in theme.items():
        if rng.random() < chance:
            layout.place(category, int(rng.integers(fewest, most + 1)))
    return layout.things
