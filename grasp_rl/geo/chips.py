"""A scene cut into chips whose splits are drawn block by block, so that a split never sees its neighbours' ground."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from grasp_rl.config.errors import ConfigError
from grasp_rl.geo.grid import Grid
from grasp_rl.geo.windows import Window, windows_of


@dataclass(frozen=True, kw_only=True)
class Chip:
    """A window of a scene that is to be an image of a dataset."""

    window: Window
    block: int
    """Number of the block that it lies in."""
    features: Collection[int] = frozenset()
    """Numbers of the labels that it shows."""


def chip_windows(grid: Grid, side: int, overlap: float, block: int) -> Iterator[tuple[int, Window]]:
    """The number of a block and a window in it, for all windows of ``grid``; no window reaches into two blocks.

    Args:
        grid: of the scene.
        side: of a chip in pixels; smaller where the scene is.
        overlap: share of a chip that its neighbour in the block shows, too.
        block: how many chips a block is wide and high, about.

    Raises:
        ConfigError: they are too many.
    """
    rows, columns = _borders(grid.height, side * block), _borders(grid.width, side * block)
    areas = [
        Window(left, top, right - left, bottom - top)
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    ]
    for number, area in enumerate(areas):
        for window in windows_of(area, side, overlap):
            yield number, window


def _borders(extent: int, side: int) -> list[int]:
    """Where blocks of about ``side`` pixels begin and end, evenly spaced."""
    count = max(1, round(extent / side))
    return [round(number * extent / count) for number in range(count + 1)]


def split_of_blocks(chips: Sequence[Chip], fractions: Mapping[str, float], seed: int) -> dict[int, str]:
    """The split of each block, drawn so that each split has about its share of the chips, and one block at least.

    Args:
        chips: all of them.
        fractions: share of each split.
        seed: of the draw.

    Raises:
        ConfigError: there are fewer blocks with chips than splits.
    """
    sizes = Counter(chip.block for chip in chips)
    if len(sizes) < len(fractions):
        raise ConfigError(
            f"--fractions: {len(fractions)} splits of a scene whose labels lie in {len(sizes)} "
            f"block{'s' * (len(sizes) != 1)}; take a smaller --block or --chip, or one split (--split train)"
        )
    drawn = sorted(sizes, key=lambda block: hashlib.sha256(f"{seed}:{block}".encode()).digest())
    result: dict[int, str] = {}
    missing = {name: fraction * len(chips) for name, fraction in fractions.items()}
    first = sorted(fractions, key=lambda name: fractions[name])
    for block in drawn:
        name = first.pop(0) if first else max(missing, key=lambda name: missing[name])
        result[block] = name
        missing[name] -= sizes[block]
    return result


def without_leaks(
    chips: Sequence[Chip], splits: Sequence[str], fractions: Mapping[str, float], gap: float
) -> list[int]:
    """The numbers of the chips that may stay: none nearer than ``gap`` to one of another split, no label in two splits.

    A chip of the larger split gives way.

    Args:
        chips: all of them.
        splits: of each.
        fractions: share of each split.
        gap: in pixels; 0 lets chips of two splits touch and show one label.
    """
    import shapely

    if not gap:
        return list(range(len(chips)))
    kept: list[int] = []
    for name in sorted(fractions, key=lambda name: fractions[name]):
        tree = shapely.STRtree([chips[index].window.polygon for index in kept])
        shown = frozenset().union(*(chips[index].features for index in kept))
        mine = [index for index, split in enumerate(splits) if split == name]
        for index in mine:
            chip = chips[index]
            near = tree.query(chip.window.polygon, predicate="dwithin", distance=gap)
            if not len(near) and shown.isdisjoint(chip.features):
                kept.append(index)
    return sorted(kept)
