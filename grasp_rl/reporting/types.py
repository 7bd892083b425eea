"""What is read of a run folder and its evaluations, for reports and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grasp_rl.evaluation.significance import Interval
from grasp_rl.utils.files import Record

_LARGEST = 1e30
"""Beyond it a number of a run is damage, not a result."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One evaluation folder."""

    metrics: Record
    """Numbers by flat name; see grasp_rl.evaluation.metrics."""
    records: tuple[Record, ...]
    """Lines of predictions.jsonl; () where they cannot be read."""
    overlays: Mapping[str, Path]
    """Images by file name, which is the same for the same sample."""

    def number(self, name: str) -> float | None:
        """The metric ``name``, or None."""
        return number(self.metrics, name)


@dataclass(frozen=True, kw_only=True)
class StudiedRun:
    """One run folder."""

    folder: Path
    label: str
    """What sets it apart from the other runs."""
    axes: Mapping[str, str]
    """The overrides that differ between the runs, by key."""
    state: str
    error: str | None
    """Why it failed, for a failed run."""
    config: Record
    environment: Record
    seconds: float | None
    """From its start to its end by the clock on the wall."""
    rows: tuple[Record, ...]
    """Training rows of metrics.jsonl."""
    validations: tuple[Record, ...]
    """Validation rows of metrics.jsonl."""
    timings: tuple[Record, ...]
    before: Scored | None
    after: Scored | None
    difference: Interval | None
    """gIoU after - before, on the samples that both scored."""
    notes: tuple[str, ...] = field(default=())
    """What could not be read."""
    diagnosis: Record | None = None
    """What `grasp-rl diagnose` found, where it was asked."""
    earlier: tuple[StudiedRun, ...] = ()
    """Stages before the last one, each with a folder of its own, in their order; see grasp_rl.training.regimes."""
    mining: Record | None = None
    """How many training questions were asked before training, and how many kept."""
    best_step: int | None = None
    """The step whose checkpoint was tested, where one was marked as the best."""


def number(record: Mapping[str, Any], name: str) -> float | None:
    """The finite number called ``name`` in ``record``, or None; one beyond 1e30 is none."""
    value = record.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if math.isfinite(value) and abs(value) <= _LARGEST else None
