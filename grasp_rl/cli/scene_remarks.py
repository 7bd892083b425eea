"""What `grasp-rl predict` remarks on scenes: their resolution, and ground that several of them show."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from grasp_rl.data.image_io import ImageReading
from grasp_rl.geo.footprints import neighbours
from grasp_rl.geo.grid import Grid
from grasp_rl.geo.paths import is_address
from grasp_rl.geo.scan import Plan
from grasp_rl.geo.scene import Scene, grid_by_name
from grasp_rl.prediction.resolution import MOST, Learned

FEWEST = 64
"""Pixels of a scene's longer side, resampled, below which little can be seen in it."""
CONTRAST = 26
"""Levels, of 255, between the 2nd and the 98th percentile below which a picture is nearly of one grey."""
_SAMPLED = 5
"""Windows by which contrast is judged."""


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


def doubts_of_view(scene: Scene, plan: Plan, reading: ImageReading) -> list[str]:
    """Remarks on what may show nothing: few pixels, little contrast, bands that are taken for colours.

    Args:
        scene: open; a few windows are read where values become 8 bits as ``reading`` says.
        plan: what is asked of it.
        reading: how it is shown.

    Raises:
        ImageError: the scene is damaged.
    """
    own, grid, remarks = scene.grid, plan.grid, list[str]()
    if scene.assumed:
        bands = ", ".join(map(str, scene.assumed))
        remarks.append(
            f"no bands are tagged as colours, so {bands} are taken as red, green and blue; --bands R,G,B says others"
        )
    if max(grid.size) < min(FEWEST, max(own.size)):
        remarks.append(
            f"the whole scene is {grid.width} x {grid.height} pixels of {grid.gsd:.3g} m, too few to see much in; "
            "take a finer --gsd"
        )
    if not isinstance(reading.stretch, str) and plan.windows:
        low, high = reading.stretch
        step = max(1, len(plan.windows) // _SAMPLED)
        seen = [image[valid] for image, valid in (scene.read(grid, window) for window in plan.windows[::step])]
        values = np.concatenate(seen)
        dark, bright = np.percentile(values, [2, 98]) if values.size else (0, 255)
        if bright - dark < CONTRAST:
            remarks.append(
                f"stretched from {low:g}..{high:g}, nearly all values are {dark:.0f} to {bright:.0f} of 255, so there "
                "is little to see; give --stretch the values that the file holds, or leave it out"
            )
    return remarks
