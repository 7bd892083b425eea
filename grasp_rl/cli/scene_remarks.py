"""What `grasp-rl predict` remarks on scenes: their resolution, and ground that several of them show."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from grasp_rl.geo.footprints import neighbours
from grasp_rl.geo.grid import Grid
from grasp_rl.geo.paths import is_address
from grasp_rl.geo.scene import grid_by_name
from grasp_rl.prediction.resolution import MOST, Learned


def sources_of(names: Sequence[str]) -> dict[str, str]:
    """What the attribute ``source`` says of each scene: its path from the folder that all of them lie in.

    Args:
        names: paths; of an address only the last part is said.
    """
    paths = {name: os.path.abspath(name) for name in names if not is_address(name)}
    top = os.path.commonpath([os.path.dirname(path) for path in paths.values()]) if paths else ""
    return {
        name: Path(os.path.relpath(paths[name], top)).as_posix() if name in paths else Path(name).name for name in names
    }


def neighbour_remarks(asked: Mapping[str, Sequence[str]], *, trust: bool) -> list[str]:
    """Remarks on scenes of one question that show the same ground, or lie edge to edge."""
    if len(asked) < 2:
        return []
    grids = {name: grid_by_name(name, trust=trust) for name in asked}
    overlapping, touching = neighbours({name: grid for name, grid in grids.items() if grid is not None})
    remarks = []
    for pairs, how, follows in (
        (overlapping, "overlap", "what lies in both is found in each and counts twice"),
        (touching, "lie edge to edge", "what crosses the edge is found in pieces"),
    ):
        both = [(a, b) for a, b in pairs if set(asked[a]) & set(asked[b])]
        if both:
            more = f" (and {len(both) - 1} pairs more)" if len(both) > 1 else ""
            remarks.append(
                f"{both[0][0]} and {both[0][1]} {how}{more}: {follows}; make one scene of them (gdalbuildvrt all.vrt "
                "FILES, then predict all.vrt --trust-paths) to have one answer"
            )
    return remarks


def looked_at_remark(own: Grid, grid: Grid) -> str:
    """A remark on the resolution of ``grid``, which windows are cut from, where it is not the file's ``own``."""
    if grid.size == own.size:
        return ""
    return f"; looked at in square pixels of {grid.gsd:.3g} m, {grid.width} x {grid.height} of them"


def ratio(one: float | None, other: float) -> float:
    """Of two resolutions, at least 1."""
    return 1.0 if one is None else max(one / other, other / one)


def doubt_of_resolution(learned: Learned | None, run: Path | None, own: Grid, grid: Grid) -> str:
    """A remark where what is looked at is not what the run learned from; empty where it is."""
    if learned is None:
        return ""
    said = f"{run} learned from chips of {learned.gsd:.3g} m a pixel ({learned.file})"
    if grid.gsd is None or own.gsd is None:
        return f"{said}, and without a CRS this scene's metres are not known: see that its pixels show as much"
    if ratio(grid.gsd, learned.gsd) > MOST:
        return f"{said}, and this scene is looked at in {grid.gsd:.3g} m: leave --gsd out to have what it learned from"
    if own.squared().gsd > MOST * learned.gsd:  # type: ignore[operator]
        return f"{said}, and this scene has {own.squared().gsd:.3g} m: what is finer than that cannot be found in it"
    return ""
