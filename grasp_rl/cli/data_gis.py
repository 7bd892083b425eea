"""`grasp-rl data from-gis` and `grasp-rl data show --geo`: from a map maker's layers to a dataset, and back."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from grasp_rl.cli.scene_options import ENDINGS, positive, reading_from, share
from grasp_rl.config.errors import ConfigError
from grasp_rl.data.base import RecordDataset
from grasp_rl.data.importers.base import QUESTION
from grasp_rl.utils.text import printable

FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}


def add_parser(commands: Any, fractions: Any) -> None:
    """The options of from-gis.

    Args:
        commands: the sub-parsers of `grasp-rl data`.
        fractions: reads ``train=0.8,val=0.2``.
    """
    make = commands.add_parser("from-gis", help="make a dataset of a scene and your own polygons with questions")
    make.add_argument("scene", metavar="SCENE", help="a GeoTIFF, or any image with polygons in its pixels")
    make.add_argument("labels", metavar="LABELS[:LAYER]", help="GeoPackage, GeoJSON, Shapefile, GeoParquet")
    make.add_argument("--query-column", required=True, metavar="NAME", help="of LABELS: the question of each polygon")
    make.add_argument(
        "--question", metavar="TEXT", help=f"where the column holds categories: asks for one, such as {QUESTION!r}"
    )
    make.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder")
    make.add_argument("--chip", type=_chip, default=512, metavar="PIXELS", help="side of a chip (512)")
    make.add_argument("--gsd", type=positive, metavar="METRES", help="ground resolution of the chips (the file's own)")
    make.add_argument(
        "--overlap", type=share, default=0.0, metavar="SHARE", help="of a chip that its neighbour shows, too (0)"
    )
    make.add_argument(
        "--block", type=_whole, default=4, metavar="N", help="splits are drawn in blocks of N x N chips (4)"
    )
    make.add_argument(
        "--gap", type=_pixels, default=1.0, metavar="PIXELS",
        help="between chips of two splits; 0 lets them touch and show one polygon (1)",
    )  # fmt: skip
    split = make.add_mutually_exclusive_group()
    split.add_argument("--split", metavar="NAME", help="one for all chips")
    split.add_argument("--fractions", type=fractions, metavar="train=0.8,val=0.1,test=0.1", help="of the chips")
    make.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (0)")
    make.add_argument(
        "--empty", type=_pixels, default=0.0, metavar="RATIO",
        help="questions that nothing in a chip answers, for each answered one; only where LABELS is complete (0)",
    )  # fmt: skip
    make.add_argument(
        "--min-pixels", type=_whole, default=16, metavar="N", help="of a target; smaller is left out (16)"
    )
    make.add_argument("--bands", metavar="R,G,B", help="bands to show, from 1 (the file's)")
    make.add_argument("--stretch", metavar="HOW", help="auto, none or LOW,HIGH (auto)")
    make.add_argument("--trust-paths", action="store_true", help="open VRT, KMZ, /vsi... and addresses, too")


def from_gis(arguments: argparse.Namespace) -> int:
    """Run ``grasp-rl data from-gis``.

    Raises:
        ConfigError: a file cannot be used, or nothing is to be written.
        OSError: the folder cannot be written.
    """
    from grasp_rl.geo.extra import demand_geo

    demand_geo()
    from grasp_rl.geo.from_gis import Cutting, make_dataset
    from grasp_rl.geo.paths import check_raster

    check_raster(arguments.scene, trust=arguments.trust_paths)
    fractions = {arguments.split: 1.0} if arguments.split else arguments.fractions or FRACTIONS
    cutting = Cutting(
        side=arguments.chip, gsd=arguments.gsd, overlap=arguments.overlap, block=arguments.block, gap=arguments.gap,
        fractions=fractions, seed=arguments.seed, empty=arguments.empty, least=arguments.min_pixels,
    )  # fmt: skip
    made = make_dataset(
        arguments.scene, arguments.labels, arguments.query_column, arguments.out, cutting,
        reading=reading_from(arguments.bands, arguments.stretch),
        question=arguments.question, trust=arguments.trust_paths,
    )  # fmt: skip
    for line in (f"{arguments.scene}: {made.shown}", *(f"left out: {each}" for each in made.left_out)):
        sys.stderr.write(printable(f"grasp-rl data from-gis: {line}") + "\n")
    rows = ", ".join(f"{name} ({count} rows)" for name, count in made.rows.items())
    message = f"{arguments.out}: {made.chips} chips, {rows}, {made.empty} that nothing answers; check it: "
    sys.stdout.write(printable(f"{message}grasp-rl data validate {arguments.out}") + "\n")
    return 0


def show_layer(source: RecordDataset, split: str | None, count: int | None, out: Path) -> int:
    """Run ``grasp-rl data show --geo``.

    Args:
        source: the dataset.
        split: this one alone; None for all.
        count: samples of each split; None for all.
        out: the layer's file.

    Raises:
        ConfigError: its ending says no format of polygons, it is there already, or the dataset is of no map.
        OSError: the layer cannot be written.
    """
    from grasp_rl.geo.extra import demand_geo

    demand_geo()
    from grasp_rl.geo.dataset_layer import table_of_targets
    from grasp_rl.geo.layers import VECTORS, has_style, write_layer

    kind = ENDINGS.get(out.suffix.lower(), "")
    if kind not in VECTORS:
        raise ConfigError(f"--out {out}: with --geo it is a layer, so must end with {', '.join(VECTORS.values())}")
    if out.exists():
        raise ConfigError(f"--out {out}: is there already; name another one")
    names = [split] if split else list(source.splits())
    table, remark = table_of_targets([source.split(name) for name in names], count)
    remarks = [*([remark] if remark else []), *write_layer(table, out, kind, list(table["query"]))]
    for line in remarks:
        sys.stderr.write(printable(f"grasp-rl data show: {line}") + "\n")
    style = f", style {out.with_suffix('.qml').name}" if has_style(out, list(table["query"])) else ""
    sys.stdout.write(printable(f"{out}: {len(table)} instances of {', '.join(names)}{style}") + "\n")
    return 0


def _whole(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number >= 1")
    return int(text)


def _chip(text: str) -> int:
    if not text.isdigit() or not 16 <= int(text) <= 8192:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number in 16..8192")
    return int(text)


def _pixels(text: str) -> float:
    return 0.0 if text.strip() in ("0", "0.0") else positive(text)
