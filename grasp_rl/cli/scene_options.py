"""What `grasp-rl predict` was told about scenes: which, what of them, at which resolution, into which files."""

from __future__ import annotations

import argparse
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grasp_rl.cli.predict_tasks import images_of, questions_of
from grasp_rl.config.errors import ConfigError
from grasp_rl.data.image_io import ImageReading
from grasp_rl.geo.paths import check_raster, is_address

ENDINGS = {
    ".gpkg": "gpkg", ".geojson": "geojson", ".parquet": "parquet", ".geoparquet": "parquet", ".shp": "shp",
    ".fgb": "fgb",
    ".tif": "cog", ".tiff": "cog", ".png": "png", ".json": "json",
}  # fmt: skip
"""Formats by the ending of --out."""
ENDING_OF = {
    "gpkg": ".gpkg", "geojson": ".geojson", "parquet": ".parquet", "shp": ".shp", "fgb": ".fgb", "cog": ".tif",
    "png": ".png", "json": ".json",
}  # fmt: skip
ONE_QUESTION = ("cog", "png")
"""Formats whose file holds one question about one scene."""
LARGEST_WINDOW = 8192


def add_options(parser: argparse.ArgumentParser) -> None:
    """The flags that go with a map layer."""
    group = parser.add_argument_group(
        "map layers",
        "with --out FILE.gpkg (.geojson .parquet .shp .fgb .tif .png .json) or --format, images are read window by "
        "window, and what is found is written in their CRS: docs/gis.md",
    )
    group.add_argument("--format", choices=sorted(ENDING_OF), help="what --out is, if its ending does not say so")
    group.add_argument("--gsd", type=positive, metavar="METRES", help="ground resolution to look at (the file's own)")
    group.add_argument("--window", type=_side, metavar="PIXELS", help="side of a window (what the policy sees)")
    group.add_argument(
        "--overlap", type=share, default=0.2, metavar="SHARE", help="of a window that its neighbour sees, too (0.2)"
    )
    group.add_argument("--bbox", type=_bounds, metavar="X0,Y0,X1,Y1", help="look only here, in the scene's CRS")
    group.add_argument("--bbox-crs", metavar="EPSG:CODE", help="of --bbox: EPSG:4326 for longitude,latitude")
    group.add_argument("--where", metavar="FILE[:LAYER]", help="look only inside the polygons of this file")
    group.add_argument("--min-area", type=positive, metavar="M2", help="leave out features of fewer square metres")
    group.add_argument(
        "--samples", type=_count, metavar="K", help="K answers beside the greedy one; their agreement as a raster"
    )
    group.add_argument("--overwrite", action="store_true", help="replace the result if it is there already")
    group.add_argument(
        "--trust-paths", action="store_true",
        help="open VRT, KMZ, /vsi... and addresses, too: what they name is read",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where results go."""

    out: Path
    kind: str
    """Of :data:`ENDING_OF`."""
    folder: bool
    """Whether ``out`` is a folder, with files of their own for each scene."""

    @property
    def journal(self) -> Path:
        """The file that keeps what is answered so far."""
        return self.out / "grasp_rl.journal" if self.folder else self.out.with_name(f"{self.out.name}.journal")


def target_of(text: str, kind: str | None) -> Target | None:
    """What ``--out`` and ``--format`` mean; None for a folder of PNG and JSON of each image, without a map.

    Raises:
        ConfigError: the path has an ending that means no format, and is no folder by its last slash.
    """
    out = Path(text)
    by_ending = None if out.is_dir() else ENDINGS.get(out.suffix.lower())
    folder = out.is_dir() or text.endswith(("/", os.sep))
    if by_ending is None and not folder and re.fullmatch(r"\.(?=.*[A-Za-z])\w+", out.suffix):
        raise ConfigError(
            f"--out {text}: {out.suffix} is no format; must end with one of {' '.join(ENDINGS)}, or, as a folder, with "
            "no ending or a slash"
        )
    if kind is None and by_ending is None:
        return None
    return Target(out=out, kind=kind or str(by_ending), folder=by_ending is None)


def asked_of(
    names: Sequence[str], queries: Sequence[str], listed: Path | None, target: Target, *, trust: bool
) -> dict[str, list[str]]:
    """The questions about each scene, in order.

    Args:
        names: files, folders, and with ``trust`` addresses.
        queries: about each of them.
        listed: as in :func:`~grasp_rl.cli.predict_tasks.tasks_of`.
        target: files of an earlier result are no scenes.
        trust: see :func:`~grasp_rl.geo.paths.check_raster`.

    Raises:
        ConfigError: there is no scene, no question, or one that may not be opened.
    """
    scenes = []
    for name in names:
        if trust and is_address(name):
            scenes.append(name)
            continue
        if not Path(name).is_dir():
            check_raster(name, trust=trust)
        scenes += [str(path) for path in images_of(Path(name), target.out) if not _is_result(path, target)]
    more, pairs = questions_of(listed) if listed is not None else ([], [])
    queries = [*queries, *more]
    if scenes and not queries:
        raise ConfigError("--query: no question; say what to look for, such as --query 'where could a boat land'")
    if not scenes and (queries or not pairs):
        raise ConfigError("no image; name images or folders")
    asked: dict[str, list[str]] = {}
    for name, query in [(name, query) for name in scenes for query in queries] + [(str(p), q) for p, q in pairs]:
        check_raster(name, trust=trust)
        if query not in asked.setdefault(name, []):
            asked[name].append(query)
    count = sum(map(len, asked.values()))
    if not target.folder and target.kind in ONE_QUESTION and count > 1:
        raise ConfigError(
            f"--out {target.out}: holds one question about one scene, and {count} are asked; name a folder, with "
            f"--format {target.kind}"
        )
    return asked


def _is_result(path: Path, target: Target) -> bool:
    """Whether ``path`` is what a scan of this target writes."""
    if target.folder:
        return False
    near = path.resolve().parent == target.out.resolve().parent
    return near and path.name in (target.out.name, f"{target.out.stem}_agreement.tif")


def files_of(asked: dict[str, list[str]], target: Target, *, overwrite: bool) -> dict[tuple[str, str], Path]:
    """The file of each question about each scene: one for all, one a scene, or each its own.

    Raises:
        ConfigError: one or its agreement is there already, and ``overwrite`` does not say that it may be replaced.
    """
    result: dict[tuple[str, str], Path] = {}
    taken = Counter[str]()
    for name, queries in asked.items():
        stem = Path(name).stem or "scene"
        taken[stem.lower()] += 1
        stem += f"-{taken[stem.lower()]}" if taken[stem.lower()] > 1 else ""
        for number, query in enumerate(queries, 1):
            own = f"_{number}" if target.kind in ONE_QUESTION and len(queries) > 1 else ""
            file = target.out / f"{stem}{own}{ENDING_OF[target.kind]}" if target.folder else target.out
            result[name, query] = file
    beside = [file.with_name(f"{file.stem}_agreement.tif") for file in result.values()]
    there = [path for path in dict.fromkeys([*result.values(), *beside]) if path.exists()]
    if there and not overwrite:
        raise ConfigError(f"{there[0]}: is there already; name another --out, or --overwrite")
    return result


def reading_from(bands: str | None, stretch: str | None, defaults: Mapping[str, Any] | None = None) -> ImageReading:
    """How images are shown, as ``--bands`` and ``--stretch`` say.

    Args:
        bands: numbers from 1 with commas between; None for the default.
        stretch: ``auto``, ``none``, or two numbers with a comma between; None for the default.
        defaults: values of ``bands`` and ``stretch`` where nothing is said.

    Raises:
        ConfigError: a value that no file can be read by.
    """
    options: dict[str, Any] = dict(defaults or {})
    try:
        options |= {"bands": [int(band) for band in bands.split(",")]} if bands else {}
        options |= {"stretch": [float(v) for v in stretch.split(",")] if "," in stretch else stretch} if stretch else {}
    except ValueError as error:
        raise ConfigError(
            f"--bands={bands}, --stretch={stretch}: must be numbers with commas between ({error})"
        ) from error
    return ImageReading(**options)


def positive(text: str) -> float:
    """``text`` of a flag as a number > 0.

    Raises:
        ArgumentTypeError: it is none.
    """
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number > 0")
    return value


def _number(text: str) -> float:
    import math

    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number")
    return value


def _side(text: str) -> int:
    if not text.isdigit() or not 16 <= int(text) <= LARGEST_WINDOW:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number in 16..{LARGEST_WINDOW}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 256:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number in 1..256")
    return int(text)


def share(text: str) -> float:
    """``text`` of a flag as a number in [0, 0.9].

    Raises:
        ArgumentTypeError: it is none.
    """
    value = _number(text)
    if not 0 <= value <= 0.9:
        raise argparse.ArgumentTypeError(f"{text!r}: must be in [0, 0.9]")
    return value


def _bounds(text: str) -> tuple[float, float, float, float]:
    parts = [_number(part) for part in text.split(",")]
    if len(parts) != 4 or parts[0] >= parts[2] or parts[1] >= parts[3]:
        raise argparse.ArgumentTypeError(
            f"{text!r}: must be X0,Y0,X1,Y1 with X0 < X1 and Y0 < Y1 (longitude first); write --bbox=-81.2,... if it "
            "begins with a minus sign"
        )
    x0, y0, x1, y1 = parts
    return x0, y0, x1, y1
