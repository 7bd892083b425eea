"""Configurations measured on test sets: a mean over seeds with its interval, and paired comparisons of them.

A test set is what was asked and by whose rules it was scored; numbers of different ones are never set against each
other. Intervals are those of the hierarchical bootstrap (grasp_rl.evaluation.significance.ratio_draws): seeds and
samples are drawn, the same samples for all that is compared; of one seed, samples alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from grasp_rl.evaluation.significance import bootstrap_p, bounds, holm, permutation_p, ratio_draws
from grasp_rl.geometry import FloatArray
from grasp_rl.reporting.axes import Configuration
from grasp_rl.reporting.types import Scored, StudiedRun, number
from grasp_rl.utils.files import Record

_NOT_A_SCORE = ("parse", "share/", "term/", "samples", "scored", "length", "truncated", "seconds", "reward")
_METRIC = re.compile(r"[A-Za-z][\w./]{0,39}(@\d+(\.\d+)?)?")
"""What a name of a metric may be: a stranger's stands in tables and plots."""
_BOXES = "grasp_rl.evaluation.protocols.boxes"
AGREES = 1e-6
"""How far a metric counted from the samples may be from the one that the evaluation wrote."""


class Benchmark(NamedTuple):
    """What runs must have in common to be compared."""

    dataset: str
    split: str
    samples: int
    protocol: str
    digest: str
    """Of every question and its true mask; empty where the samples cannot be read."""
    metric: str = "giou"
    """The number that is compared."""

    @property
    def label(self) -> str:
        """What was asked, and the rules."""
        asked = " ".join(word for word in (self.dataset, self.split) if word) or "a test set"
        return f"{asked}, {self.samples} samples, protocol {self.protocol}"


class Difference(NamedTuple):
    """One configuration's mean minus another's on the same samples."""

    mean: float
    low: float
    high: float
    p: float
    """Corrected over the comparisons it was made with (Holm)."""

    @property
    def tied(self) -> bool:
        """Whether the interval holds 0."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A configuration on a test set, by one metric."""

    configuration: Configuration
    test: Benchmark
    runs: tuple[StudiedRun, ...]
    """Those that were scored on it."""
    values: tuple[float, ...]
    """The metric of each, as its evaluation wrote it."""
    samples: tuple[FloatArray, FloatArray] | None
    """Numerator and denominator [seeds, samples]; None where the metric cannot be counted from the stored samples."""

    @property
    def label(self) -> str:
        """The configuration's."""
        return self.configuration.label

    @property
    def metric(self) -> str:
        """The test set's."""
        return self.test.metric

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float | None:
        """Over the seeds, None for one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    @cached_property
    def draws(self) -> FloatArray | None:
        """Of the mean; see :func:`draws_of`, which gives those of several cells on the same samples."""
        return None if self.samples is None else ratio_draws([self.samples])[0]

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %, over seeds and samples."""
        return None if self.draws is None else bounds(self.draws)


def scored_on(run: StudiedRun, protocol: str | None = None) -> Benchmark | None:
    """The test set of a run's scores, None for one without.

    Args:
        run: a run.
        protocol: another one that the same answers were scored by; the run's own by default.
    """
    scored = run.after
    if scored is None:
        return None
    names = {(str(r.get("dataset", "")), str(r.get("split", ""))) for r in scored.records}
    dataset, split = ("+".join(sorted({pair[place] for pair in names} - {""})) for place in (0, 1))
    count = len(scored.records) or int(scored.number("samples") or 0)
    return Benchmark(dataset, split, count, protocol or protocol_label(run), _digest(scored))


def protocol_of(run: StudiedRun) -> str:
    """The name of the rules that the run's own numbers are by."""
    protocol = (run.config.get("evaluation") or {}).get("protocol") or {}
    return str(protocol.get("name") or protocol.get("leader") or "ours")


def protocol_label(run: StudiedRun) -> str:
    """The protocol's name, and what of it was set otherwise than conf/evaluation/protocol/NAME.yaml has it."""
    name = protocol_of(run)
    settings = (run.config.get("evaluation") or {}).get("protocol") or {}
    if isinstance(settings.get("protocols"), dict):
        settings = settings["protocols"].get(name) or {}
    usual = _shipped(name)
    changed = {key: value for key, value in settings.items() if key in usual and value != usual[key]}
    differences = ", ".join(f"{key}={value}" for key, value in sorted(changed.items()))
    return f"{name} with {differences}" if differences else name


def _shipped(name: str) -> dict[str, Any]:
    """A protocol's file; {} for one that is the user's own."""
    path = Path(str(files("grasp_rl.conf") / f"evaluation/protocol/{name}.yaml"))
    return dict(yaml.safe_load(path.read_text(encoding="utf-8"))) if path.is_file() else {}


NAMES = {"giou": "gIoU", "ciou": "cIoU", "box_iou": "box IoU", "ap": "AP"}


def name_of(metric: str) -> str:
    """How a page calls a metric."""
    return NAMES.get(metric, metric)


def headline_of(run: StudiedRun) -> str:
    """The metric that a table of the run leads with: the headline of its protocol, where its scores have that number.

    What the config says is read as words, and no class that it names is built: of one that is none of the package's,
    gIoU leads, or else the first score that there is.
    """
    settings = (run.config.get("evaluation") or {}).get("protocol")
    known = run.after or run.before
    for metric in (_headline(settings), "giou"):
        if known is None or known.number(metric) is not None:
            return metric
    numbers = [] if known is None else [key for key in known.metrics if known.number(key) is not None]
    plain = (key for key in numbers if _METRIC.fullmatch(key) and not key.startswith(_NOT_A_SCORE))
    return next(plain, "giou")


def _headline(settings: Any) -> str:
    if not isinstance(settings, dict):
        return "giou"
    if isinstance(protocols := settings.get("protocols"), dict):
        return _headline(protocols.get(str(settings.get("leader", "ours"))))
    said = settings.get("headline")
    if isinstance(said, str) and _METRIC.fullmatch(said):
        return said
    kind = str(settings.get("_target_"))
    if kind == f"{_BOXES}.BoxProtocol":
        thresholds = settings.get("thresholds")
        first = thresholds[0] if isinstance(thresholds, list) and thresholds else 0.5
        return f"acc@{first:g}" if isinstance(first, int | float) else "giou"
    return "ap" if kind == f"{_BOXES}.DetectionProtocol" else "giou"


def by_test_set(
    configurations: Sequence[Configuration], metric: str | None = None, protocol: str | None = None
) -> dict[Benchmark, list[Cell]]:
    """The configurations by the test sets that their runs were scored on, in the order of the first runs.

    A configuration whose runs were scored on two test sets has a cell in each. What has no such metric has none.

    Args:
        configurations: of one study.
        metric: a name in metrics.json; the headline of each run's protocol by default.
        protocol: whose numbers; each run's own by default.
    """
    result: dict[Benchmark, list[Cell]] = {}
    for configuration in configurations:
        runs: dict[Benchmark, list[tuple[StudiedRun, float]]] = {}
        for run in configuration.runs:
            own = protocol is None or protocol == protocol_label(run)
            test = scored_on(run, None if own else protocol)
            name = metric or (headline_of(run) if own else "giou")
            value = run.after.number(name if own else f"{protocol}/{name}") if run.after else None
            if test is not None and value is not None:
                runs.setdefault(test._replace(metric=name), []).append((run, value))
        for test, pairs in runs.items():
            scored, values = tuple(run for run, _ in pairs), tuple(value for _, value in pairs)
            own = all(test.protocol == protocol_label(run) for run in scored)
            cell = Cell(
                configuration=configuration,
                test=test,
                runs=scored,
                values=values,
                samples=_samples(scored, values, test.metric) if own and test.digest else None,
            )
            result.setdefault(test, []).append(cell)
    return result


def best_of(cells: Sequence[Cell]) -> Cell:
    """The one with the highest mean, of equals the first."""
    return max(cells, key=lambda cell: cell.mean)


def draws_of(cells: Sequence[Cell]) -> FloatArray | None:
    """[cells, draws] of the means, the same samples in a column; None where one of them has no samples."""
    sides = [cell.samples for cell in cells if cell.samples is not None]
    return ratio_draws(sides) if sides and len(sides) == len(cells) else None


def compared(cells: Sequence[Cell], reference: Cell) -> dict[str, Difference]:
    """Every other cell minus ``reference``, by label, p corrected over them; those without samples are left out.

    With one seed on both sides p is of a paired permutation test over the samples; otherwise it is that of the
    hierarchical bootstrap, which knows about seeds.
    """
    others = [cell for cell in cells if cell is not reference and cell.samples is not None]
    draws = draws_of([reference, *others]) if reference.samples is not None else None
    if draws is None or reference.samples is None:
        return {}
    rows = []
    for cell, own in zip(others, draws[1:], strict=True):
        apart = own - draws[0]
        rows.append((cell, apart, _p(cell, reference, apart)))
    adjusted = holm([p for _, _, p in rows])
    return {
        cell.label: Difference(cell.mean - reference.mean, *bounds(apart), p)
        for (cell, apart, _), p in zip(rows, adjusted, strict=True)
    }


def _p(cell: Cell, reference: Cell, apart: FloatArray) -> float:
    (above, below), (base_above, base_below) = _known(cell), _known(reference)
    if len(above) == len(base_above) == 1 and np.array_equal(below, base_below):
        counted = below[0] > 0
        return permutation_p((above - base_above)[0][counted])
    return bootstrap_p(apart)


def _known(cell: Cell) -> tuple[FloatArray, FloatArray]:
    if cell.samples is None:
        raise ValueError(f"{cell.label}: no samples to compare")
    return cell.samples


def gain(cell: Cell) -> tuple[float, float, float] | None:
    """The metric after training minus that before on the same samples, with its interval; None without both.

    Of a mean over samples each seed is compared with itself. Where the two divide by other numbers (cIoU by its
    unions), seeds are drawn for each side on its own, which makes the interval wider rather than narrower.
    """
    if cell.samples is None:
        return None
    before = [run.before for run in cell.runs if run.before is not None and _digest(run.before) == cell.test.digest]
    written = [scored.number(cell.metric) for scored in before]
    values = [value for value in written if value is not None]
    counted = _counts(cell.runs, before, values, cell.metric) if len(values) == len(cell.runs) else None
    if counted is None:
        return None
    above, below = counted
    if not np.array_equal(below, cell.samples[1]):
        after, first = ratio_draws([cell.samples, (above, below)])
        return cell.mean - float((above.sum(1) / below.sum(1)).mean()), *bounds(after - first)
    apart = (cell.samples[0] - above, below)
    mean = float((apart[0].sum(1) / below.sum(1)).mean())
    return mean, *bounds(ratio_draws([apart])[0])


def ratio_of(records: Sequence[Record], metric: str, *, strict: bool = True) -> tuple[FloatArray, FloatArray]:
    """Numerator and denominator [samples] of a metric, by sample id; zeros where it is not known.

    Args:
        records: lines of predictions.jsonl.
        metric: a name in metrics.json.
        strict: whether ``acc@t`` counts IoU above t, or from t on.
    """
    rows = [_counted(record, metric, strict) for record in _ordered(records)]
    table = np.array(rows, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _counted(record: Record, metric: str, strict: bool) -> tuple[float, float]:
    """What one sample adds to a metric's numerator and denominator."""
    name, _, group = metric.partition("/")
    target, iou = bool(record.get("has_target")), number(record, "iou")
    value: float | None
    if metric == "ciou":
        inner, union = number(record, "intersection"), number(record, "union")
        return (0.0, 0.0) if inner is None or union is None else (inner, union)
    if metric == "giou":
        value = iou
    elif name == "giou":
        count = record.get("instances")
        kind = "" if not target or not count else "single" if count == 1 else "multi"
        value = iou if kind == group else None
    elif metric.startswith("pr@"):
        value = None if not target or iou is None else float(iou > float(metric[3:]))
    elif metric.startswith("acc@"):
        threshold = float(metric[4:])
        value = None if iou is None else float(iou > threshold if strict else iou >= threshold)
    elif metric == "no_target_accuracy":
        value = None if target else float(bool(record.get("empty")))
    elif metric == "box_iou":
        value = number(record, "box_iou") if target else None
    elif name == "term":
        value = number(record.get("terms") or {}, group)
    elif name == "parse":
        value = float(record.get("status") == group)
    elif metric == "parsed":
        value = float(record.get("status") in ("ok", "repaired"))
    else:
        value = number(record, {"length": "tokens"}.get(metric, metric))
    return (0.0, 0.0) if value is None else (value, 1.0)


def _samples(runs: Sequence[StudiedRun], values: Sequence[float], metric: str) -> tuple[FloatArray, FloatArray] | None:
    """Numerators and denominators of the runs, None where they do not give the metric that the evaluation wrote."""
    return _counts(runs, [run.after for run in runs if run.after is not None], values, metric)


def _counts(
    runs: Sequence[StudiedRun], scored: Sequence[Scored], values: Sequence[float], metric: str
) -> tuple[FloatArray, FloatArray] | None:
    """Those of evaluations of the runs that wrote ``values``."""
    rows = []
    for run, one, value in zip(runs, scored, values, strict=True):
        protocol = (run.config.get("evaluation") or {}).get("protocol")
        strict = not isinstance(protocol, dict) or protocol.get("strict") is not False
        above, below = ratio_of(one.records, metric, strict=strict)
        if not below.sum() or abs(above.sum() / below.sum() - value) > AGREES:
            return None
        rows.append((above, below))
    return np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows])


def _ordered(records: Sequence[Record]) -> list[Record]:
    return sorted(records, key=lambda record: (str(record["sample_id"]), str(record.get("query", ""))))


def _digest(scored: Scored) -> str:
    """Of the questions and their truth, whatever was answered."""
    if not scored.records:
        return ""
    digest = hashlib.sha256()
    for record in _ordered(scored.records):
        truth = (record.get("target") or {}).get("counts", "")
        for part in (record.get("dataset"), record["sample_id"], record.get("query"), record.get("has_target"), truth):
            digest.update(f"{part}\0".encode())
    return digest.hexdigest()[:12]
