"""`grasp-rl predict`: images and questions in; for each a mask, an overlay and the answer out.

Without ``--run`` the shipped tiny policy answers and GrabCut segments; overrides swap and tune them as everywhere
(``policy=... segmenter=...``). With it, the run's own config and its best checkpoint are used.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from grasp_rl.cli import predict_scenes, scene_options
from grasp_rl.cli.predict_tasks import Task, split_words, tasks_of
from grasp_rl.cli.scene_options import reading_from
from grasp_rl.config.errors import ConfigError
from grasp_rl.config.messages import of_system
from grasp_rl.config.schema import RunConfig
from grasp_rl.data.image_io import ImageReading, read_described, write_image
from grasp_rl.data.visualization import PANEL, draw_overlay, with_caption
from grasp_rl.geo.paths import check_raster, is_address, refers
from grasp_rl.geo.scene import crs_of
from grasp_rl.launch import compose
from grasp_rl.prediction.config import read_config
from grasp_rl.prediction.predictor import Prediction, Predictor, check_query
from grasp_rl.runs import checkpoints
from grasp_rl.runs.run_dir import CONFIG
from grasp_rl.types import Image
from grasp_rl.utils.files import Record, to_json, write_json
from grasp_rl.utils.text import printable

_MAX_SIDE = 1600  # of an overlay, in pixels
_TOY = (
    "policy=tiny is a toy that knows drawn scenes alone; for real images: grasp-rl predict IMAGE "
    "--query QUESTION policy=qwen2_5_vl_3b segmenter=sam2_1_hiera_small"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``grasp-rl predict <argv>`` and return its exit code."""
    arguments = _parser().parse_intermixed_args(argv)
    try:
        inputs, overrides = split_words(arguments.words)
        for query in arguments.query:
            check_query(query)
        target = scene_options.target_of(arguments.out, arguments.format)
        arguments.out = Path(arguments.out)
        if target is not None:
            names = [word for word in arguments.words if word not in overrides]
            return _scenes(target, names, arguments, overrides)
        _refuse_flags_of_layers(arguments, inputs)
        is_run = arguments.run is not None and (arguments.run / CONFIG).is_file()
        weights = checkpoints.find_policy(arguments.run) if is_run else None
        tasks = tasks_of(inputs, arguments.query, arguments.queries, arguments.out, weights)
        written, failed, code = _answered(tasks, arguments, overrides)
    except (ConfigError, OSError) as error:
        message = of_system(error)
        sys.stderr.write(f"grasp-rl predict: {message}\n")
        if arguments.json:
            refusal = {"state": "refused", "error": {"type": type(error).__name__, "message": message}}
            sys.stdout.write(json.dumps(refusal) + "\n")
        return 2 if isinstance(error, ConfigError) else 1
    if arguments.json:
        result = written[0] if len(tasks) == 1 else {"predictions": written, "failed": failed}
        sys.stdout.write(json.dumps(to_json(result)) + "\n")
    elif failed:
        sys.stderr.write(f"grasp-rl predict: {len(failed)} of {len(tasks)} could not be answered\n")
    return code


def _scenes(
    target: scene_options.Target, names: Sequence[str], arguments: argparse.Namespace, overrides: Sequence[str]
) -> int:
    """Scenes window by window, into a map layer."""
    config, trusted = _config(arguments, overrides)
    setting = predict_scenes.Setting(
        arguments=arguments,
        config=predict_scenes.with_samples(config, arguments.samples),
        trusted=trusted,
        reading=reading_of(config, arguments.bands, arguments.stretch),
        target=target,
    )
    record, code = predict_scenes.run(setting, names)
    if arguments.json:
        sys.stdout.write(json.dumps(to_json(record)) + "\n")
    _warn_of_toy(config)
    return code


def _refuse_flags_of_layers(arguments: argparse.Namespace, inputs: Sequence[Path]) -> None:
    """Demand that no flag of map layers stands beside an --out that is a folder of pictures.

    Raises:
        ConfigError: one does.
    """
    for name in ("gsd", "window", "bbox", "bbox_crs", "where", "min_area", "samples", "overwrite", "trust_paths"):
        if getattr(arguments, name):
            raise ConfigError(
                f"--{name.replace('_', '-')}: goes with a map layer; name one, such as --out result.gpkg, or --format"
            )
    for path in inputs:
        if is_address(str(path)) or (path.is_file() and refers(path)):
            check_raster(str(path), trust=False)


def _warn_of_toy(config: RunConfig) -> None:
    if str(config.policy.get("_target_")).endswith(".TinyPolicy"):
        sys.stderr.write(f"grasp-rl predict: {_TOY}\n")


def _answered(
    tasks: Sequence[Task], arguments: argparse.Namespace, overrides: Sequence[str]
) -> tuple[list[Record], list[Record], int]:
    """What was written for each task, what failed, and the exit code; the failure of a task alone is raised."""
    config, trusted = _config(arguments, overrides)
    reading = reading_of(config, arguments.bands, arguments.stretch)

    @lru_cache(maxsize=1)
    def read(path: Path) -> Image:
        image, description = read_described(path, reading=reading)
        if description:
            sys.stderr.write(printable(f"{path}: {description}") + "\n")
        crs = crs_of(path)
        if crs is not None:
            sys.stderr.write(
                f"{path}: has a place on the earth, in {crs}, which PNG and JSON lose; for a map layer, asked "
                f"window by window: --out {path.stem}.gpkg\n"
            )
        return image

    if len(tasks) == 1:
        read(tasks[0].image)  # refused before a model is loaded
    source = arguments.run or (Path(config.init_from) if config.init_from else None)
    predictor = Predictor(config, source, trusted)
    for task in tasks:
        check_query(task.query, predictor.policy.tokenizer.all_special_tokens)
    written: list[Record] = []
    failed: list[Record] = []
    code = 0
    for task in tasks:
        try:
            image = read(task.image)
            record = write(arguments.out, task, image, predictor.predict(image, task.query), predictor)
        except (ConfigError, OSError) as error:
            if len(tasks) == 1:
                raise
            failed.append({"image": str(task.image), "query": task.query, "error": of_system(error)})
            code = max(code, 2 if isinstance(error, ConfigError) else 1)
            sys.stderr.write(f"grasp-rl predict: {of_system(error)}\n")
            continue
        written.append(record)
        if not arguments.json:
            sys.stdout.write(_summary(record))
    if written:
        _warn_of_toy(config)
    return written, failed, code


def _config(arguments: argparse.Namespace, overrides: Sequence[str]) -> tuple[RunConfig, tuple[str, ...]]:
    """The config that the command line asks for, and the modules that it trusts."""
    overrides = [compose.as_it_stands(override) for override in overrides]
    trusted = compose.trusted_on(overrides)
    config = read_config(arguments.run, arguments.prompt, arguments.segmenter, overrides)
    overridden = {override.key_or_group for override in compose.parse_overrides(overrides)}
    parsing = config.parsing
    if arguments.repair is not None or "parsing.repair" not in overridden:
        parsing = replace(parsing, repair=arguments.repair is not False)
    if parsing.repair and "parsing.require_fence" not in overridden:
        parsing = replace(parsing, require_fence=False)
    return replace(config, parsing=parsing), trusted


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="grasp-rl predict", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "words", nargs="*", metavar="IMAGE|FOLDER|KEY=VALUE",
        help="images (PNG, JPEG, TIFF, WebP, JPEG 2000, BMP, GIF, PPM), folders of them, overrides as for evaluate",
    )  # fmt: skip
    parser.add_argument("--query", action="append", default=[], help="what to look for; give several, each is asked")
    parser.add_argument(
        "--queries", type=Path, metavar="FILE", help="a question a line, or a CSV with the columns query[,image]"
    )
    parser.add_argument("--run", type=Path, help="a run folder: its config and its best, else newest, checkpoint")
    parser.add_argument("--out", default="outputs/predict", help="where to write (default: %(default)s)")
    parser.add_argument("--prompt", metavar="SCHEME", help="a prompt scheme of conf/prompt")
    parser.add_argument("--segmenter", metavar="NAME", help="a segmenter of conf/segmenter")
    parser.add_argument("--bands", metavar="R,G,B", help="bands to show, from 1 (default: the run's, else the file's)")
    parser.add_argument("--stretch", metavar="HOW", help="auto, none or LOW,HIGH (default: the run's, else auto)")
    parser.add_argument(
        "--repair", action=argparse.BooleanOptionalAction, help="read near misses of the scheme (default: yes)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    scene_options.add_options(parser)
    return parser


def reading_of(config: RunConfig, bands: str | None, stretch: str | None) -> ImageReading:
    """How the image becomes 8-bit RGB: as the flags say, else as the run's data.

    Raises:
        ConfigError: there is no such way.
    """
    defaults = {key: config.data[key] for key in ("bands", "stretch") if config.data.get(key) is not None}
    return reading_from(bands, stretch, defaults)


def write(out: Path, task: Task, image: Image, prediction: Prediction, predictor: Predictor) -> Record:
    """Write mask, overlay and answer of ``task`` into ``out``; returns what the .json file holds.

    Raises:
        OSError: a file cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = {"mask": out / f"{task.name}_mask.png", "overlay": out / f"{task.name}_overlay.png"}
    write_image(files["mask"], prediction.mask)
    side = int(np.clip(max(image.shape[:2]), PANEL, _MAX_SIDE))
    overlay = draw_overlay(image, mask=prediction.mask, prompts=prediction.answer.prompts, side=side)
    write_image(files["overlay"], with_caption(overlay, task.query))
    config, area = predictor.config, int(np.count_nonzero(prediction.mask))
    record: Record = {
        "image": str(task.image),
        "size": list(image.shape[:2]),
        "query": task.query,
        "text": prediction.text,
        "thinking": prediction.answer.thinking,
        "status": str(prediction.answer.status),
        "prompts": [asdict(prompt) for prompt in prediction.answer.prompts],
        "mask_area": area,
        "mask_share": area / prediction.mask.size,
        "seconds": {"policy": round(prediction.policy_s, 4), "segmenter": round(prediction.segmenter_s, 4)},
        "policy": config.policy | {"loaded_from": None if predictor.weights is None else str(predictor.weights)},
        "segmenter": config.segmenter,
        "prompt": asdict(config.prompt),
        "parsing": asdict(config.parsing),
        "files": {name: str(file) for name, file in files.items()},
    }
    if prediction.inference:
        record["inference"] = prediction.inference
    write_json(out / f"{task.name}.json", record)
    return record


def _summary(record: Record) -> str:
    """One line for a person."""
    if record["status"] not in ("ok", "repaired"):
        result = f"the answer could not be read ({record['status']})"
    elif not record["prompts"]:
        result = "nothing in the image fits"
    else:
        count = len(record["prompts"])
        result = f"{count} instance{'s' * (count != 1)}, {100 * record['mask_share']:.1f} % of the image"
    return printable(f"{result}: {record['files']['overlay']}") + "\n"


if __name__ == "__main__":
    sys.exit(main())
