"""`grasp-rl wandb-sweep`: a grid of conf/experiment as files for `wandb sweep` (Weights & Biases)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from grasp_rl.config import messages
from grasp_rl.config.errors import ConfigError
from grasp_rl.launch import compose
from grasp_rl.utils.files import write_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``grasp-rl wandb-sweep <argv>``: exit 0, or 2 for a wrong line."""
    parser = argparse.ArgumentParser(prog="grasp-rl wandb-sweep", description=(__doc__ or "").split(": ", 1)[1])
    parser.add_argument("grid", help="such as tiny/reward")
    parser.add_argument(
        "words", nargs="*", metavar="KEY=VALUE", help="overrides that all its runs get, such as data.root=FOLDER"
    )
    parser.add_argument(
        "--metric", default="val/reward", help="that W&B shows as the sweep's own (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="for the files (default: here)")
    arguments = parser.parse_args(argv)
    try:
        written = sweeps(arguments.grid, arguments.words, arguments.metric)
        for name, sweep in written.items():
            path = arguments.out / f"{name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, yaml.safe_dump(sweep, sort_keys=False, width=1000))
            sys.stdout.write(f"{path}    # wandb sweep {path}, then wandb agent ENTITY/PROJECT/SWEEP\n")
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"grasp-rl wandb-sweep: {messages.of_system(error)}\n")
        return 2
    return 0


def sweeps(grid: str, words: Sequence[str], metric: str = "val/reward") -> dict[str, dict[str, Any]]:
    """The sweep files of a grid, by name: one, or one for each row of its paired lists, which W&B does not know.

    Args:
        grid: an experiment that sweeps.
        words: overrides of all its runs.
        metric: of the sweep.

    Raises:
        ConfigError: there is no such experiment, it sweeps nothing, or something that is no list of choices.
    """
    overrides = ["command=train", f"experiment={grid}", *words]
    with compose.hydra("train") as engine:
        if not compose.is_sweep(engine, overrides):
            raise ConfigError(f"{grid}: sweeps nothing; a run is started by grasp-rl train experiment={grid}")
        jobs = compose.sweep(engine, overrides, ())[1]
    if not jobs:
        raise ConfigError(f"{grid}: decides its jobs while it runs; start it by grasp-rl train -m")
    points = [dict(word.split("=", 1) for word in job.point) for job in jobs]
    free = [key for key in points[0] if len({point[key] for point in points}) > 1]
    known = {word.partition("=")[0] for word in overrides}
    common = {k: v for k, v in points[0].items() if k not in (*free, *known) and not k.startswith("hydra")}
    rows = _rows(points, free)
    name = grid.replace("/", "_")
    return {
        (name if len(rows) == 1 else f"{name}_{number}"): _file(grid, words, metric, common | fixed, swept)
        for number, (fixed, swept) in enumerate(rows)
    }


def _rows(
    points: Sequence[Mapping[str, str]], keys: Sequence[str]
) -> list[tuple[dict[str, str], dict[str, list[str]]]]:
    """The points as products: what is fixed in each, and the values that are multiplied.

    Keys that move together leave a product incomplete; they are fixed, a product for each of their rows.
    """
    values = {key: list(dict.fromkeys(point[key] for point in points)) for key in keys}
    count = 1
    for options in values.values():
        count *= len(options)
    if count == len(points):
        return [({}, values)]
    paired = [key for key in keys if any(_together(points, key, other) for other in keys if other != key)]
    if not paired:
        raise ConfigError("its points are no product of lists; start it by grasp-rl train -m")
    fixed = dict.fromkeys(tuple(point[key] for key in paired) for point in points)
    rest = [key for key in keys if key not in paired]
    return [
        (dict(zip(paired, row, strict=True)),
         {key: list(dict.fromkeys(p[key] for p in points if tuple(p[k] for k in paired) == row)) for key in rest})
        for row in fixed
    ]  # fmt: skip


def _together(points: Sequence[Mapping[str, str]], key: str, other: str) -> bool:
    """Whether not every value of ``key`` meets every value of ``other``."""
    pairs = {(point[key], point[other]) for point in points}
    return len(pairs) < len({a for a, _ in pairs}) * len({b for _, b in pairs})


def _file(
    grid: str, overrides: Sequence[str], metric: str, fixed: Mapping[str, str], swept: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    line = [f"experiment={grid}", "hydra.mode=RUN", "launcher=serial", "tracker=wandb", *overrides]
    line += [f"{key}={value}" for key, value in fixed.items()]
    return {
        "program": "grasp-rl",
        "method": "grid",
        "metric": {"name": metric, "goal": "maximize"},
        "command": ["grasp-rl", "train", *line, "${args_no_hyphens}"],
        "parameters": {key: {"values": [_value(value) for value in values]} for key, values in swept.items()},
    }


def _value(word: str) -> Any:
    """A number as a number, so that W&B can plot it; everything else, lists included, as the word that it is."""
    try:
        value = json.loads(word)
    except json.JSONDecodeError:
        return word
    return value if isinstance(value, int | float) and not isinstance(value, bool) else word


if __name__ == "__main__":
    sys.exit(main())
