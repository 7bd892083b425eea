"""A dataset from a scene and a map maker's polygons: chips that keep their place on the earth, questions, targets."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from affine import Affine

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.image_io import ImageReading
from grasp_rl.data.importers.base import demand_empty
from grasp_rl.geo.chips import Chip, chip_windows, split_of_blocks, without_leaks
from grasp_rl.geo.grid import Grid
from grasp_rl.geo.labels import Labels, read_labels, target_of
from grasp_rl.geo.scene import Scene, open_scene
from grasp_rl.geo.windows import Window
from grasp_rl.types import Image
from grasp_rl.utils.files import Record, write_json, write_text

ABOUT = "from_gis.json"
"""What a folder was made of."""


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """How a scene is cut into chips."""

    side: int = 512
    """Of a chip in pixels of :attr:`gsd`."""
    gsd: float | None = None
    """Metres a pixel; None for the scene's own, made square on the ground."""
    overlap: float = 0.0
    """Share of a chip that its neighbour in the block shows, too."""
    block: int = 4
    """Chips that a block is wide and high; a block is in one split."""
    gap: float = 1.0
    """Pixels between chips of two splits, at least: 1 keeps them from touching, 0 lets
    them touch and show one polygon."""
    fractions: Mapping[str, float]
    """Share of the chips in each split."""
    seed: int = 0
    """Of the draws of splits and of questions that nothing answers."""
    empty: float = 0.0
    """Questions that nothing in a chip answers, for each one with an answer."""
    least: int = 16
    """Pixels of a target."""


@dataclass(kw_only=True)
class Made:
    """What was written."""

    rows: Counter[str]
    """By split."""
    empty: int
    """Rows that nothing answers, among them."""
    chips: int
    left_out: list[str]
    """Chips and labels that are not in it, and why."""
    shown: str
    """How the scene was shown."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    chip: int
    query: int
    target: Record


def make_dataset(
    scene_name: str,
    labels_name: str,
    column: str,
    out: Path,
    cutting: Cutting,
    *,
    reading: ImageReading,
    question: str | None = None,
    trust: bool = False,
) -> Made:
    """Write ``out`` with annotations.jsonl and one GeoTIFF of 8-bit RGB a chip, whole or not at all.

    Args:
        scene_name: path of the raster.
        labels_name: FILE or FILE:LAYER of polygons.
        column: of the labels that holds the questions.
        out: new folder.
        cutting: chips and splits.
        reading: how the scene is shown.
        question: asks for a ``{category}``; None where the column holds questions.
        trust: whether the files may refer to others.

    Raises:
        ConfigError: ``out`` is not empty, a file cannot be used, or nothing is to be written.
        OSError: ``out`` cannot be written.
    """
    demand_empty(out)
    with open_scene(scene_name, reading, trust=trust) as scene:
        grid = scene.grid.to_look_at(cutting.gsd)
        labels = read_labels(labels_name, column, grid, question=question, trust=trust)
        chips, rows = _cut(scene, grid, labels, cutting)
        if not rows:
            raise ConfigError(
                f"{labels_name}: no chip has a target of {cutting.least} pixels where the scene has data; see that "
                "both show the same place, or take a smaller --min-pixels"
            )
        split_of = split_of_blocks(chips, cutting.fractions, cutting.seed)
        splits = [split_of[chip.block] for chip in chips]
        kept = without_leaks(chips, splits, cutting.fractions, cutting.gap)
        held = set(kept)
        rows = [row for row in rows if row.chip in held]
        rows += _unanswered(chips, rows, kept, splits, labels, cutting)
        left_out = [f"{labels.left_out} polygons without a question"] if labels.left_out else []
        lost = len(chips) - len(kept)
        left_out += [f"{lost} chips that touch, or show a polygon of, another split"] if lost else []
        counts = Counter(splits[row.chip] for row in rows)
        bare = [name for name in cutting.fractions if not counts[name]]
        if bare:
            raise ConfigError(
                f"split {', '.join(bare)}: no row is left in it; take a smaller --block or --chip, another --seed, "
                "--gap 0, or one split (--split train)"
            )
        about = {
            "scene": Path(scene_name).name, "shown": scene.description,
            "labels": Path(labels_name).name, "column": column,
            "question": question, "cutting": asdict(cutting), "gsd_m": grid.gsd,
            "crs": grid.name, "transform": list(grid.transform[:6]),
        }  # fmt: skip
        stem = re.sub(r"[^\w.-]+", "_", Path(scene_name).stem).strip("._")[:80] or "scene"
        _write(out, stem, scene, grid, chips, rows, splits, labels.questions, about)
        empty = sum(row.target == {"polygons": []} for row in rows)
        used = len({row.chip for row in rows})
        return Made(rows=counts, empty=empty, chips=used, left_out=left_out, shown=scene.description)


def _cut(scene: Scene, grid: Grid, labels: Labels, cutting: Cutting) -> tuple[list[Chip], list[_Row]]:
    """The chips that may be used, and a row for each question that one of them answers."""
    import shapely

    tree, numbers = shapely.STRtree(labels.geometries), {q: n for n, q in enumerate(labels.questions)}
    chips, rows = list[Chip](), list[_Row]()
    for block, window in chip_windows(grid, cutting.side, cutting.overlap, cutting.block):
        hits = sorted(tree.query(window.polygon, predicate="intersects").tolist())
        if not hits and not cutting.empty:
            continue
        valid = scene.read(grid, window)[1]
        if not valid.any():
            continue
        groups: dict[str, list[int]] = {}
        for index in hits:
            groups.setdefault(labels.queries[index], []).append(index)
        targets = []
        for query, members in groups.items():
            made = target_of([labels.geometries[index] for index in members], window, cutting.least)
            if made is not None and int((made[1] & valid).sum()) >= cutting.least:
                targets.append(_Row(chip=len(chips), query=numbers[query], target=made[0]))
        if targets or cutting.empty:
            rows += targets
            chips.append(Chip(window=window, block=block, features=frozenset(hits)))
    return chips, rows


def _unanswered(
    chips: Sequence[Chip],
    rows: Sequence[_Row],
    kept: Sequence[int],
    splits: Sequence[str],
    labels: Labels,
    cutting: Cutting,
) -> list[_Row]:
    """Rows whose question no label in the chip has, as many in each split as ``cutting.empty`` says, drawn."""
    if not cutting.empty:
        return []
    numbers = {query: number for number, query in enumerate(labels.questions)}
    shown = {index: {numbers[labels.queries[f]] for f in chips[index].features} for index in kept}
    result: list[_Row] = []
    for name in cutting.fractions:
        count = round(cutting.empty * sum(splits[row.chip] == name for row in rows))
        free = [
            (index, number)
            for index in kept
            for number in range(len(labels.questions))
            if splits[index] == name and number not in shown[index]
        ]
        free.sort(key=lambda pair: hashlib.sha256(f"{cutting.seed}:{pair}".encode()).digest())
        result += [_Row(chip=index, query=number, target={"polygons": []}) for index, number in free[:count]]
    return result


def _write(
    out: Path,
    stem: str,
    scene: Scene,
    grid: Grid,
    chips: Sequence[Chip],
    rows: Sequence[_Row],
    splits: Sequence[str],
    questions: Sequence[str],
    about: Record,
) -> None:
    """The folder, under another name until it is whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        (part / "images").mkdir()
        lines = []
        by_chip: dict[int, list[_Row]] = {}
        for row in rows:
            by_chip.setdefault(row.chip, []).append(row)
        for index in sorted(by_chip):
            window = chips[index].window
            name = f"{stem}_{window.left}_{window.top}"
            write_chip(part / "images" / f"{name}.tif", scene.read(grid, window)[0], grid, window)
            for row in sorted(by_chip[index], key=lambda row: row.query):
                record = {
                    "id": f"{name}-{row.query}", "image": f"images/{name}.tif", "query": questions[row.query],
                    **row.target, "split": splits[index],
                }  # fmt: skip
                lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        write_text(part / "annotations.jsonl", "".join(lines))
        write_json(part / ABOUT, about)
        part.chmod(0o755)
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_chip(path: Path, image: Image, grid: Grid, window: Window) -> None:
    """Write ``image`` [H, W, 3] uint8 RGB as a GeoTIFF at the place of ``window`` in ``grid``.

    Raises:
        OSError: it cannot be written.
    """
    import rasterio

    a, b, c, d, e, f = grid.transform[:6]
    corner = Affine(a, b, a * window.left + b * window.top + c, d, e, d * window.left + e * window.top + f)
    place = {} if grid.crs is None else {"crs": grid.crs, "transform": corner}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver="GTiff", dtype="uint8", count=3, height=window.height, width=window.width,
            photometric="RGB", compress="deflate", predictor=2, **place,
        ) as file:  # fmt: skip
            file.write(np.moveaxis(image, -1, 0))
