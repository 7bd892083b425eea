"""The results of a study as a page shows them: a table for each test set, a row for each configuration, a summary."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from grasp_rl.config.errors import ConfigError
from grasp_rl.reporting import breakdowns
from grasp_rl.reporting.axes import Configuration, columns, configurations
from grasp_rl.reporting.cells import (
    Benchmark,
    Cell,
    Difference,
    best_of,
    by_test_set,
    compared,
    gain,
    name_of,
)  # fmt: skip
from grasp_rl.reporting.published import beside
from grasp_rl.reporting.types import Scored, StudiedRun
from grasp_rl.utils.files import Record

COLUMNS = (
    ("cIoU", "ciou"),
    ("Pr@0.5", "pr@0.5"),
    ("box IoU", "box_iou"),
    ("no-target accuracy", "no_target_accuracy"),
    ("parse ok", "parse/ok"),
    ("gIoU, one instance", "giou/single"),
    ("gIoU, several", "giou/multi"),
)
"""Headings of the table and the metrics under them, after the one that it leads with."""
NOTHING = "-"
"""Stands for a number that there is not."""
_TIED_NAMED = 4


class StudyResults(NamedTuple):
    """The results of a study, by test set."""

    summary: str
    groups: list[Record]
    """One a test set; configurations without a score in the last, or in the only one."""
    best_run: StudiedRun | None
    """The first run of the best configuration on the first test set."""
    notes: list[str]


@dataclass(frozen=True)
class _Ranked:
    test: Benchmark
    cells: list[Cell]
    best: Cell
    to_best: Mapping[str, Difference]
    """Of every other cell to the best one."""
    title: str
    """The test set, told apart from others of the same name by its questions."""

    @property
    def tied(self) -> list[str]:
        return [label for label, apart in self.to_best.items() if apart.tied]


def columns_of(metric: str) -> tuple[tuple[str, str], ...]:
    """Headings and metrics of a table that leads with ``metric``."""
    return tuple(pair for pair in (("gIoU", "giou"), *COLUMNS) if pair[1] != metric)


def study_results(runs: Sequence[StudiedRun], over: Sequence[str], baseline: str | None) -> StudyResults:
    """The groups, and what they say in a few sentences.

    Raises:
        ConfigError: there is no configuration ``baseline``, or several.
    """
    known = configurations(runs, over)
    chosen = None if baseline is None else find_configuration(known, baseline)
    ranked, tests = [], by_test_set(known)
    names = Counter(test.label for test in tests)
    for test, cells in tests.items():
        best = best_of(cells)
        title = test.label
        if names[test.label] > 1:
            several = len({other.metric for other in tests if other.label == test.label}) > 1
            by = f", by {name_of(test.metric)}" if several else ""
            title += f"{by}, questions {test.digest[:6] or 'unknown'}"
        ranked.append(_Ranked(test, cells, best, compared(cells, best), title))
    keys = list(columns(known[0].axes, known[0].label))
    waiting = [c for c in known if not any(cell.configuration is c for part in ranked for cell in part.cells)]
    groups = [_group(part, chosen, keys, waiting if len(ranked) == 1 else []) for part in ranked]
    if waiting and len(ranked) != 1:
        groups.append(_unscored(waiting, keys))
    return StudyResults(
        summary=_summary(runs, ranked),
        groups=groups,
        best_run=ranked[0].best.runs[0] if ranked else None,
        notes=[note for configuration in known for note in configuration.notes] + _split(known, ranked, chosen),
    )


def _split(known: Sequence[Configuration], ranked: Sequence[_Ranked], chosen: Configuration | None) -> list[str]:
    """What a reader of the tables must know about test sets."""
    notes = []
    for configuration in known:
        tests = [part.test for part in ranked if any(cell.configuration is configuration for cell in part.cells)]
        if len(tests) > 1:
            notes.append(f"{configuration.label}: its runs were not tested on the same questions by the same rules, so "
                         f"they stand in {len(tests)} tables")  # fmt: skip
    for part in ranked:
        if chosen is not None and all(cell.configuration is not chosen for cell in part.cells):
            notes.append(f"{part.title}: {chosen.label} was not scored there, the best is compared with instead")
        if missing := [cell.label for cell in part.cells if cell.samples is None]:
            notes.append(f"{part.title}: no interval and no comparison of {'; '.join(missing)}, whose stored samples "
                         f"are missing or do not give the {name_of(part.best.metric)} that was written")  # fmt: skip
    return notes


def find_configuration(known: Sequence[Configuration], text: str) -> Configuration:
    """The configuration that is called ``text``, or whose axes ``key=value,...`` names.

    Raises:
        ConfigError: there is none, or more than one.
    """
    pairs = [part.strip().partition("=") for part in text.split(",")]
    selected = {key: value for key, _, value in pairs}
    called = [c for c in known if c.label == text]
    matching = called or [c for c in known if all(c.axes.get(key) == value for key, value in selected.items())]
    if len(matching) == 1:
        return matching[0]
    what = "no configuration is that" if not matching else f"{len(matching)} configurations are that"
    raise ConfigError(f"baseline={text}: {what}; name one of: {'; '.join(c.label for c in known)}")


def decimals(value: float | None, *, signed: bool = False) -> str:
    """Three decimals, or a dash for nothing."""
    if value is None:
        return NOTHING
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def span(interval: tuple[float, float] | None, *, signed: bool = False) -> str:
    """``low to high``, empty for nothing."""
    return "" if interval is None else " to ".join(decimals(value, signed=signed) for value in interval)


def p_text(p: float) -> str:
    """A p-value as a table prints it."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def of(scored: Scored | None, name: str) -> float | None:
    """A metric, None where there is no evaluation or no such number."""
    return None if scored is None else scored.number(name)


def chance(cells: Sequence[Cell]) -> str:
    """What the intervals of a table are over."""
    counts = sorted({len(cell.values) for cell in cells})
    if counts == [1]:
        return "Intervals are over samples alone: of each configuration one seed was run."
    seeds = " or ".join(str(count) for count in counts)
    few = " With so few seeds they can be too narrow." if min(counts) < 5 else ""
    one = " Where there is one seed, samples alone." if counts[0] == 1 else ""
    return f"Intervals are over seeds ({seeds}) and samples.{few}{one}"


def _group(part: _Ranked, chosen: Configuration | None, keys: list[str], waiting: Sequence[Configuration]) -> Record:
    cells = part.cells
    reference = part.best
    if chosen is not None:
        reference = next((cell for cell in cells if cell.configuration is chosen), part.best)
    apart = part.to_best if reference is part.best else compared(cells, reference)
    leading = {part.best.label, *part.tied} if len(cells) + len(waiting) > 1 else set()
    runs = [run for cell in cells for run in cell.runs]
    several, shown = any(len(cell.configuration.runs) > 1 for cell in cells), columns_of(part.best.metric)
    return {
        "title": part.title,
        "metric": name_of(part.best.metric),
        "columns": [heading for heading, _ in shown],
        "axes": keys,
        "rows": [_row(cell, cell.label in leading) for cell in cells] + [_waiting(c, len(shown)) for c in waiting],
        "chance": chance(cells),
        "run_axes": list(columns(runs[0].axes, runs[0].label, "run")),
        "runs": [run_row(run, part.test.metric) for run in runs] if several else [],
        "reference": reference.label,
        "compared": [_comparison(label, difference, reference) for label, difference in apart.items()],
        "published": beside(part.test, ("giou", "ciou"), _ours(part.best)),
    }


def _ours(best: Cell) -> dict[str, tuple[str, float]]:
    """What stands beside published figures: the best configuration's."""
    values = {name: _mean(best.runs, "after", name) for name in ("giou", "ciou")}
    return {name: (best.label, value) for name, value in values.items() if value is not None}


def _unscored(waiting: Sequence[Configuration], keys: list[str]) -> Record:
    return {
        "title": "Not scored", "metric": name_of("giou"), "columns": [heading for heading, _ in COLUMNS], "axes": keys,
        "rows": [_waiting(c, len(COLUMNS)) for c in waiting], "chance": "", "run_axes": [], "runs": [],
        "reference": "", "compared": [], "published": [],
    }  # fmt: skip


def _row(cell: Cell, leading: bool) -> Record:
    runs, change = cell.runs, gain(cell)
    if change is None and len(runs) == 1 and runs[0].difference is not None and cell.metric == "giou":
        change = runs[0].difference[:3]
    seeds = f"{len(runs)} seeds, std {decimals(cell.std)}" if len(runs) > 1 else ""
    return {
        "axes": list(columns(cell.configuration.axes, cell.label).values()),
        "label": cell.label,
        "state": _states(cell.configuration),
        "error": None,
        "best": leading,
        "before": decimals(_mean(runs, "before", cell.metric)),
        "after": decimals(cell.mean),
        "range": span(cell.interval),
        "seeds": seeds,
        "difference": decimals(change[0], signed=True) if change else NOTHING,
        "interval": span(change[1:], signed=True) if change else "",
        "certain": change is not None and (change[1] > 0 or change[2] < 0),
        "cells": [
            (decimals(_mean(runs, "before", name)), decimals(_mean(runs, "after", name)))
            for _, name in columns_of(cell.metric)
        ],
    }


def run_row(run: StudiedRun, metric: str) -> Record:
    """One run in the fold below the configurations of a table that leads with ``metric``."""
    change = run.difference if metric == "giou" else None
    return {
        "axes": list(columns(run.axes, run.label).values()),
        "label": run.label,
        "state": run.state,
        "before": decimals(of(run.before, metric)),
        "after": decimals(of(run.after, metric)),
        "difference": decimals(change.mean, signed=True) if change else NOTHING,
        "interval": span(change[1:3], signed=True) if change else "",
        "cells": [(decimals(of(run.before, name)), decimals(of(run.after, name))) for _, name in columns_of(metric)],
    }


def _waiting(configuration: Configuration, cells: int) -> Record:
    """A configuration without a score, with its error where it failed."""
    runs = configuration.runs
    nothing = dict.fromkeys(("before", "after", "difference"), NOTHING)
    return nothing | {
        "axes": list(columns(configuration.axes, configuration.label).values()),
        "label": configuration.label,
        "state": _states(configuration),
        "error": next((run.error for run in runs if run.error), None),
        "best": False, "range": "", "seeds": "", "interval": "", "certain": False,
        "cells": [(NOTHING, NOTHING)] * cells,
    }  # fmt: skip


def _states(configuration: Configuration) -> str:
    """``done``, or of several runs ``2 done, 1 failed``."""
    states = [run.state for run in configuration.runs]
    if len(states) == 1:
        return states[0]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _mean(runs: Sequence[StudiedRun], when: str, name: str) -> float | None:
    """Over the runs, None where one of them has no such number."""
    values = [of(run.before if when == "before" else run.after, name) for run in runs]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _comparison(label: str, apart: Difference, reference: Cell) -> Record:
    side = "above" if apart.low > 0 else "below"
    return {
        "label": label,
        "verdict": f"tied with {reference.label}" if apart.tied else f"{side} {reference.label}",
        "difference": decimals(apart.mean, signed=True),
        "interval": span((apart.low, apart.high), signed=True),
        "p": p_text(apart.p),
    }


def _summary(runs: Sequence[StudiedRun], ranked: Sequence[_Ranked]) -> str:
    """What was run, how it ended, and the best number on each test set, in a few sentences."""
    states = [run.state for run in runs]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    text = f"{len(runs)} run{'s' * (len(runs) != 1)}: {counts}."
    if not ranked:
        return f"{text} None of them has been scored."
    sentences = [_headline(part, len(runs) > 1) for part in ranked]
    if len(ranked) > 1:
        sentences = [f"On {part.title}: {said}" for part, said in zip(ranked, sentences, strict=True)]
        sentences.append("Different test sets are not compared.")
    else:
        sentences.append(f"Scored by the protocol {ranked[0].test.protocol}.")
    options = list(dict.fromkeys(breakdowns.inference_of(run) for run in runs))
    if options != ["default"]:
        sentences.append(f"Inference: {'; '.join(options)}.")
    return " ".join([text, *sentences])


def _headline(part: _Ranked, many: bool) -> str:
    """The best configuration of a test set, or those that are tied, and the gain over before."""
    best, metric = part.best, name_of(part.best.metric)
    on = f" on {part.test.samples} {part.test.split} samples".replace("  ", " ")
    seeds = f" over {len(best.values)} seeds" if len(best.values) > 1 else ""
    if not part.tied:
        text = f"{f'The best, {best.label}, reaches' if many and len(part.cells) > 1 else 'It reaches'}"
        text += f" {'an' if metric[0] in 'aeiouAEIOU' else 'a'} {metric} of {decimals(best.mean)}{seeds}{on}"
    else:
        names = part.tied[:_TIED_NAMED]
        more = f" and {len(part.tied) - len(names)} more" if len(part.tied) > len(names) else ""
        text = f"No best: {best.label} has the highest {metric}, {decimals(best.mean)}{seeds}{on}, tied with"
        text += f" {'; '.join(names)}{more} (the interval of the paired difference holds 0)"
    before, change = _mean(best.runs, "before", best.metric), gain(best)
    if change is None and len(best.runs) == 1 and best.runs[0].difference is not None and best.metric == "giou":
        change = best.runs[0].difference[:3]
    if change is None or before is None or not all(map(math.isfinite, change)):
        return f"{text}." if before is None else f"{text}, {decimals(before)} before training."
    mean, low, high = change
    if low == high == 0:
        return f"{text}, the same as before training."
    sure = "" if low > 0 or high < 0 else "; the interval holds 0, so this may be chance"
    return (
        f"{text}, {decimals(mean, signed=True)} over the {decimals(before)} before training "
        f"(95 % interval {span((low, high), signed=True)}){sure}."
    )
