"""What runs took, in time, machines and tokens, and which of their checkpoints was tested."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from grasp_rl.reporting.results import NOTHING, of
from grasp_rl.reporting.types import Scored, StudiedRun, number
from grasp_rl.runs.progress import duration
from grasp_rl.utils.files import Record


def cost(run: StudiedRun) -> Record:
    """Seconds per optimizer step: the median, which the first step's warm-up does not move."""
    choice = tested(run)

    def median(name: str) -> float:
        values = [value for row in run.timings if (value := number(row, name)) is not None]
        return statistics.median(values) if values else math.nan

    parts = {name: median(f"{name}_s") for name in ("rollout", "reward", "update")}
    step = median("step_s")
    known = [value for value in parts.values() if math.isfinite(value)]
    shares = [(name, 100 * value / sum(known)) for name, value in parts.items() if sum(known) > 0]
    return {
        "label": run.label,
        "steps": len(run.timings) or None,
        "wall": duration(run.seconds),
        "hours": NOTHING if (taken := hours(run)) is None else f"{taken[0]:.2f} {taken[1]}",
        "tokens": _tokens(run),
        "checkpoint": f"step {choice[0]} of {choice[1]}" if choice else NOTHING,
        "chosen": choice[2] if choice else "",
        "step": f"{step:.2f}" if math.isfinite(step) else NOTHING,
        "parts": [f"{value:.2f}" if math.isfinite(value) else NOTHING for value in parts.values()],
        "shares": [(name, share) for name, share in shares if math.isfinite(share)],
        "evaluation": _seconds(run.after),
    }


def hours(run: StudiedRun) -> tuple[float, str] | None:
    """What the run took of its machines by its wall clock, and the unit; None where it is not known."""
    if run.seconds is None:
        return None
    engine = run.config.get("engine") or {}
    processes = int(number(engine, "nproc") or 1) * int(number(engine, "nnodes") or 1)
    version = str((run.environment.get("packages") or {}).get("torch", ""))
    device, threads = str(engine.get("device", "auto")), int(number(engine, "threads") or 1)
    if device == "cpu" or version.endswith("+cpu"):
        return run.seconds / 3600 * processes * threads, "CPU-h"
    unit = "GPU-h" if device == "cuda" else "process-h"  # auto: environment.json does not say what it was
    return run.seconds / 3600 * processes, unit


def _tokens(run: StudiedRun) -> str:
    """Generated over the training steps; nothing where a step does not say."""
    size = number(run.config.get("algorithm") or {}, "group_size")
    counts = [(number(row, "length"), number(row, "groups")) for row in run.rows]
    if size is None or not counts:
        return NOTHING
    known = [length * groups * size for length, groups in counts if length is not None and groups is not None]
    return f"{sum(known):,.0f}" if len(known) == len(counts) else NOTHING


def checkpoint(runs: Sequence[StudiedRun]) -> str:
    """The steps whose weights were tested, and how they were chosen, for each way of it."""
    by_way: dict[tuple[int, str], list[int]] = {}
    for run in runs:
        choice = tested(run)
        if choice is None:
            return NOTHING
        step, last, how = choice
        by_way.setdefault((last, how), []).append(step)
    parts = []
    for (last, how), steps in by_way.items():
        parts.append(f"step {', '.join(str(step) for step in sorted(set(steps)))} of {last}, {how}")
    return "; ".join(parts) or NOTHING


def tested(run: StudiedRun) -> tuple[int, int, str] | None:
    """The step whose weights were tested, the last step and how it was chosen; see grasp_rl.training.trainer."""
    if not run.rows or run.after is None:
        return None
    last = int(run.rows[-1]["step"])
    return (last, last, "the last") if run.best_step is None else (run.best_step, last, "highest validation reward")


def _seconds(scored: Scored | None) -> str:
    value = of(scored, "seconds_per_image")
    return NOTHING if value is None else f"{value:.3f}"
