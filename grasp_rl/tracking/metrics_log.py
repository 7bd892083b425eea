"""The run's own record of its numbers, on disk and always on: metrics.jsonl and timings.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from grasp_rl.runs.run_dir import METRICS, TIMINGS
from grasp_rl.utils.files import Record, Unreadable, parse_json, read_lines, to_json, write_text


class MetricsLog:
    """Appends one JSON object a line, ``{"step": ..., ...}``, to two files of a run folder.

    metrics.jsonl holds what a run computes: equal runs write equal bytes. timings.jsonl holds seconds, which never are.
    A line is on its way to the disk when the call returns, so that a killed run loses none but perhaps the last, and a
    torn last line is dropped when the run goes on.

    Args:
        run_dir: the run folder; made if it is not there.
        resume_step: the optimizer step that a resumed run goes on from: rows of later steps are removed, since they
            will be written again. None for a new run: both files start empty.

    Raises:
        OSError: the files cannot be written. Unlike a tracker's, this failure is not swallowed.
    """

    def __init__(self, run_dir: Path, resume_step: int | None = None) -> None:
        self._metrics, self._timings = run_dir / METRICS, run_dir / TIMINGS
        self.nonfinite = 0
        """Numbers written as null so far because they were not finite."""
        for path in (self._metrics, self._timings):
            kept = [] if resume_step is None else [row for row in read_rows(path) if row["step"] <= resume_step]
            write_text(path, "".join(_line(row) for row in kept))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a row of metrics; a number that is not finite is null, and the row counts them as ``nonfinite``."""
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        self.nonfinite += len(bad)
        row: Record = {"step": step, **metrics, **dict.fromkeys(bad)}
        _append(self._metrics, row | {"nonfinite": len(bad)} if bad else row)

    def time(self, step: int, seconds: Mapping[str, float]) -> None:
        """Append a row of seconds."""
        _append(self._timings, {"step": step, **{name: round(value, 6) for name, value in seconds.items()}})


def read_rows(path: Path) -> list[Record]:
    """The rows of a .jsonl of steps, in order; none where there is no file. A torn or foreign line is passed over."""
    if not path.is_file():
        return []
    rows = []
    for line in read_lines(path):
        try:
            row = parse_json(line)
        except Unreadable:
            continue
        if isinstance(row, dict) and type(row.get("step")) is int:
            rows.append(row)
    return rows


def _append(path: Path, row: Record) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(row))


def _line(row: Record) -> str:
    return json.dumps(to_json(row), allow_nan=False) + "\n"
