"""Grids of configurations: a table of any two axes, main effects and interactions, all with paired intervals."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.messages import closest
from grasp_rl.evaluation.significance import bootstrap_p, bounds, holm
from grasp_rl.geometry import FloatArray
from grasp_rl.reporting.cells import Cell, Difference, draws_of


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One place of a pivot."""

    mean: float
    interval: tuple[float, float] | None
    leading: bool
    """The highest mean, or tied with it: the interval of the paired difference holds 0."""
    runs: int


@dataclass(frozen=True, kw_only=True)
class Pivot:
    """Means by two axes; an empty place is None."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    entries: tuple[tuple[Entry | None, ...], ...]
    averaged: tuple[str, ...]
    """Axes whose values are averaged over in each place."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What a level of an axis, or one of each of two, changes."""

    axes: tuple[str, ...]
    levels: tuple[str, ...]
    reference: tuple[str, ...]
    """The first level of each axis."""
    difference: Difference

    @property
    def label(self) -> str:
        """``key=level``, two of them for an interaction."""
        return " x ".join(f"{key}={level}" for key, level in zip(self.axes, self.levels, strict=True))


def axes_of(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """The levels of every axis that has several, in the order of the cells."""
    keys = dict.fromkeys(key for cell in cells for key in cell.configuration.axes)
    levels = {key: list(dict.fromkeys(cell.configuration.axes[key] for cell in cells)) for key in keys}
    return {key: values for key, values in levels.items() if len(values) > 1}


def where(cells: Sequence[Cell], wanted: Sequence[str]) -> list[Cell]:
    """The cells with these ``key=value``.

    Raises:
        ConfigError: there is no such axis, or no cell has that value on it.
    """
    kept = list(cells)
    for text in wanted:
        key, _, value = text.partition("=")
        _known(key, cells, "--where")
        levels = list(dict.fromkeys(cell.configuration.axes[key] for cell in kept))
        kept = [cell for cell in kept if cell.configuration.axes[key] == value]
        if not kept:
            raise ConfigError(f"--where {text}: no configuration has that; {key} is one of: {', '.join(levels)}")
    return kept


def pivot(cells: Sequence[Cell], rows: str, columns: str | None) -> Pivot:
    """Means of the configurations by one axis or two; what other axes there are is averaged over.

    Args:
        cells: on one benchmark.
        rows: an axis.
        columns: another; None for a single column.

    Raises:
        ConfigError: there is no such axis, or the other axes do not take the same values in every place.
    """
    for key, flag in ((rows, "--rows"), (columns, "--columns")):
        if key is not None:
            _known(key, cells, flag)
    if rows == columns:
        raise ConfigError(f"--rows {rows} --columns {columns}: name two different axes")
    others = tuple(key for key in axes_of(cells) if key not in (rows, columns))
    places: dict[tuple[str, str], list[int]] = {}
    for index, cell in enumerate(cells):
        own = cell.configuration.axes
        places.setdefault((own[rows], "" if columns is None else own[columns]), []).append(index)
    by_place = {place: {_levels(cells[i], others) for i in indices} for place, indices in places.items()}
    everywhere = set().union(*by_place.values())
    for place, levels in by_place.items():
        if lacking := sorted(everywhere - levels):
            here = ", ".join(f"{key}={value}" for key, value in zip((rows, columns), place, strict=True) if key)
            raise ConfigError(
                f"--rows {rows}: {here} lacks {_text(others, lacking[0])}, which other places average over; "
                f"choose one value with --where {others[0]}=VALUE"
            )
    draws, means = draws_of(cells), np.array([cell.mean for cell in cells])
    averages = {place: float(means[indices].mean()) for place, indices in places.items()}
    drawn = {} if draws is None else {place: draws[indices].mean(0) for place, indices in places.items()}
    best = max(averages, key=lambda place: averages[place])
    row_names, column_names = (list(dict.fromkeys(place[side] for place in places)) for side in (0, 1))
    entries = []
    for row in row_names:
        line: list[Entry | None] = []
        for column in column_names:
            place = (row, column)
            if place not in places:
                line.append(None)
                continue
            apart = bounds(drawn[place] - drawn[best]) if drawn else None
            leading = place == best or (apart is not None and apart[0] <= 0 <= apart[1])
            interval = bounds(drawn[place]) if drawn else None
            runs = sum(len(cells[index].values) for index in places[place])
            line.append(Entry(mean=averages[place], interval=interval, leading=leading, runs=runs))
        entries.append(tuple(line))
    return Pivot(rows=tuple(row_names), columns=tuple(column_names), entries=tuple(entries), averaged=others)


def effects(cells: Sequence[Cell]) -> list[Effect]:
    """Main effects and two-way interactions of a complete grid, p corrected over all of them (Holm).

    A main effect is the mean at a level minus that at the axis' first level, averaged over all other axes. An
    interaction is how much the effect of one axis' level differs between a level and the first level of another:
    (m11 - m01) - (m10 - m00), averaged alike. p is that of the hierarchical bootstrap.

    Raises:
        ConfigError: no axis has two levels, a configuration of the grid is missing, or one has no stored samples.
    """
    levels = axes_of(cells)
    if not levels:
        raise ConfigError("--effects: the configurations differ in no axis; name a folder of a sweep")
    grid = list(itertools.product(*levels.values()))
    indices = {tuple(cell.configuration.axes[key] for key in levels): index for index, cell in enumerate(cells)}
    if missing := [point for point in grid if point not in indices]:
        raise ConfigError(
            f"--effects: {len(missing)} of the {len(grid)} configurations of the grid have no score, first "
            f"{_text(tuple(levels), missing[0])}; finish them, or choose a part that is complete with --where KEY=VALUE"
        )
    draws = draws_of(cells)
    if draws is None:
        lacking = next(cell.label for cell in cells if cell.samples is None)
        raise ConfigError(
            f"--effects: the stored samples of {lacking} do not give {cells[0].metric}; take a metric that is counted "
            "from samples, such as giou, or evaluate again"
        )
    values = np.concatenate([np.array([[cell.mean] for cell in cells]), draws], axis=1)[
        [indices[point] for point in grid]
    ]
    table = values.reshape(*(len(names) for names in levels.values()), -1)
    return _contrasts(table, levels)


def _contrasts(table: FloatArray, levels: dict[str, list[str]]) -> list[Effect]:
    """Effects from means and their draws [levels of the first axis, ..., 1 + draws]."""
    keys = list(levels)
    made: list[tuple[tuple[str, ...], tuple[str, ...], FloatArray]] = []
    for count in (1, 2):
        for axes in itertools.combinations(range(len(keys)), count):
            rest = tuple(axis for axis in range(len(keys)) if axis not in axes)
            means = table.mean(axis=rest) if rest else table  # [levels of the axes, 1 + draws]
            for steps in itertools.product(*(range(1, len(levels[keys[axis]])) for axis in axes)):
                contrast = means
                for step in steps:
                    contrast = contrast[step] - contrast[0]
                names = tuple(keys[axis] for axis in axes)
                made.append((names, tuple(levels[k][s] for k, s in zip(names, steps, strict=True)), contrast))
    adjusted = holm([bootstrap_p(contrast[1:]) for _, _, contrast in made])
    return [
        Effect(
            axes=names,
            levels=chosen,
            reference=tuple(levels[key][0] for key in names),
            difference=Difference(float(contrast[0]), *bounds(contrast[1:]), p),
        )
        for (names, chosen, contrast), p in zip(made, adjusted, strict=True)
    ]


def _known(key: str, cells: Sequence[Cell], flag: str) -> None:
    names = list(dict.fromkeys(name for cell in cells for name in cell.configuration.axes))
    if key not in names:
        axes = f"the axes are {', '.join(names)}" if names else "the configurations differ in none"
        raise ConfigError(f"{flag} {key}: no axis of these runs{closest(key, names)}; {axes}")


def _levels(cell: Cell, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(cell.configuration.axes[key] for key in keys)


def _text(keys: Sequence[str], values: Sequence[str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))
