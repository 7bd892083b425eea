"""The launcher: compose, check everything, start the worker, watch it, say how it ended.

No torch here. What is wrong with a command line is one line on stderr and exit code 2 before any model loads. The
worker reads the run folder and nothing else; `python -P -m grasp_rl.launch.worker <run>/config.yaml` is the same run by
hand.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from omegaconf import OmegaConf

from grasp_rl.config import messages
from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import RunConfig
from grasp_rl.config.targets import check_components, to_config
from grasp_rl.launch import compose, process, sweeper
from grasp_rl.launch.compat import Hydra
from grasp_rl.launch.ended import how_to_go_on, numbers, summary, took, where_next
from grasp_rl.launch.job import run_job
from grasp_rl.launch.paths import check_paths
from grasp_rl.launch.process import Job, StopFile
from grasp_rl.runs import data_record, received
from grasp_rl.runs.asked import FILE
from grasp_rl.runs.progress import ProgressWatcher
from grasp_rl.runs.run_dir import (
    CONFIG,
    STATUS,
    launcher_lock,
    run_lock,
    stages_in,
    state_of,
)
from grasp_rl.utils.console import PlainConsole
from grasp_rl.utils.files import Record, to_json

_PLACES = ("nproc", "nnodes", "node_rank", "rendezvous", "hostfile", "timeout_s")
_RESUMABLE = (
    *("algorithm.steps", "checkpoint.", "evaluation.", "tracker.", "data.allow_outside"),
    *(f"engine.{key}" for key in _PLACES),
)
_INTERRUPTED = 130


@dataclass(frozen=True)
class CommandLine:
    """One command line and where its words go."""

    command: str
    argv: tuple[str, ...]
    as_json: bool
    report: bool
    console: PlainConsole


def main(command: str, argv: Sequence[str]) -> int:
    """Run ``grasp-rl <command> <argv>`` and return its exit code."""
    as_json, report = "--json" in argv, "--report" in argv
    rest = [word for word in argv if word not in ("--json", "--report")]
    if command in ("score", "rescore", "diagnose"):
        rest = _with_predictions(rest)
    console = PlainConsole(stderr=as_json, highlight=False, markup=False, soft_wrap=True)
    command_line = CommandLine(command, ("grasp-rl", command, *argv), as_json, report, console)
    try:
        return _run(command_line, rest)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read our output has enough
        return 1
    except (ConfigError, OSError) as error:
        return _refuse(command_line, error)


def _with_predictions(args: list[str]) -> list[str]:
    """``args`` with the path that stands by itself as ``predictions``; it may hold a ``=`` where it stands first."""
    result = list(args)
    for place, word in enumerate(args):
        free = "=" not in word and not word.startswith("-") and (place == 0 or not args[place - 1].startswith("-"))
        if free or (place == 0 and Path(word).exists()):
            result[place] = f"predictions={word}"
    return result


def _run(command_line: CommandLine, args: Sequence[str]) -> int:
    flags = compose.parse_flags(args)
    if "resume=auto" in flags.overrides:
        return _begin_or_go_on(command_line, [word for word in flags.overrides if word != "resume=auto"])
    if any(word.startswith("resume=") for word in flags.overrides):
        return _resume(command_line, flags)
    if any(word.startswith("command=") for word in flags.overrides):
        raise ConfigError("command: is the word after grasp-rl, not a value")
    flags.overrides.insert(0, f"command={command_line.command}")
    trusted = compose.trusted_on(flags.overrides)
    with compose.hydra(command_line.command) as engine:
        if flags.help or flags.hydra_help or flags.cfg or flags.info or flags.shell_completion:
            return _show(command_line, engine, flags)
        if flags.multirun or compose.is_sweep(engine, flags.overrides):
            return _sweep(command_line, engine, flags.overrides, trusted)
        return _single(
            command_line, compose.single(engine, flags.overrides, trusted), flags.overrides[1:], resume=False
        )


def _join(command_line: CommandLine, job: Job) -> int:
    """Be another node of a run."""
    number = job.config["engine"]["node_rank"]
    command_line.console.print(f"{command_line.command}: node {number} of {job.run_dir}")
    stop = StopFile(job.run_dir / f"node{number}")
    with stop.listening():
        code = process.join(job, stop)
    command_line.console.print(f"node {number} ended with code {code}")
    return code


def _begin_or_go_on(command_line: CommandLine, overrides: list[str]) -> int:
    """`resume=auto`: the same line begins a run, goes on with it, and says that it is done."""
    if not any(word.startswith("run_dir=") for word in overrides):
        raise ConfigError("resume=auto: needs the folder of the run, run_dir=FOLDER")
    overrides = [f"command={command_line.command}", *overrides]
    with compose.hydra(command_line.command) as engine:
        job = compose.single(engine, overrides, compose.trusted_on(overrides))
    check_paths(to_config(job.config))
    if process.placed(job).config["engine"]["node_rank"]:
        return _single(command_line, job, overrides[1:], resume=False)
    with launcher_lock(job.run_dir):
        _refuse_other_data(job.run_dir)
        claim = process.claim(job, again=True)
        if claim == "done":
            command_line.console.print(f"{job.run_dir}: done before")
            return 0
        if claim == "resume":
            after = next(filter(None, map(_last_checkpoint, (job.run_dir, *reversed(stages_in(job.run_dir))))), "")
            after = after or "no checkpoint yet"
            command_line.console.print(f"going on after {after}; the log says from where")
            if changed := process.other_commit(job.run_dir):
                command_line.console.print(f"warning: {changed}")
        return _start(command_line, process.placed(job), overrides[1:], resume=claim == "resume")


def _refuse(command_line: CommandLine, error: ConfigError | OSError) -> int:
    message = messages.of_system(error)
    sys.stderr.write(f"grasp-rl {command_line.command}: {message}\n")
    if command_line.as_json:
        _print_json({"state": "refused", "error": {"type": type(error).__name__, "message": message}})
    return 2 if isinstance(error, ConfigError) else 1


def _show(command_line: CommandLine, engine: Hydra, flags: argparse.Namespace) -> int:
    """Show something instead of running."""
    name, overrides = compose.CONFIG_NAME, flags.overrides
    with compose.explained():
        if flags.help:
            sys.stdout.write(compose.usage(engine, command_line.command, overrides))
        elif flags.hydra_help:
            engine.hydra_help(name, flags.parser, flags)
        elif flags.cfg:
            engine.show_cfg(name, overrides, flags.cfg, flags.package, flags.resolve)
            with contextlib.suppress(ConfigError):  # a run that misses a value has its config shown all the same
                adopted = compose.single(engine, overrides, compose.trusted_on(overrides)).adopted
                sys.stderr.write(
                    f"# in a run, {FILE} beside the weights adds: {' '.join(adopted)}\n" if adopted else ""
                )
        elif flags.info:
            engine.show_info(flags.info, name, overrides)
        else:
            engine.shell_completion(name, [word for word in overrides if not word.startswith("command=")])
    return 0


def _single(command_line: CommandLine, job: Job, overrides: Sequence[str], *, resume: bool) -> int:
    check_paths(to_config(job.config))
    job = process.placed(job)
    if job.config["engine"]["node_rank"]:
        return _join(command_line, job)
    with launcher_lock(job.run_dir):
        if resume and state_of(job.run_dir) == "running":
            raise ConfigError(f"resume={job.run_dir}: must hold a run that ended; it is still going on")
        if resume:
            _refuse_other_data(job.run_dir)
        else:
            process.claim(job, again=False)
        return _start(command_line, job, overrides, resume=resume)


def _last_checkpoint(run_dir: Path) -> str:
    """Name of the newest checkpoint, behind that of its stage; empty where there is none."""
    steps = sorted(path.name for path in (run_dir / "checkpoints").glob("step_*"))
    stage = f"{run_dir.name}/" if (run_dir.parent / CONFIG).is_file() else ""
    return f"{stage}{steps[-1]}" if steps else ""


def _with_stages(run_dirs: Sequence[Path]) -> list[Path]:
    """Each run directory, and those of its earlier stages in it that have begun."""
    return [path for run_dir in run_dirs for path in (run_dir, *stages_in(run_dir))]


def _tell_adopted(command_line: CommandLine, jobs: Sequence[Job]) -> None:
    """Say what the folder of the weights decided about how its policy is asked."""
    for adopted in dict.fromkeys(job.adopted for job in jobs if job.adopted):
        command_line.console.print(f"asked as {FILE} beside the weights says: {' '.join(adopted)}")


def _tell_unused(command_line: CommandLine, job: Job, overrides: Sequence[str]) -> None:
    """Say which keys of the command line are another command's."""
    command, regime = command_line.command, job.config.get("regime") or {}
    owners = {"fit": "fit-segmenter"} if command != "fit-segmenter" else {}
    if command not in ("sft", "fit-segmenter") and not regime.get("sft"):
        owners["sft"] = "sft"
    for key in compose.keys_of(overrides):
        owner = owners.get(key.partition(".")[0])
        if owner:
            command_line.console.print(f"{key}: goes with grasp-rl {owner}; {command} takes no notice of it")


def _refuse_other_data(run_dir: Path) -> None:
    if change := data_record.sentence(run_dir):
        raise ConfigError(
            f"resume={run_dir}: {change}; scores before and after would be of different answers: put it back, or begin "
            f"a new run with init_from={run_dir}"
        )


def _start(command_line: CommandLine, job: Job, overrides: Sequence[str], *, resume: bool) -> int:
    """Prepare a run directory that is held, start its worker, watch it and say how it ended."""
    process.prepare(job, command_line.argv, overrides, resume=resume)
    command_line.console.print(f"{command_line.command}: {job.run_dir}")
    _tell_adopted(command_line, [job])
    _tell_unused(command_line, job, overrides)
    stop = StopFile(job.run_dir)
    with stop.listening(), ProgressWatcher(command_line.console, lambda: _with_stages([job.run_dir])):
        code = process.run_worker(job, stop)
    ended = process.outcome(job.run_dir)
    command_line.console.print(f"{ended['state']} after {took(ended)}")
    if code == 0:
        for table in numbers(ended["result"] or {}):
            command_line.console.print(table)
        for line in where_next(job.run_dir):
            command_line.console.print(line)
    if ended["state"] == "failed":
        sys.stderr.write(process.failure(job.run_dir) + "\n")
    if ended["state"] == "interrupted" and command_line.command in process.RESUMED:
        command_line.console.print(how_to_go_on(command_line.command, job.run_dir))
    if command_line.report and code == 0:
        _report(job.run_dir)
    if command_line.as_json:
        _print_json(ended["result"] if code == 0 and ended["result"] else ended)
    return code


def _resume(command_line: CommandLine, flags: argparse.Namespace) -> int:
    """Go on with a run from its own config.yaml; Hydra's defaults have no say."""
    changes = {o.key_or_group: o for o in compose.parse_overrides(flags.overrides)}
    run_dir = Path(str(changes.pop("resume").value()))
    trusted = compose.trusted_on(flags.overrides)
    changes.pop("trusted_modules", None)
    if flags.multirun or command_line.command not in process.RESUMED:
        raise ConfigError(
            "resume: goes with `grasp-rl train` or fit-segmenter and one run; a sweep is started again with "
            "hydra.sweep.dir"
        )
    raw = received.read(run_dir, changes, f"resume={run_dir}") | {"trust_checkpoint": False}
    said_again = received.decisions(raw, [run_dir])
    for key, change in changes.items():
        again = key in said_again and (key.startswith("generator.") or change.value() == said_again[key])
        if change.is_delete() or not (again or key == "trust_checkpoint" or key.startswith(_RESUMABLE)):
            allowed = ", ".join(key + ("*" if key.endswith(".") else "") for key in _RESUMABLE)
            raise ConfigError(
                f"{key}: cannot change when a run goes on; only {allowed} can; a new run takes its weights by "
                f"init_from={run_dir}"
            )
    with compose.explained():
        config = OmegaConf.merge(OmegaConf.structured(RunConfig), raw)
        OmegaConf.set_struct(config, True)
        for key, change in changes.items():
            OmegaConf.update(config, key, change.value(), force_add=change.is_add())
        checked = to_config(OmegaConf.to_container(config))  # type: ignore[arg-type]
    if (kept := OmegaConf.select(config, "checkpoint.keep")) != "all" and state_of(run_dir) == "done":
        raise ConfigError(
            f"resume={run_dir}: is done and kept no optimizer to go on with (checkpoint.keep={kept}); begin a new run "
            f"with init_from={run_dir}"
        )
    if tuple(checked.trusted_modules) != trusted:
        raise ConfigError(f"trusted_modules: the run trusts {checked.trusted_modules}; say so again to go on with it")
    check_components(checked, trusted)
    if checked.command != command_line.command or state_of(run_dir) == "running":
        result = (
            f"a run of {checked.command}" if checked.command != command_line.command else "a run that is still going on"
        )
        raise ConfigError(f"resume={run_dir}: must hold a run of {command_line.command} that ended; found {result}")
    steps = (raw.get("algorithm") or {}).get("steps")
    if checked.optimizer.schedule != "constant" and steps is not None and steps != checked.algorithm.steps:
        command_line.console.print(
            f"optimizer.schedule={checked.optimizer.schedule} runs over algorithm.steps: over "
            f"{checked.algorithm.steps} in place of {steps} steps, so the learning rate jumps where the run goes on"
        )
    if not changes and state_of(run_dir) == "done":
        command_line.console.print(f"{run_dir}: done before; to go on with more steps: algorithm.steps=N")
        if command_line.as_json:
            _print_json(process.outcome(run_dir)["result"] or {})
        return 0
    job = Job(run_dir=run_dir, config=asdict(checked) | {"run_dir": str(run_dir)}, trusted=trusted)
    return _single(command_line, job, flags.overrides, resume=True)


def _sweep(command_line: CommandLine, engine: Hydra, overrides: list[str], trusted: tuple[str, ...]) -> int:
    folder, jobs, fixed = compose.sweep(engine, overrides, trusted)
    if compose.launcher(engine, overrides) == "submitit_slurm" and shutil.which("srun") is None:
        raise ConfigError("launcher=slurm: no srun on this machine; start the sweep where SLURM takes jobs")
    for job in jobs:
        check_paths(to_config(job.config))
    with run_lock(folder):
        return _drive(command_line, engine, overrides, trusted, folder, jobs, fixed)


def _drive(
    command_line: CommandLine,
    engine: Hydra,
    overrides: list[str],
    trusted: tuple[str, ...],
    folder: Path,
    jobs: Sequence[Job],
    fixed: list[str],
) -> int:
    """Run the jobs of a sweep whose folder is held."""
    for job in jobs:
        if change := data_record.sentence(job.run_dir):
            command_line.console.print(f"{job.run_dir.name}: {change}; it is run anew")
    waiting = [job for job in jobs if process.claim(job, again=True) != "done"]
    for changed in filter(None, (process.other_commit(job.run_dir) for job in jobs)):
        command_line.console.print(f"warning: {changed}")
    kept = f", {len(jobs) - len(waiting)} of them done before" if len(waiting) < len(jobs) else ""
    command_line.console.print(f"{command_line.command}: {len(jobs) or 'jobs'} jobs in {folder}{kept}")
    _tell_adopted(command_line, jobs)
    run_dirs = [job.run_dir for job in jobs]

    def folders() -> list[Path]:
        return run_dirs or sorted(path.parent for path in folder.glob(f"*/{STATUS}"))

    stop = StopFile(folder)
    said = compose.keys_of(overrides)
    task = partial(run_job, trusted=trusted, said=said, command=command_line.argv, stop=stop, driver=os.getpid())
    with stop.listening(), ProgressWatcher(command_line.console, lambda: _with_stages(folders())):
        search = sweeper.multirun(engine, compose.CONFIG_NAME, task, [*overrides, *fixed, "hydra.mode=MULTIRUN"])
        stopped = bool(stop.signals())
    outcomes = [process.outcome(run_dir) for run_dir in folders()]
    command_line.console.print(summary(outcomes))
    for ended in outcomes:
        if ended["error"]:
            command_line.console.print(f"{Path(ended['run_dir']).name}: {ended['error']['message']}")
    for sentence in search.sentences() if search else ():
        command_line.console.print(sentence)
    if any(ended["state"] == "done" for ended in outcomes):
        command_line.console.print(f"next: grasp-rl report {shlex.quote(str(folder))}")
    if command_line.report:
        _report(folder)
    if command_line.as_json:
        _print_json({"sweep_dir": str(folder), "jobs": outcomes})
    if stopped:
        return _INTERRUPTED
    return 0 if not (search and search.failures) and all(ended["state"] == "done" for ended in outcomes) else 1


def _report(folder: Path) -> None:
    """Write the report beside the runs; it prints its own path."""
    sys.stdout.flush()
    subprocess.run(
        [sys.executable, "-P", "-m", "grasp_rl.reporting.render", str(folder)], stdout=sys.stderr, check=False
    )


def _print_json(value: Record) -> None:
    sys.stdout.write(json.dumps(to_json(value), allow_nan=False) + "\n")
