"""Checkpoints: written whole or not at all, pruned after, found again.

``<run>/checkpoints/step_000100/`` holds ``policy/`` (what plain transformers or PEFT reads) and ``state.pt``
(optimizer, step). ``best.json`` names the step that validation likes best. A folder is built under a temporary name,
flushed to disk, and renamed; a reader never sees half of one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from grasp_rl.config import ConfigError

_STATE, _BEST = "state.pt", "best.json"


def folder_of(run_dir: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` optimizer steps stands."""
    return run_dir / "checkpoints" / f"step_{step:06d}"


def save(run_dir: Path, step: int, save_policy: Callable[[Path], None], state: dict[str, Any]) -> Path:
    """Write the checkpoint of ``step``; an older folder of the same step is replaced.

    Raises:
        OSError: it could not be written (disk full, no permission). Older checkpoints are untouched, and nothing of
            this one is left to fill the disk.
    """
    final = folder_of(run_dir, step)
    partial = final.with_name(f".{final.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_policy(partial / "policy")
        torch.save({"step": step, **state}, partial / _STATE)
        for path in [*partial.rglob("*"), partial]:
            _flush(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have words of their own for it
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(f"{final}: could not be written ({error}); older checkpoints are untouched") from error
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    _flush(final.parent)
    return final


def mark_best(run_dir: Path, step: int, value: float) -> None:
    """Record that the checkpoint of ``step`` has the best validation value so far."""
    path = run_dir / "checkpoints" / _BEST
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps({"step": step, "value": value}))
    partial.rename(path)


def best(run_dir: Path) -> tuple[int, float] | None:
    """(step, validation value) of the best checkpoint, if one was marked and is there."""
    path = run_dir / "checkpoints" / _BEST
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    return (record["step"], record["value"]) if folder_of(run_dir, record["step"]).is_dir() else None


def steps(run_dir: Path) -> list[int]:
    """Steps with a checkpoint, oldest first."""
    return sorted(int(path.name.removeprefix("step_")) for path in (run_dir / "checkpoints").glob("step_*"))


def prune(run_dir: Path, keep_last: int) -> None:
    """Remove all but the newest ``keep_last`` checkpoints and the best one."""
    marked = best(run_dir)
    kept = {*steps(run_dir)[-keep_last:], *([marked[0]] if marked else [])}
    for step in steps(run_dir):
        if step not in kept:
            shutil.rmtree(folder_of(run_dir, step))


def load_state(run_dir: Path, step: int) -> dict[str, Any]:
    """The training state of ``step``; tensors and plain values only (``weights_only``)."""
    path = folder_of(run_dir, step) / _STATE
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def find_policy(source: Path) -> Path:
    """The policy folder that ``source`` means: a run (its best, else newest checkpoint), a checkpoint, or itself.

    Raises:
        ConfigError: there is none.
    """
    marked = best(source)
    candidates = [folder_of(source, marked[0]) / "policy"] if marked else []
    candidates += [folder_of(source, step) / "policy" for step in reversed(steps(source))]
    candidates += [source / "policy", source]
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
