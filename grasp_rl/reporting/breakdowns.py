"""A run's test scores taken apart: by protocol, by attribute of the question, by the stage that loses them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from grasp_rl.config.schema import InferenceConfig, label_of
from grasp_rl.evaluation.significance import bounds, resampled_sums
from grasp_rl.reporting.cells import protocol_of
from grasp_rl.reporting.types import StudiedRun, number
from grasp_rl.utils.files import Record
from grasp_rl.utils.text import latex_text

STAGES = {
    "unread": "answer not read",
    "count": "wrong count",
    "object": "another object",
    "box": "box",
    "points": "points",
    "ceiling": "segmenter's ceiling",
}
"""Stages of grasp_rl.evaluation.diagnose, in words."""
BY_PROTOCOL = ("giou", "ciou", "pr@0.5", "acc@0.5", "ap", "scored")
_MOST_ATTRIBUTES = 50
"""Of a sample."""
_MOST_VALUES = 40
"""Values of one attribute that are shown; one with more, such as an angle, says nothing in a table."""


def by_protocol(run: StudiedRun) -> list[Record]:
    """One row a protocol that scored the answers, the run's own first; () where that is the only one."""
    metrics = run.after.metrics if run.after else {}
    names = [name.removesuffix("/scored") for name in metrics if name.endswith("/scored")]
    if not names:
        return []
    rows: list[Record] = [{"protocol": protocol_of(run), **{key: number(metrics, key) for key in BY_PROTOCOL}}]
    return rows + [
        {"protocol": name, **{key: number(metrics, f"{name}/{key}") for key in BY_PROTOCOL}} for name in names
    ]


def inference_of(run: StudiedRun) -> str:
    """What was done with the answers beyond one prompt an instance: the option of conf/inference."""
    usual = _flat(asdict(InferenceConfig()))
    ours = _flat(run.config.get("inference") or {})
    changed = {key: value for key, value in ours.items() if key != "name" and value != usual.get(key)}
    return label_of(str(ours.get("name") or InferenceConfig.name), changed)


def _flat(node: Record, prefix: str = "") -> Record:
    """Values of a tree of mappings by dotted key."""
    result: Record = {}
    for key, value in node.items():
        result |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


def by_attribute(run: StudiedRun) -> list[Record]:
    """The gIoU with its 95 % interval for every value of every attribute, of instances and of parse statuses."""
    groups: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in run.after.records if run.after else ():
        iou = number(record, "iou")
        if iou is None:
            continue
        count = record.get("instances")
        instances = "none" if not record.get("has_target") else "unknown" if not count else str(min(count, 5))
        extra = {"instances": "5 or more" if instances == "5" else instances, "status": record.get("status")}
        attributes = dict(list((record.get("attributes") or {}).items())[:_MOST_ATTRIBUTES])
        for name, value in {**attributes, **extra}.items():
            groups[str(name)][str(value)].append(iou)
    rows: list[Record] = []
    for name, values in sorted(groups.items()):
        if len(values) > _MOST_VALUES:
            continue
        for value, ious in sorted(values.items()):
            table = np.array(ious)[:, None]
            low, high = bounds(resampled_sums(table, 1000, 0)[:, 0] / len(ious))
            rows.append(
                {"attribute": name, "value": value, "samples": len(ious), "giou": float(table.mean()), "low": low,
                 "high": high}
            )  # fmt: skip
    return rows


def diagnosis(run: StudiedRun) -> list[Record]:
    """Of all samples and of each value of each attribute: gIoU and the loss of every stage; () where none was made."""
    record = run.diagnosis
    if not record or not isinstance(record.get("lost"), dict):
        return []
    rows = [
        {"of": "all samples", "samples": record.get("samples"), "giou": number(record, "giou"), "lost": record["lost"]}
    ]
    for name, values in (record.get("by") or {}).items():
        if not isinstance(values, dict) or not all(isinstance(part, dict) for part in values.values()):
            continue
        rows += [
            {"of": f"{name}: {value}", "samples": part.get("samples"), "giou": number(part, "giou"),
             "lost": part["lost"] if isinstance(part.get("lost"), dict) else {}}
            for value, part in values.items()
        ]  # fmt: skip
    for row in rows:
        row["shares"] = [(stage, number(row["lost"], stage) or 0.0) for stage in STAGES]
    return rows


def as_latex(rows: Sequence[Record]) -> str:
    """A booktabs table of :func:`by_attribute`'s rows with their runs."""
    lines = [r"\begin{tabular}{lllrrl}", r"\toprule", r"run & attribute & value & samples & gIoU & 95\,\% interval \\",
             r"\midrule"]  # fmt: skip
    for row in rows:
        cells = [latex_text(row["run"]), latex_text(row["attribute"]), latex_text(row["value"]), str(row["samples"])]
        cells += [f"{row['giou']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}"]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])
