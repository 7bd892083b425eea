"""Checkpoints: written whole or not at all, proved by a manifest, pruned after, found again.

``<run>/checkpoints/step_000100/`` holds ``policy/`` (what plain transformers or PEFT reads), ``engine/`` (the
optimizer's state, a file a rank), ``state.json`` (step, ranks, place in the metrics) and ``manifest.json`` (size and
sha256 of every file). ``best.json`` names the step that validation likes best. A folder is built under a temporary
name, flushed to disk, and renamed; a reader never sees half of one, and one that was damaged later is known by its
manifest, which says what was written and not by whom: for that it is signed (:mod:`grasp_rl.runs.origin`).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from grasp_rl.config.errors import ConfigError
from grasp_rl.runs import origin
from grasp_rl.runs.run_dir import CONFIG, numbered, refuse_foreign, stages_in
from grasp_rl.utils.files import Record, parse_json, read_json, read_text, sha256_of

POLICY, ENGINE = "policy", "engine"
_STATE, _BEST, _MANIFEST = "state.json", "best.json", "manifest.json"

log = logging.getLogger(__name__)


def folder_of(run_dir: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` optimizer steps stands."""
    return run_dir / "checkpoints" / f"step_{step:06d}"


def part_of(run_dir: Path, step: int) -> Path:
    """Where it is built: every rank writes its share there before :func:`commit`."""
    final = folder_of(run_dir, step)
    return final.with_name(f".{final.name}.part")


@contextmanager
def building(run_dir: Path, step: int) -> Iterator[Path]:
    """An empty folder for the checkpoint of ``step``, which :func:`commit` makes final; gone if anything fails.

    Raises:
        OSError: it could not be written (disk full, no permission). Older checkpoints are untouched.
    """
    partial = part_of(run_dir, step)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / ENGINE).mkdir(parents=True)
        yield partial
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have words of their own for it
        shutil.rmtree(partial, ignore_errors=True)
        message = f"{folder_of(run_dir, step)}: could not be written ({error}); older checkpoints are untouched"
        raise OSError(message) from error


def commit(run_dir: Path, step: int, state: dict[str, Any]) -> Path:
    """Prove and rename what was built; an older folder of the same step is replaced."""
    partial, final = part_of(run_dir, step), folder_of(run_dir, step)
    (partial / _STATE).write_text(json.dumps({"step": step, **state}, indent=1) + "\n")
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    manifest = {
        str(path.relative_to(partial)): {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files
    }
    (partial / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    origin.sign(partial / _MANIFEST)
    for path in [*partial.rglob("*"), partial]:
        _flush(path)
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    _flush(final.parent)
    return final


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in words, or None if every file is what its manifest says."""
    try:
        manifest = parse_json(read_text(folder / _MANIFEST))
        known = {str(name): (int(said["bytes"]), str(said["sha256"])) for name, said in manifest.items()}
    except FileNotFoundError:
        return f"{_MANIFEST} is missing"
    except (OSError, AttributeError, KeyError, TypeError, ValueError):
        return f"{_MANIFEST} is damaged"
    result = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    result -= {_MANIFEST, origin.mark_of(Path(_MANIFEST)).name}
    for name in sorted(result ^ {*known, _STATE}):
        return f"{name} is not in the manifest" if name in result else f"{name} is missing"
    for name, (size, digest) in known.items():
        path = folder / name
        if path.stat().st_size != size or sha256_of(path) != digest:
            return f"{name} is damaged"
    return None


def is_own(run_dir: Path, step: int) -> bool:
    """Whether the checkpoint of ``step`` was written by a run of this user, as far as its manifest proves its files."""
    return origin.is_own(folder_of(run_dir, step) / _MANIFEST)


def newest_sound(run_dir: Path) -> int | None:
    """Step of the newest checkpoint that its manifest proves; damaged ones are named in the log and passed over."""
    for step in reversed(steps(run_dir)):
        wrong = damage(folder_of(run_dir, step))
        if wrong is None:
            return step
        log.warning("%s: %s; going back to the checkpoint before", folder_of(run_dir, step), wrong)
    return None


_STATE_KINDS: dict[str, Callable[[Any], bool]] = {
    "engine": lambda value: isinstance(value, str),
    "ranks": lambda value: type(value) is int and value >= 1,
    "best": lambda value: not value or (isinstance(value, list) and len(value) == 2 and _is_mark(*value)),
    "lost": lambda value: isinstance(value, dict) and all(type(count) is int for count in value.values()),
    "overdue": lambda value: isinstance(value, bool),
    "rows": lambda value: isinstance(value, list) and all(isinstance(row, dict) for row in value),
}
"""Values of state.json, and what they have to be."""


def load_state(run_dir: Path, step: int, needed: Sequence[str]) -> dict[str, Any]:
    """What :func:`commit` was given for ``step``.

    Raises:
        ConfigError: one of the values ``needed`` is missing or of another kind.
    """
    path = folder_of(run_dir, step) / _STATE
    state = read_json(path) or {}
    wrong = [key for key in needed if key not in state or not _STATE_KINDS[key](state[key])]
    if wrong:
        raise ConfigError(f"{path}: {wrong[0]} is missing or damaged; move {path.parent.name} away to go on before it")
    return state


def _is_mark(step: object, value: object) -> bool:
    return type(step) is int and isinstance(value, int | float) and not isinstance(value, bool)


def mark_best(run_dir: Path, step: int, value: float) -> None:
    """Record that the checkpoint of ``step`` has the best validation value so far."""
    path = run_dir / "checkpoints" / _BEST
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps({"step": step, "value": value}))
    _flush(partial)
    partial.rename(path)


def best(run_dir: Path) -> tuple[int, float] | None:
    """(step, validation value) of the best checkpoint, if one was marked and is there."""
    path = run_dir / "checkpoints" / _BEST
    if not path.is_file():
        return None
    record = read_json(path) or {}
    step, value = record.get("step"), record.get("value")
    if type(step) is not int or not isinstance(value, int | float):
        log.warning("%s: is damaged; no checkpoint counts as the best", path)
        return None
    return (step, float(value)) if folder_of(run_dir, step).is_dir() else None


def steps(run_dir: Path) -> list[int]:
    """Steps with a checkpoint, oldest first."""
    numbers = (numbered(path.name, "step_") for path in (run_dir / "checkpoints").glob("step_*") if path.is_dir())
    return sorted(step for step in numbers if step is not None)


def prune(run_dir: Path, keep_last: int) -> None:
    """Remove all but the newest ``keep_last`` checkpoints and the best one, and what was left half-built."""
    marked = best(run_dir)
    kept = {*steps(run_dir)[-keep_last:], *([marked[0]] if marked else [])}
    for step in steps(run_dir):
        if step not in kept:
            shutil.rmtree(folder_of(run_dir, step))
    for left in (run_dir / "checkpoints").glob(".step_*.part"):
        shutil.rmtree(left)


def described(run_dir: Path, step: int) -> tuple[list[Path], Record]:
    """Of the checkpoint of ``step``: the files that describe it, its manifest and model card, and facts about it."""
    folder, marked = folder_of(run_dir, step), best(run_dir)
    files = [path for path in (folder / _MANIFEST, folder / POLICY / "README.md") if path.is_file()]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    value = marked[1] if marked and marked[0] == step else None
    return files, {"step": step, "bytes": size, "best": value is not None, "val_reward": value}


def retain(run_dir: Path, keep: str) -> None:
    """Remove what ``checkpoint.keep`` does not want of a run that is done.

    Args:
        run_dir: of the run.
        keep: ``all``; ``best`` or ``last``, the policy of that checkpoint alone; or ``none``.
    """
    saved = steps(run_dir)
    if keep == "all" or not saved:
        return
    if keep == "none":
        shutil.rmtree(run_dir / "checkpoints")
        return
    marked = best(run_dir) if keep == "best" else None
    kept = marked[0] if marked else saved[-1]
    for step in saved:
        if step != kept:
            shutil.rmtree(folder_of(run_dir, step))
    for path in folder_of(run_dir, kept).iterdir():
        if path.is_dir() and path.name != POLICY:
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


def find_policy(source: Path) -> Path:
    """The policy folder that ``source`` means: a run (its best, else newest checkpoint), a checkpoint, or itself.

    A run that made no step of its own, as with algorithm=none, has the policy of its last stage.

    Raises:
        ConfigError: there is none, or the run folder holds what is not its own.
    """
    if (source / CONFIG).is_file():
        refuse_foreign(source)
    marked = best(source)
    candidates = [folder_of(source, marked[0]) / POLICY] if marked else []
    candidates += [folder_of(source, step) / POLICY for step in reversed(steps(source))]
    stages = stages_in(source)[-1:] if not steps(source) else []
    candidates += [folder_of(stage, step) / POLICY for stage in stages for step in reversed(steps(stage))]
    candidates += [source / POLICY, source]
    for candidate in candidates:
        if (candidate / "config.json").is_file() or (candidate / "adapter_config.json").is_file():
            return candidate
    raise ConfigError(
        f"init_from={str(source)!r}: no policy there; must be a run folder with checkpoints, one of its checkpoints, "
        "or a folder with config.json or adapter_config.json"
    )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
