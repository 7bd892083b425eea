"""The ground resolution that a run learned at, where its data were made of a map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from affine import Affine

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import RunConfig
from grasp_rl.geo.from_gis import ABOUT
from grasp_rl.geo.grid import Grid
from grasp_rl.runs import origin
from grasp_rl.runs.run_dir import CONFIG
from grasp_rl.utils.files import Record, read_json

MOST = 1.25
"""Ratio of two resolutions up to which they are taken for the same."""


@dataclass(frozen=True)
class Learned:
    """What a run's chips show."""

    gsd: float
    """Metres a pixel."""
    file: Path
    """That says so."""


def learned_resolution(run: Path, config: RunConfig) -> Learned | None:
    """The resolution of the chips of ``grasp-rl data from-gis`` that ``run`` was trained on, None where none is known.

    Only a run of one's own is believed about which file on this machine is read.

    Args:
        run: its folder.
        config: its config.
    """
    root = (config.data or {}).get("root")
    if not isinstance(root, str) or not origin.is_own(run / CONFIG):
        return None
    file = Path(root) / ABOUT
    try:
        record = read_json(file)
        gsd = None if record is None else _gsd(record)
    except (OSError, ValueError, TypeError, KeyError, ConfigError):
        return None
    return Learned(gsd, file) if gsd is not None and math.isfinite(gsd) and gsd > 0 else None


def _gsd(record: Record) -> float | None:
    """What the file says; those before ``gsd_m`` was written say it of the scene that they were cut from."""
    said = record.get("gsd_m") or record["cutting"]["gsd"]
    if said is None:
        from rasterio.crs import CRS
        from rasterio.errors import CRSError

        try:
            grid = Grid(1, 1, Affine(*record["transform"]), CRS.from_user_input(record["crs"]))
        except CRSError:
            return None
        said = grid.squared().gsd
    return None if said is None else float(said)
