"""What a command says on the terminal when its run or sweep has ended."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from grasp_rl.runs.progress import duration
from grasp_rl.runs.run_dir import PROGRESS, seconds_between
from grasp_rl.utils.console import PlainTable
from grasp_rl.utils.files import Record, read_json

_FIRST = ("giou", "ciou", "acc@0.5", "ap", "box_iou", "no_target_accuracy", "reward", "parsed")
"""Metrics that are compared on the terminal when a training run ends; all are in result.json and in the report."""
_SIDE_BY_SIDE = ("giou", "ciou", "pr@0.5", "acc@0.5", "ap", "scored")
"""Metrics of the protocols that stand in one table; the others are in metrics.json."""


def summary(outcomes: Sequence[Record]) -> Table:
    """The closing table of a sweep."""
    table = PlainTable(box=None, pad_edge=False)
    for heading in ("job", "state", "took", "reward", "val gIoU", "test before", "after"):
        table.add_column(heading, overflow="fold")
    for ended in outcomes:
        run_dir = Path(ended["run_dir"])
        last = read_json(run_dir / PROGRESS) or {}
        scores = ["-" if last.get(k) is None else f"{last[k]:.3f}" for k in ("reward", "giou", "before", "after")]
        table.add_row(run_dir.name, ended["state"], took(ended), *scores)
    counted = Counter(ended["state"] for ended in outcomes)
    parts = [f"{counted['done']} of {len(outcomes)} done"]
    parts += [f"{count} {state}" for state, count in sorted(counted.items()) if state != "done"]
    table.caption, table.caption_justify = ", ".join(parts), "left"
    return table


def numbers(result: Record) -> list[Table]:
    """The numbers of a result, one row a metric; a column for each part that has metrics of its own.

    Side by side, before and after training or by prompt scheme, the few that matter most; of an evaluation all. Of one
    under several protocols the numbers of the others are a table of their own, one row a protocol.
    """
    parts = {name: part for name, part in result.items() if isinstance(part, dict)} or {"": result}
    table = PlainTable("", *parts, box=None, pad_edge=False)
    protocols: dict[str, dict[str, Any]] = {}
    metrics = dict.fromkeys(key for part in parts.values() for key in part)
    if len(parts) > 1:
        metrics = {key: None for key in _FIRST if key in metrics} or metrics
    for metric in metrics:
        values = [part.get(metric) for part in parts.values()]
        name, _, within = metric.partition("/")
        if any(f"{name}/scored" in part for part in parts.values()):
            protocols.setdefault(name, {})[within] = values[0]
        elif any(isinstance(value, int | float) for value in values):
            table.add_row(metric, *map(_number, values))
    if not protocols:
        return [table]
    shown = [key for key in _SIDE_BY_SIDE if any(key in row for row in protocols.values())]
    beside = PlainTable("protocol", *shown, box=None, pad_edge=False)
    own = next(iter(parts.values()))
    for name, row in {str(result.get("protocol", "")): own, **protocols}.items():
        beside.add_row(name, *(_number(row.get(key)) for key in shown))
    return [table, beside]


def how_to_go_on(command: str, run_dir: Path) -> str:
    """What an interrupted run has saved, and the command that goes on with it."""
    steps = [int(path.name.removeprefix("step_")) for path in run_dir.glob("checkpoints/step_" + "[0-9]" * 6)]
    saved = f"saved at step {max(steps)}" if steps else "nothing is saved yet"
    return f"{saved}; to go on: grasp-rl {command} resume={shlex.quote(str(run_dir))}"


def where_next(run_dir: Path) -> list[str]:
    """Where a run's images are, and the command that shows it whole; nothing of a run that was not scored."""
    overlays = sorted(run_dir.glob("eval*/overlays"))
    if not overlays:
        return []
    return [
        f"images: {overlays[0] if len(overlays) == 1 else run_dir / 'eval_after' / 'overlays'}",
        f"next: grasp-rl report {shlex.quote(str(run_dir))}",
    ]


def took(ended: Record) -> str:
    """How long a run took, as a person says it."""
    return duration(seconds_between(ended["started"], ended["ended"]))


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-"
