"""`grasp-rl predict SCENE --out FILE.gpkg`: a raster asked window by window, what is found as a map layer.

Every answer is in a journal beside the result before the next is asked for, so that an interrupted scan goes on where
it stopped. The journal goes when the result is written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from grasp_rl import __version__
from grasp_rl.cli.scene_options import Target, asked_of, files_of
from grasp_rl.cli.scene_outputs import Answered, of_area, write_outputs
from grasp_rl.cli.scene_progress import ScanLines
from grasp_rl.cli.scene_remarks import (
    doubt_of_resolution,
    doubts_of_view,
    looked_at_remark,
    neighbour_remarks,
    ratio,
    sources_of,
)
from grasp_rl.config.errors import ConfigError
from grasp_rl.config.messages import of_system
from grasp_rl.config.schema import RunConfig
from grasp_rl.data.image_io import ImageReading
from grasp_rl.geo.extra import demand_geo
from grasp_rl.geo.grid import SQUARE, Grid
from grasp_rl.geo.journal import Journal
from grasp_rl.geo.region import in_pixels, of_bounds, part_of, read_polygons
from grasp_rl.geo.scan import Counts, Plan, demand_answers, features_of, scan
from grasp_rl.geo.scene import Scene, fingerprint, open_scene
from grasp_rl.geo.windows import whole, windows_of
from grasp_rl.prediction.predictor import DEFAULT_SIDE, Predictor, check_query, model_name, window_side
from grasp_rl.prediction.resolution import Learned, learned_resolution
from grasp_rl.prediction.scenes import asking
from grasp_rl.utils.files import Record
from grasp_rl.utils.text import printable


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What holds for all scenes of a command line."""

    arguments: argparse.Namespace
    config: RunConfig
    trusted: tuple[str, ...]
    reading: ImageReading
    target: Target
    learned: Learned | None = None
    """The resolution that the run learned at, where that is known."""

    @property
    def gsd(self) -> float | None:
        """The ground resolution to look at; None for the scene's own."""
        given: float | None = self.arguments.gsd
        return self.learned.gsd if given is None and self.learned is not None else given

    def grid(self, own: Grid) -> Grid:
        """What windows of a scene with the grid ``own`` are cut from."""
        squared = own.squared()
        if self.arguments.gsd is None and self.gsd is not None and ratio(squared.gsd, self.gsd) < SQUARE:
            return squared
        return own.to_look_at(self.gsd)


def run(setting: Setting, names: Sequence[str]) -> tuple[Record, int]:
    """Ask about all scenes and write what was found; returns what --json says, and the exit code.

    Args:
        setting: of the command line.
        names: files, folders, addresses.

    Raises:
        ConfigError: nothing can be asked, or the only scene cannot be read.
        OSError: the journal or a result cannot be written.
    """
    try:
        return _run(setting, names)
    except KeyboardInterrupt:
        kept = setting.target.journal
        more = f"; {kept} keeps what is answered, and the same command goes on there" if kept.exists() else ""
        _say(f"interrupted{more}")
        return {"state": "interrupted"}, 130


def _run(setting: Setting, names: Sequence[str]) -> tuple[Record, int]:
    """:func:`run`, not interrupted."""
    demand_geo()
    setting = _with_learned(setting)
    arguments, target = setting.arguments, setting.target
    asked = asked_of(names, arguments.query, arguments.queries, target, trust=arguments.trust_paths)
    for query in {query for queries in asked.values() for query in queries}:
        check_query(query)
    files = files_of(asked, target, overwrite=arguments.overwrite)
    regions = _regions(arguments)
    if len(asked) == 1:  # refused before a model is loaded
        with open_scene(next(iter(asked)), setting.reading, trust=arguments.trust_paths) as scene:
            _plan(setting, scene, "0", [], regions, side=DEFAULT_SIDE)
    source = arguments.run or (Path(setting.config.init_from) if setting.config.init_from else None)
    predictor = Predictor(setting.config, source, setting.trusted)
    for query in {query for queries in asked.values() for query in queries}:
        check_query(query, predictor.policy.tokenizer.all_special_tokens)
    side = arguments.window or window_side(predictor)
    questions = sorted({query for queries in asked.values() for query in queries})
    noted = {"began": datetime.now(UTC).isoformat(timespec="seconds"), "questions": questions, "scenes": list(asked)}
    sources = sources_of(list(asked))
    for remark in neighbour_remarks(asked, trust=arguments.trust_paths):
        _say(remark)
    with Journal(target.journal, _digest(setting, predictor, side), noted) as journal:
        _demand_same_scan(journal, questions, list(asked))
        if journal.resumed:
            _say(f"going on with {target.journal}: {len(journal)} windows are answered")
        failed: list[Record] = []
        code, answered = 0, list[Answered]()
        for name, queries in asked.items():
            try:
                answered += _scanned(setting, name, sources[name], queries, regions, side, predictor, journal)
            except ConfigError as error:
                if len(asked) == 1:
                    raise
                failed.append({"image": name, "error": of_system(error)})
                code = 2
                _say(of_system(error))
        written = write_outputs(
            answered, files, target, journal, setting.reading, trust=arguments.trust_paths, renew=arguments.overwrite
        )
        if not failed:
            journal.remove()
        for remark in written.remarks:
            _say(remark)
    if not arguments.json:
        sys.stdout.write("".join(printable(line) + "\n" for line in written.lines))
    if failed:
        _say(
            f"{len(failed)} of {len(asked)} scenes could not be answered; {target.journal} keeps the others' answers: "
            "mend those scenes or take them away, and start the same command with --overwrite, which asks nothing "
            "twice"
        )
    return written.record | {"failed": failed}, code


def _with_learned(setting: Setting) -> Setting:
    """``setting`` with the resolution that its run learned at."""
    run = setting.arguments.run
    learned = learned_resolution(run, setting.config) if run is not None else None
    if learned is not None and setting.arguments.gsd is None:
        _say(
            f"scenes are looked at in {learned.gsd:.3g} m a pixel, as {run} learned ({learned.file}); --gsd METRES "
            "decides otherwise"
        )
    return replace(setting, learned=learned)


def _scanned(
    setting: Setting,
    name: str,
    source: str,
    queries: Sequence[str],
    regions: Sequence[Callable[[Grid], Any]],
    side: int,
    predictor: Predictor,
    journal: Journal,
) -> list[Answered]:
    """One scene, asked and put together."""
    arguments, config = setting.arguments, setting.config
    with ExitStack() as stack:
        scene = stack.enter_context(open_scene(name, setting.reading, trust=arguments.trust_paths))
        plan = _plan(setting, scene, fingerprint(name), queries, regions, side=side)
        _say(f"{name}: {scene.description}{looked_at_remark(scene.grid, plan.grid)}")
        doubt = doubt_of_resolution(setting.learned, arguments.run, scene.grid, plan.grid)
        for remark in (*doubts_of_view(scene, plan, setting.reading), *([doubt] if doubt else [])):
            _say(f"{name}: {remark}")
        if scene.grid.crs is None:
            _say(f"{name}: has no CRS, so the result is in pixels, x to the right and y down; areas are missing")
        counts = Counts(total=len(plan.windows) * len(queries))
        lines = ScanLines(sys.stderr, name)
        try:
            scan(scene, plan, asking(predictor), journal, counts, lines)
        finally:
            lines.end()
    demand_answers(counts, config.evaluation.max_failed_prompts)
    if counts.failed:
        _say(f"{name}: {counts.failed} windows could not be segmented ({counts.errors[0]})")
    common = {
        "source": source,
        "gsd_m": plan.grid.gsd,
        "prompt": config.prompt.scheme,
        "model": model_name(predictor),
        "date": journal.noted["began"],
    }
    if arguments.min_area is not None:
        common["min_area_m2"] = arguments.min_area
    result = []
    for query in queries:
        features = features_of(plan, query, journal)
        kept = features if arguments.min_area is None else of_area(features, plan.grid, arguments.min_area)
        result.append(
            Answered(
                name=name,
                query=query,
                plan=plan,
                scene_grid=scene.grid,
                features=kept,
                left_out=len(features) - len(kept),
                common=common | {"query": query},
            )
        )
    return result


def _plan(
    setting: Setting,
    scene: Scene,
    key: str,
    queries: Sequence[str],
    regions: Sequence[Callable[[Grid], Any]],
    *,
    side: int,
) -> Plan:
    """Resolution, windows and region of one scene."""
    arguments = setting.arguments
    grid = setting.grid(scene.grid)
    if grid.crs is None and setting.target.kind == "geojson":
        raise ConfigError(
            "--out: GeoJSON is in longitude and latitude, and the scene has no CRS; name a .gpkg or .json for pixels"
        )
    if grid.crs is None and arguments.min_area is not None:
        raise ConfigError("--min-area: the scene has no CRS, so its areas are not known; assign it, or leave it out")
    region = None
    for make, where in zip(regions, _where(arguments), strict=True):
        polygon = make(grid)
        region = part_of(grid, polygon if region is None else region.intersection(polygon), where)
    return Plan(
        key=key,
        grid=grid,
        windows=list(windows_of(whole(grid), side, arguments.overlap, region)),
        queries=queries,
        region=region,
        batch=setting.config.evaluation.batch_size,
    )


def _where(arguments: argparse.Namespace) -> list[str]:
    return [
        name for name, given in (("--bbox", arguments.bbox), (f"--where {arguments.where}", arguments.where)) if given
    ]


def _regions(arguments: argparse.Namespace) -> list[Callable[[Grid], Any]]:
    """What makes a region of a scene's grid, for each flag that restricts it."""
    result: list[Callable[[Grid], Any]] = []
    if arguments.bbox_crs and not arguments.bbox:
        raise ConfigError(f"--bbox-crs {arguments.bbox_crs}: goes with --bbox")
    if arguments.bbox:
        result.append(lambda grid: of_bounds(arguments.bbox, arguments.bbox_crs, grid))
    if arguments.where:
        import shapely

        table = read_polygons(arguments.where, trust=arguments.trust_paths, option="--where")
        where = f"--where {arguments.where}"
        result.append(lambda grid: shapely.union_all(in_pixels(table, grid, where)))
    return result


def _demand_same_scan(journal: Journal, questions: Sequence[str], scenes: Sequence[str]) -> None:
    """Demand that a journal to go on with is of ``questions``, some or more of them, and of one of ``scenes``.

    Raises:
        ConfigError: it is of others.
    """
    before, now = set(journal.noted.get("questions", questions)), set(questions)
    there = set(journal.noted.get("scenes", scenes))
    differ = []
    if not (before <= now or now <= before):
        differ.append(f"question was {sorted(before)[0]!r}, is {sorted(now)[0]!r}")
    if there.isdisjoint(scenes):
        differ.append(f"scene was {sorted(there)[0]!r}, is {sorted(scenes)[0]!r}")
    if journal.resumed and differ:
        raise ConfigError(
            f"{journal.path}: belongs to another scan: {differ[0]}; ask as before, or remove the file to begin anew"
        )


def _digest(setting: Setting, predictor: Predictor, side: int) -> Mapping[str, object]:
    """What an answer depends on beside the scene and the question, by name."""
    arguments, config = setting.arguments, setting.config
    weights = predictor.weights
    files = sorted(p for p in weights.rglob("*") if p.is_file()) if weights is not None and weights.is_dir() else []
    return {
        "version": __version__,
        "policy": config.policy,
        "weights": [str(weights), *(f"{p.name} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files)],
        "segmenter": config.segmenter,
        "prompt": asdict(config.prompt),
        "parsing": asdict(config.parsing),
        "inference": asdict(config.inference),
        "seed": config.seed,
        "max_new_tokens": config.evaluation.max_new_tokens,
        "reading": asdict(setting.reading),
        "gsd": setting.gsd,
        "window": side,
        "overlap": arguments.overlap,
        "bbox": [arguments.bbox, arguments.bbox_crs],
        "min_area": arguments.min_area,
        "where": [arguments.where, fingerprint(arguments.where) if arguments.where else None],
    }


def with_samples(config: RunConfig, count: int | None) -> RunConfig:
    """``config`` with ``count`` answers beside the greedy one, by agreement where it draws none so far.

    Raises:
        ConfigError: its options vote on boxes, which say nothing of a pixel.
    """
    if count is None:
        return config
    samples = config.inference.samples
    if samples.count and samples.pick == "majority":
        raise ConfigError(
            "--samples: goes with inference.samples.pick=agreement or best_of_n, and majority votes on boxes"
        )
    name = config.inference.name if config.inference.changed else "agreement"
    return replace(config, inference=replace(config.inference, name=name, samples=replace(samples, count=count)))


@lru_cache(maxsize=64)
def _say(text: str) -> None:
    """One line on stderr, once."""
    sys.stderr.write(printable(f"grasp-rl predict: {text}") + "\n")
