"""Training health: what tells whether a run learned as it should, beside what it reached."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from grasp_rl.reporting.axes import Configuration
from grasp_rl.reporting.cells import headline_of, name_of
from grasp_rl.reporting.plots import Line, overlay
from grasp_rl.reporting.results import NOTHING
from grasp_rl.reporting.types import StudiedRun, number
from grasp_rl.utils.files import Record


class Watched(NamedTuple):
    """A quantity of the training rows."""

    name: str
    key: str
    """In metrics.jsonl."""
    meaning: str
    """What it means, and what is a bad sign."""
    shown: Callable[[Sequence[float]], str]


def _course(values: Sequence[float]) -> str:
    """Mean of the first and of the last tenth."""
    part = max(1, len(values) // 10)
    return f"{statistics.fmean(values[:part]):.3g} → {statistics.fmean(values[-part:]):.3g}"


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.3g}"


def _spikes(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g}, at most {max(values):.3g}"


def _total(values: Sequence[float]) -> str:
    return f"{sum(values):.0f}"


WATCHED = (
    Watched("KL to the reference", "kl", "grows as the policy leaves its start; 0 without a KL term", _course),
    Watched("entropy", "entropy", "a fall to 0 is a policy that no longer explores", _course),
    Watched("clip fraction", "clip_fraction", "share of clipped tokens; above 0.2 lower optimizer.lr", _mean),
    Watched("gradient norm", "grad_norm", "a maximum far above the median is a spike", _spikes),
    Watched("completion tokens", "length", "growth without a gain is padding", _course),
    Watched("cut off", "truncated", "share of the completions that met rollout.max_new_tokens", _mean),
    Watched("groups without a difference", "zero_variance", "share of the groups that teach nothing", _course),
    Watched("parsed", "parse/ok", "share of the completions that were read", _course),
    Watched("steps lost", "skipped", "optimizer steps whose gradient was not finite", _total),
)  # fmt: skip
_DRAWN = ("kl", "entropy", "grad_norm", "length", "zero_variance", "parse/ok")
_SMOOTH = 15
"""A curve is smoothed over its length divided by this."""


def table(configurations: Sequence[Configuration]) -> list[Record]:
    """A row a quantity that was logged: its name, what it means, and a cell for each configuration, over its seeds."""
    rows = []
    for watched in WATCHED:
        cells = [_cell(configuration.runs, watched) for configuration in configurations]
        if any(cell != NOTHING for cell in cells):
            rows.append({"name": watched.name, "meaning": watched.meaning, "cells": cells})
    return rows


def _cell(runs: Sequence[StudiedRun], watched: Watched) -> str:
    """By step the mean over the seeds, then what is shown of it; of counts the sum."""
    by_step = _by_step(runs, watched.key)
    if not by_step:
        return NOTHING
    if watched.shown is _total:
        return _total([value for values in by_step.values() for value in values])
    if watched.shown is _spikes:
        return _spikes([value for values in by_step.values() for value in values])
    return watched.shown([statistics.fmean(by_step[step]) for step in sorted(by_step)])


def _by_step(runs: Sequence[StudiedRun], key: str, *, validations: bool = False) -> dict[float, list[float]]:
    """Values of all runs by optimizer step."""
    result: dict[float, list[float]] = {}
    for run in runs:
        for row in run.validations if validations else run.rows:
            if (value := number(row, key)) is not None:
                result.setdefault(float(row["step"]), []).append(value)
    return result


def plots(configurations: Sequence[Configuration]) -> list[Record]:
    """A figure for each quantity that is worth a curve, all configurations on one pair of axes."""
    names: Mapping[str, str] = {watched.key: watched.name for watched in WATCHED}
    return [
        {"name": names[key], "image": drawn}
        for key in _DRAWN
        if (drawn := together(configurations, key, names[key])) is not None
    ]


def learning(configurations: Sequence[Configuration]) -> list[Record]:
    """The validation curves of all configurations on one pair of axes: the score of each protocol, and reward where all
    have the same one.
    """
    metrics = dict.fromkeys(headline_of(run) for c in configurations for run in c.runs)
    panels = [(f"validation {name_of(metric)} (0 to 1)", f"val/{metric}") for metric in metrics]
    if len({repr(run.config.get("reward")) for c in configurations for run in c.runs}) == 1:
        panels.append(("validation reward (points)", "val/reward"))
    drawn = [(label, together(configurations, key, label, validations=True)) for label, key in panels]
    return [{"name": label, "image": image} for label, image in drawn if image is not None]


def together(
    configurations: Sequence[Configuration], key: str, ylabel: str, *, validations: bool = False
) -> str | None:
    """Curves of ``key`` on one pair of axes, a line a configuration with a band from its lowest to its highest seed.

    None where nothing was logged, or nothing but one value for all.
    """
    lines = []
    for configuration in configurations:
        by_step = _by_step(configuration.runs, key, validations=validations)
        steps = sorted(by_step)
        if steps:
            spread = [(min(by_step[s]), statistics.fmean(by_step[s]), max(by_step[s])) for s in steps]
            lines.append(
                Line(configuration.label, steps, spread, smooth=1 if validations else max(1, len(steps) // _SMOOTH))
            )
    values = {value for line in lines for sides in line.spread for value in sides}
    return overlay(lines, ylabel=ylabel) if len(values) > 1 else None
