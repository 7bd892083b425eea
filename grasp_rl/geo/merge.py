"""What overlapping windows found, put together: one feature for each thing, whole across seams.

Two instances of one question are the same thing where, within what both windows show, their IoU is above one half; or,
if one of them is cut by its own window's edge, where that one lies within the other there (a bend that one window sees
as two arms), or where a polygon of the one and a polygon of the other have an IoU above one half (two bends).
What is put together so far and lies mostly within another thing, of whichever window, is the same thing as well.
Polygons have whole pixels as coordinates, so that areas and unions are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from grasp_rl.geo.windows import Window

SAME = 0.5
"""IoU within the overlap above which two instances are one."""
WITHIN = 0.9
"""Share of a cut instance within the overlap that lies in the other one, above which it is a piece of that."""
PART = 0.1
"""Share of the smaller one within the overlap that a polygon has at least by which two are compared."""
CONTAINED = 0.8
"""Share of a feature that lies in another one, above which both are one."""


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One thing that was found in one window."""

    window: Window
    geometry: Any
    """A shapely MultiPolygon along the edges of pixels of the scene's grid, not empty."""
    score: float | None = None
    """Mean share of the answers that have its pixels; None for a single answer."""
    confidence: float | None = None
    """The segmenter's own estimate of its mask's IoU; None where it has none."""
    thinking: str | None = None
    """What the policy thought in this window."""


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One thing, put together from its parts in all windows."""

    geometry: Any
    score: float | None
    """Mean of the parts by area, like :attr:`confidence`."""
    confidence: float | None
    thinking: str | None
    """Of the largest part."""
    windows: tuple[Window, ...]
    """That showed a part, that of the largest first."""


def merged(instances: Sequence[Instance]) -> list[Feature]:
    """One feature for each thing that ``instances`` of one question show, in their order."""
    kept = _without_repeats(instances)
    groups = _grouped(
        [instance.geometry for instance in kept],
        lambda a, b: kept[a].window != kept[b].window and _same(kept[a], kept[b]),
    )
    parts = [[kept[index] for index in group] for group in groups]
    features = [_feature(part) for part in parts]
    while True:  # a union may hold what none of its parts did
        shapes = [feature.geometry for feature in features]
        groups = _grouped(shapes, lambda a, b: _holds(shapes[a], shapes[b]))  # noqa: B023
        if len(groups) == len(features):
            return features
        parts = [[instance for index in group for instance in parts[index]] for group in groups]
        features = [
            features[group[0]] if len(group) == 1 else _feature(part) for group, part in zip(groups, parts, strict=True)
        ]


def _grouped(geometries: Sequence[Any], same: Callable[[int, int], bool]) -> list[list[int]]:
    """Numbers of the geometries that ``same`` joins, directly or by others, each group and the groups in order."""
    parent = list(range(len(geometries)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for first, second in _pairs(geometries):
        a, b = root(first), root(second)
        if a != b and same(first, second):
            parent[max(a, b)] = min(a, b)
    groups: dict[int, list[int]] = {}
    for index in range(len(geometries)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())


def _holds(a: Any, b: Any) -> bool:
    """Whether more than :data:`CONTAINED` of the smaller of two geometries lies in the other."""
    import shapely

    least = CONTAINED * min(a.area, b.area)
    (left, top, right, bottom), (x0, y0, x1, y1) = a.bounds, b.bounds
    if (min(right, x1) - max(left, x0)) * (min(bottom, y1) - max(top, y0)) <= least:
        return False  # without the cost of an intersection
    return bool(shapely.intersection(a, b).area > least)


def _pairs(geometries: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """Pairs whose extents overlap, each once, in order."""
    import shapely

    if not geometries:
        return
    boxes = shapely.box(*shapely.bounds(geometries).T)
    pairs = shapely.STRtree(boxes).query(boxes)
    yield from sorted((int(a), int(b)) for a, b in pairs.T if a < b)


def _same(a: Instance, b: Instance) -> bool:
    import shapely

    left, top = max(a.window.left, b.window.left), max(a.window.top, b.window.top)
    right, bottom = min(a.window.right, b.window.right), min(a.window.bottom, b.window.bottom)
    if left >= right or top >= bottom:
        return False
    seen = [_clip(instance.geometry, (left, top, right, bottom)) for instance in (a, b)]
    areas = [part.area for part in seen]
    if not all(areas):
        return False
    both = shapely.intersection(*seen).area
    if both > SAME * (sum(areas) - both):
        return True
    cut = _is_cut(a, b), _is_cut(b, a)
    if any(both > WITHIN * area and ends for area, ends in zip(areas, cut, strict=True)):
        return True
    return any(cut) and both > 0 and _share_a_part(seen, PART * min(areas))


def _share_a_part(seen: Sequence[Any], least: float) -> bool:
    """Whether two clipped geometries have polygons of at least ``least`` pixels with an IoU above one half."""
    import shapely

    first, second = ([p for p in shapely.get_parts([each]).tolist() if p.area >= least] for each in seen)
    pairs = shapely.STRtree(second).query(first).T if first and second else ()
    for one, other in ((first[i], second[j]) for i, j in pairs):
        both = shapely.intersection(one, other).area
        if both > SAME * (one.area + other.area - both):
            return True
    return False


def _clip(geometry: Any, bounds: tuple[int, int, int, int]) -> Any:
    import shapely

    x0, y0, x1, y1 = geometry.bounds
    if bounds[0] <= x0 and bounds[1] <= y0 and x1 <= bounds[2] and y1 <= bounds[3]:
        return geometry
    return shapely.intersection(geometry, shapely.box(*bounds))


def _is_cut(instance: Instance, other: Instance) -> bool:
    """Whether ``instance`` ends at an edge of its window that lies inside the other's."""
    x0, y0, x1, y1 = instance.geometry.bounds
    own, seen = instance.window, other.window
    return bool(
        (x0 == own.left > seen.left)
        or (y0 == own.top > seen.top)
        or (x1 == own.right < seen.right)
        or (y1 == own.bottom < seen.bottom)
    )


def _without_repeats(instances: Sequence[Instance]) -> list[Instance]:
    """Of instances of one window with an IoU above one half only the first, the surest of them first."""
    import shapely

    by_window: dict[Window, list[int]] = {}
    for index, instance in enumerate(instances):
        by_window.setdefault(instance.window, []).append(index)
    dropped = set[int]()
    for members in by_window.values():
        ranked = sorted(members, key=lambda index: -(instances[index].confidence or 0.0))
        for place, index in enumerate(ranked):
            for other in ranked[:place]:
                a, b = instances[index].geometry, instances[other].geometry
                if other in dropped or min(a.area, b.area) <= SAME * max(a.area, b.area):
                    continue
                both = shapely.intersection(a, b).area
                if both > SAME * (a.area + b.area - both):
                    dropped.add(index)
                    break
    return [instance for index, instance in enumerate(instances) if index not in dropped]


def _feature(group: Sequence[Instance]) -> Feature:
    import shapely

    from grasp_rl.geo.polygons import multi

    ranked = sorted(group, key=lambda instance: -instance.geometry.area)
    geometry = ranked[0].geometry
    if len(ranked) > 1:
        union = shapely.union_all([instance.geometry for instance in ranked])
        geometry = multi(shapely.get_parts([shapely.simplify(union, 0)]).tolist())
    return Feature(
        geometry=geometry,
        score=_mean(ranked, [instance.score for instance in ranked]),
        confidence=_mean(ranked, [instance.confidence for instance in ranked]),
        thinking=ranked[0].thinking,
        windows=tuple(dict.fromkeys(instance.window for instance in ranked)),
    )


def _mean(group: Sequence[Instance], values: Sequence[float | None]) -> float | None:
    known = [(i.geometry.area, value) for i, value in zip(group, values, strict=True) if value is not None]
    return sum(area * value for area, value in known) / sum(area for area, _ in known) if known else None
