"""`grasp-rl rehearse`: a recipe's own run in small: drawn data, small models of the same classes, two steps, here."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from grasp_rl.config import messages
from grasp_rl.config.errors import ConfigError
from grasp_rl.config.targets import to_config
from grasp_rl.launch import compose, process, worker
from grasp_rl.launch.process import Job
from grasp_rl.rehearsal import recipe as recipes
from grasp_rl.rehearsal import teaching
from grasp_rl.rehearsal.recipe import Recipe
from grasp_rl.rehearsal.small import small, taught
from grasp_rl.runs import environment
from grasp_rl.runs.run_dir import RESULT, launcher_lock
from grasp_rl.utils.console import PlainConsole
from grasp_rl.utils.files import Record, read_json, write_json, write_text

ROW = "rehearsal.json"
ANSWERS = ".answers"
"""Folder of policies that were taught, in the folder of all rehearsals, or of one of one's own."""
GIVEN = "given"
"""Folder of drawn data and small models, in that of a rehearsal."""
COLUMNS = (
    "recipe",
    "point",
    "command",
    "data",
    "reward",
    "protocol",
    "engine",
    "steps",
    "parsed",
    "learned",
    "seconds",
    "state",
)
HEAD = """What `{line}` ran: the recipe's own command, with drawn data in the layout of its dataset, a random
policy and segmenter of the same classes (a few hundred thousand parameters; the policy first learns the form of the
answers from at most {steps} steps of demonstrations), at most two steps, two processes, two questions a step, four
completions a question, images of 112 x 112 and answers of 160 tokens. parsed: share of the answers in training that
could be read, the lowest of the run's turns and tasks. learned: whether the gradient was not 0; of fine-tuning neither
is recorded.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``grasp-rl rehearse <argv>``: exit 0 where all went through, 1 where one did not, 2 for a wrong line."""
    arguments = _parser().parse_args(argv)
    console = PlainConsole(stderr=arguments.json, highlight=False, markup=False, soft_wrap=True)
    try:
        overrides = _overrides(arguments.names)
        trusted, places = compose.trusted_on(overrides), compose.places_on(overrides)
        named = [name for name in arguments.names if "=" not in name]
        chosen = recipes.names() if arguments.all else named
        if arguments.list:
            console.print("\n".join([*recipes.names(), *recipes.own(places)]))
            return 0
        if not chosen:
            raise ConfigError("rehearse: name a recipe, or all of them with --all; --list names them")
        selected = [recipes.recipe(name, places) for name in chosen]
        if arguments.again:
            shutil.rmtree(arguments.out / ANSWERS, ignore_errors=True)
        rows = [
            row
            for recipe in selected
            for row in _rehearsed(recipe, overrides if recipe.own else [], trusted, arguments, console)
        ]
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"grasp-rl rehearse: {messages.of_system(error)}\n")
        return 2
    words = [*(["--all"] if arguments.all else chosen), *overrides, *(["--first"] if arguments.first else [])]
    line = f"grasp-rl rehearse {shlex.join(words)}"
    write_text(arguments.out / "rehearsals.md", "\n".join(_table(rows, line)) + "\n")
    console.print(f"table: {arguments.out / 'rehearsals.md'}")
    if arguments.json:
        sys.stdout.write(json.dumps(rows) + "\n")
    return 0 if all(row["state"] == "done" for row in rows) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="grasp-rl rehearse", description=(__doc__ or "").split(": ", 1)[1])
    parser.add_argument(
        "names",
        nargs="*",
        metavar="RECIPE",
        help="such as think2seg_rs/main_3b; every point of a grid; one of your own with "
        "hydra.searchpath=[file://FOLDER] and trusted_modules=[MODULE]",
    )
    parser.add_argument("--all", action="store_true", help="every recipe")
    parser.add_argument("--first", action="store_true", help="of a grid the first point alone")
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/rehearsals"), metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument("--again", action="store_true", help="those that went through before, too")
    parser.add_argument("--list", action="store_true", help="the names of all recipes")
    parser.add_argument("--json", action="store_true", help="one JSON list on stdout")
    return parser


def _overrides(words: Sequence[str]) -> list[str]:
    """Those of ``words`` that are overrides and no names.

    Raises:
        ConfigError: one of them is not for a rehearsal.
    """
    overrides = [word for word in words if "=" in word]
    for word in overrides:
        if not word.startswith(recipes.TOLD):
            raise ConfigError(
                f"rehearse {word}: takes {'... and '.join(recipes.TOLD)}... alone; what is run is what the experiment "
                "says: write it there"
            )
    return overrides


def _rehearsed(
    recipe: Recipe,
    overrides: Sequence[str],
    trusted: tuple[str, ...],
    arguments: argparse.Namespace,
    console: PlainConsole,
) -> Iterator[Record]:
    """A row for each point of ``recipe``; one of this package that went through before is read, not run."""
    commit = (environment.git(Path(__file__).parent) or {}).get("commit")
    for number, (point, job) in enumerate(_points(recipe, overrides, trusted if recipe.own else ())):
        if number and arguments.first:
            return
        folder = (arguments.out / recipe.name / (point or "run")).absolute()
        answers = arguments.out.absolute() / ANSWERS
        before = read_json(folder / ROW)
        if recipe.own:  # no commit says whether it is still the same
            before, answers = None, folder / ANSWERS
            for made in (answers, folder / GIVEN):
                shutil.rmtree(made, ignore_errors=True)
        if before and before["state"] == "done" and before["commit"] == commit and not arguments.again:
            yield before
            continue
        console.print(f"{recipe.name} {point}".rstrip(), end=" ")
        row = (
            {"recipe": recipe.name, "point": point, "command": recipe.command}
            | _run(job, folder, answers, commit)
            | {"commit": commit}
        )
        write_json(folder / ROW, row)
        console.print(f"{row['state']} in {row['seconds']:.0f} s" + (f": {row['error']}" if row["error"] else ""))
        yield row


UNREAD = ("data",)
"""Groups whose folders need not be named: they are drawn."""


def _points(recipe: Recipe, overrides: Sequence[str], trusted: tuple[str, ...]) -> list[tuple[str, Job]]:
    """What the recipe's command line would run, with what tells a point of a grid from the others."""
    words = [f"command={recipe.command}", *recipe.words, *overrides]
    with compose.hydra(recipe.command) as engine:
        if compose.is_sweep(engine, words):
            return [(job.run_dir.name, job) for job in compose.sweep(engine, words, trusted, UNREAD)[1]]
        return [("", compose.single(engine, words, trusted, UNREAD))]


def _run(job: Job, folder: Path, answers: Path, commit: str | None) -> Record:
    began = time.monotonic()
    config = small(job.config, folder / GIVEN) | {"run_dir": str(folder / "run")}
    about = {
        "data": config["data"].get("name") or str(config["data"]["_target_"]).rpartition(".")[2],
        "reward": ", ".join(config["reward"].get("terms") or config["reward"].get("stages") or ()),
        "protocol": config["evaluation"]["protocol"].get("name", "all"),
        "engine": f"{config['engine']['name']} x {config['engine']['nproc']}",
    }
    try:
        if job.config["command"] != "sft" and "path" in config["policy"]:
            config["policy"] |= {"path": str(_with_answers(job, config, answers, commit))}
    except ConfigError as error:
        return about | {"state": "failed", "error": str(error), "seconds": time.monotonic() - began} | _steps(folder)
    made = replace(job, run_dir=folder / "run", config=config)
    made.run_dir.mkdir(parents=True, exist_ok=True)
    stop = process.StopFile(made.run_dir)
    with launcher_lock(made.run_dir), stop.listening():
        process.prepare(made, ["grasp-rl", "rehearse"], [], resume=False)
        code = process.run_worker(made, stop)
    return (
        about
        | {
            "state": "done" if code == 0 and (made.run_dir / RESULT).exists() else "failed",
            "error": process.failure(made.run_dir) if code else "",
            "seconds": time.monotonic() - began,
        }
        | _steps(made.run_dir)
    )


def _with_answers(job: Job, config: Record, folder: Path, commit: str | None) -> Path:
    """The folder of the small policy that answers in the recipe's form; recipes that ask alike share it.

    Args:
        job: the recipe's, whose config's names say what the policy is taught.
        config: the small one.
        folder: of taught policies.
        commit: of this code.
    """
    given = job.config
    asked = {key: given[key] for key in ("policy", "data", "prompt", "parsing", "segmenter", "seed")}
    asked |= {"turns": given["rollout"]["turns"], "tasks": given["rollout"]["tasks"]}
    asked |= {name: given["sft"][name] for name in ("reasoning", "clicks")}
    key = sha256(json.dumps(asked | {"commit": commit}, sort_keys=True).encode()).hexdigest()[:12]
    made = folder / key
    if not made.exists():
        checked = to_config(taught(config, folder / f"{key}.run"))
        components = worker.build(checked, job.trusted)
        teaching.teach(checked, components)
        part = folder / f"{key}.{os.getpid()}"
        components.policy.save(part)
        try:
            part.rename(made)
        except OSError:
            if not made.exists():
                raise
            shutil.rmtree(part)  # another rehearsal has taught the same one meanwhile
    return made


def _steps(run_dir: Path) -> Record:
    """What metrics.jsonl says of the steps."""
    path = run_dir / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    steps = [row for row in rows if "loss" in row]
    read: dict[str, list[float]] = {}
    for row in steps:
        for part in (key.removesuffix("parse/ok") for key in row if key.endswith("parse/ok")):
            read.setdefault(part, []).append(row[f"{part}parse/ok"] + row.get(f"{part}parse/repaired", 0.0))
    return {
        "steps": len(steps),
        "parsed": min((sum(shares) / len(shares) for shares in read.values()), default=None),
        "learned": any(row.get("grad_norm", 0.0) > 0 for row in steps)
        if any("grad_norm" in row for row in steps)
        else None,
    }


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.2f}" if isinstance(value, float) else "-" if value is None or value == "" else str(value)


def _table(rows: Sequence[Record], line: str) -> Iterator[str]:
    yield HEAD.format(line=line, steps=teaching.STEPS)
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "|---" * len(COLUMNS) + "|"
    for row in rows:
        cells = [row[column] for column in COLUMNS]
        yield f"| {' | '.join(map(_cell, cells))} |"
    commits = sorted({str(row["commit"])[:8] for row in rows})
    yield f"\nCommit {', '.join(commits)}; {sum(row['seconds'] for row in rows) / 60:.0f} minutes in all."


if __name__ == "__main__":
    sys.exit(main())
