"""Samples on which another configuration did better: where a run has most to gain."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from grasp_rl.reporting.axes import Configuration
from grasp_rl.reporting.cells import scored_on
from grasp_rl.reporting.results import decimals
from grasp_rl.reporting.types import StudiedRun, number
from grasp_rl.utils.files import Record

SHOWN = 8
LEAST = 0.1
"""IoU: a smaller regret is not shown."""


def most(configurations: Sequence[Configuration]) -> list[Record]:
    """For each configuration the samples with the largest regret: the best mean IoU of all minus its own.

    Means are over seeds. A configuration alone on its test set has none.
    """
    ious = {c.label: _ious(c) for c in configurations}
    blocks = []
    for configuration in configurations:
        own = ious[configuration.label]
        rows = []
        for key, (query, iou) in own.items():
            best, label = max((other[key][1], label) for label, other in ious.items() if key in other)
            if best - iou >= LEAST:
                rows.append((best - iou, key[1], query, iou, best, label))
        if rows:
            rows.sort(key=lambda row: (-row[0], row[1]))
            blocks.append(
                {"label": configuration.label, "count": len(rows), "rows": [_row(*row) for row in rows[:SHOWN]]}
            )
    return blocks


def _row(regret: float, sample: str, query: str, iou: float, best: float, label: str) -> Record:
    numbers = {"regret": decimals(regret), "iou": decimals(iou), "best": decimals(best)}
    return {"sample": sample, "query": query, "by": label, **numbers}


def _ious(configuration: Configuration) -> Mapping[tuple[str, str, str], tuple[str, float]]:
    """(question, mean IoU over the seeds) by test set, sample and question."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for run in configuration.runs:
        for key, iou in _scored(run):
            groups.setdefault(key, []).append(iou)
    return {key: (key[2], statistics.fmean(values)) for key, values in groups.items()}


def _scored(run: StudiedRun) -> list[tuple[tuple[str, str, str], float]]:
    test = scored_on(run)
    if test is None or run.after is None:
        return []
    return [
        ((f"{test.digest} {test.protocol}", str(record.get("sample_id")), str(record.get("query", ""))), iou)
        for record in run.after.records
        if (iou := number(record, "iou")) is not None
    ]
