"""`grasp-rl table`: the scores of finished runs as a table, by configuration or by any two axes.

Of every test set and protocol a table of its own, never one of two: means over seeds with 95 % intervals, paired
differences, main effects and interactions. Markdown, LaTeX, CSV or JSON.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.messages import closest, of_system
from grasp_rl.reporting import axes, pivots
from grasp_rl.reporting.axes import Configuration, common_values, configurations, constants, label_of
from grasp_rl.reporting.cells import Benchmark, Cell, Difference, best_of, by_test_set, compared, protocol_label
from grasp_rl.reporting.costs import checkpoint, hours
from grasp_rl.reporting.formats import FORMATS, Line, Table
from grasp_rl.reporting.load import read_study
from grasp_rl.reporting.published import beside
from grasp_rl.reporting.results import NOTHING, chance, decimals, find_configuration, p_text, span
from grasp_rl.reporting.types import StudiedRun
from grasp_rl.utils.files import Record, write_text
from grasp_rl.utils.text import printable


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``grasp-rl table <argv>`` and return its exit code."""
    arguments = _parser().parse_args(argv)
    out: Path | None = arguments.out
    try:
        form = "json" if arguments.json else arguments.format or (out.suffix.lstrip(".") if out else "md")
        if form not in FORMATS:
            raise ConfigError(f"--out {out}: its ending names no format; must be one of .{', .'.join(FORMATS)}")
        over = tuple(key.strip() for key in arguments.over.split(",") if key.strip())
        tables = tables_of(
            read_study(*arguments.folder), rows=arguments.rows, columns=arguments.columns, metric=arguments.metric,
            protocol=arguments.protocol, where=arguments.where, over=over, baseline=arguments.baseline,
            effects=arguments.effects,
        )  # fmt: skip
        text = FORMATS[form](tables)
        if out is not None:
            write_text(out, text)
    except (ConfigError, OSError) as error:
        sys.stderr.write(printable(f"grasp-rl table: {of_system(error)}") + "\n")
        return 2 if isinstance(error, ConfigError) else 1
    sys.stdout.write(f"{out}\n" if out is not None and not arguments.json else text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="grasp-rl table", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("folder", type=Path, nargs="+", help="run folders, or folders of runs such as a sweep's, nested or not")
    add("--rows", help="an axis, such as reward (default: a row a configuration)")
    add("--columns", help="another one; what axes are left is averaged over")
    add("--metric", help="a name in metrics.json (default: the headline of each run's protocol, such as giou)")
    add("--protocol", help="whose numbers, of an evaluation by several protocols (default: each run's own)")
    add("--where", action="append", default=[], metavar="KEY=VALUE", help="only these configurations; may be repeated")
    add("--over", default="seed", help="keys to average over, with commas between (default: seed)")
    add("--baseline", help="KEY=VALUE,... of the configuration to compare with (default: the best)")
    add("--effects", action="store_true", help="main effects and two-way interactions of a complete grid, too")
    add("--format", choices=list(FORMATS), help="default: md, or what the ending of --out says")
    add("--out", type=Path, help="a file to write (default: stdout)")
    add("--json", action="store_true", help="one JSON object on stdout")
    return parser


def tables_of(
    runs: Sequence[StudiedRun],
    *,
    rows: str | None = None,
    columns: str | None = None,
    metric: str | None = None,
    protocol: str | None = None,
    where: Sequence[str] = (),
    over: Sequence[str] = ("seed",),
    baseline: str | None = None,
    effects: bool = False,
) -> list[Table]:
    """The tables of each benchmark, in the order of the runs; see the flags of the command.

    Raises:
        ConfigError: no run has such a number, or an argument names what there is not.
    """
    if columns is not None and rows is None:
        raise ConfigError(f"--columns {columns}: name --rows, too; one axis alone is --rows {columns}")
    known = configurations(runs, over)
    chosen = None if baseline is None else find_configuration(known, baseline)
    benchmarks = by_test_set(known, metric, protocol)
    if not benchmarks:
        raise ConfigError(_nothing(runs, metric, protocol))
    common = label_of(constants(runs))
    tables = []
    for benchmark, everything in benchmarks.items():
        cells = pivots.where(everything, where)
        if rows is None:
            made = [_by_configuration(benchmark, cells, chosen)]
        else:
            made = [_pivot(benchmark, cells, rows, columns)]
        tables += made + ([_effects(benchmark, cells)] if effects else []) + _published(benchmark, cells)
    notes = (*tables[0].notes, *([f"All runs: {common}."] if common else []))
    if usual := label_of(common_values([c.axes for c in known])):
        notes += (f"Common values, which hold where a row says nothing else: {usual}.",)
    unscored = [c.label for c in known if not any(x.configuration is c for cells in benchmarks.values() for x in cells)]
    if unscored:
        notes += (f"Without this number: {'; '.join(unscored)}.",)
    remarks = (note for configuration in known for note in configuration.notes)
    return [_with(tables[0], (*notes, *(f"{note}." for note in remarks))), *tables[1:]]


def _with(table: Table, notes: Sequence[str]) -> Table:
    return Table(title=table.title, head=table.head, lines=table.lines, records=table.records, notes=tuple(notes),
                 text_columns=table.text_columns)  # fmt: skip


def _nothing(runs: Sequence[StudiedRun], metric: str | None, protocol: str | None) -> str:
    """What to say where no run has the number."""
    names = list(dict.fromkeys(name for run in runs if run.after for name in run.after.metrics))
    if not names:
        return "none of these runs has been scored; wait for their end, or see `grasp-rl report` for what failed"
    scored = {name.removesuffix("/scored") for name in names if name.endswith("/scored")}
    protocols = sorted(scored | {protocol_label(run) for run in runs if run.after})
    if protocol is not None and protocol not in protocols:
        return (
            f"--protocol {protocol}: no run was scored by it{closest(protocol, protocols)}; by: {', '.join(protocols)}"
        )
    plain = [name for name in names if name.partition("/")[0] not in scored]
    metric = metric or "giou"
    return f"--metric {metric}: no run has it{closest(metric, plain)}; there are: {', '.join(plain)}"


def _title(benchmark: Benchmark, metric: str) -> str:
    return f"{metric} on {benchmark.label}"


def _by_configuration(benchmark: Benchmark, cells: Sequence[Cell], chosen: Configuration | None) -> Table:
    best = best_of(cells)
    reference = next((cell for cell in cells if cell.configuration is chosen), best)
    to_best = compared(cells, best)
    apart = to_best if reference is best else compared(cells, reference)
    metric, keys = cells[0].metric, list(axes.columns(cells[0].configuration.axes, cells[0].label))
    lines, records = [], []
    for cell in cells:
        difference = apart.get(cell.label)
        leading = cell is best or (cell.label in to_best and to_best[cell.label].tied)
        levels = list(axes.columns(cell.configuration.axes, cell.label).values()) or [cell.label]
        numbers = [str(len(cell.values)), decimals(cell.mean), span(cell.interval) or NOTHING, decimals(cell.std)]
        texts = [*levels, *numbers, *_compared(difference, cell is reference), checkpoint(cell.runs), _cost(cell.runs)]
        lines.append(Line(cells=tuple(texts), bold=frozenset({len(levels) + 1} if leading and len(cells) > 1 else ())))
        records.append(_record(cell, benchmark, difference, leading) | {"reference": reference.label})
    head = [*(keys or ["configuration"]), "seeds", metric, "95 % interval", "std over seeds", "difference",
            "95 % interval", "p", "checkpoint", "cost"]  # fmt: skip
    notes = [chance(cells)]
    if len(cells) > 1:
        notes.append(
            f"Difference: to {reference.label} on the same samples; p is corrected over the table (Holm). Bold: the "
            "highest, and what is tied with it (the interval of the difference holds 0)."
        )
    if chosen is not None and reference.configuration is not chosen:
        notes.append(f"{chosen.label} was not scored here, the best is compared with instead.")
    if lacking := [cell.label for cell in cells if cell.samples is None]:
        notes.append(
            f"No interval and no comparison of {'; '.join(lacking)}: the stored samples do not give this metric."
        )
    return Table(title=_title(benchmark, metric), head=tuple(head), lines=tuple(lines), records=tuple(records),
                 notes=tuple(notes), text_columns=len(keys) or 1)  # fmt: skip


def _compared(difference: Difference | None, is_reference: bool) -> list[str]:
    if difference is None:
        return ["", "", ""] if is_reference else [NOTHING] * 3
    interval = span((difference.low, difference.high), signed=True)
    return [decimals(difference.mean, signed=True), interval, p_text(difference.p)]


def _record(cell: Cell, benchmark: Benchmark, difference: Difference | None, leading: bool) -> Record:
    """A configuration's row for a program."""
    low, high = cell.interval or (None, None)
    record: Record = {**cell.configuration.axes, "configuration": cell.label, "metric": cell.metric}
    record |= {"dataset": benchmark.dataset, "split": benchmark.split, "samples": benchmark.samples}
    record |= {"protocol": benchmark.protocol, "seeds": len(cell.values), "mean": cell.mean, "low": low, "high": high}
    record |= {"std": cell.std, "leading": leading}
    names = ("difference", "difference_low", "difference_high", "p_holm")
    record |= dict(zip(names, difference or (None,) * 4, strict=True))
    return record | {"checkpoint": checkpoint(cell.runs), "cost": _cost(cell.runs)}


def _cost(runs: Sequence[StudiedRun]) -> str:
    """Of all runs together, by unit."""
    sums: dict[str, float] = {}
    for run in runs:
        spent = hours(run)
        if spent is None:
            return NOTHING
        sums[spent[1]] = sums.get(spent[1], 0.0) + spent[0]
    return " + ".join(f"{value:.2f} {unit}" for unit, value in sums.items())


def _pivot(benchmark: Benchmark, cells: Sequence[Cell], rows: str, columns: str | None) -> Table:
    pivot, metric = pivots.pivot(cells, rows, columns), cells[0].metric
    lines, records = [], []
    for name, entries in zip(pivot.rows, pivot.entries, strict=True):
        texts = [name]
        for column, entry in zip(pivot.columns, entries, strict=True):
            texts.append(NOTHING if entry is None else _entry(entry))
            if entry is not None:
                low, high = entry.interval or (None, None)
                place = {rows: name} | ({columns: column} if columns else {})
                numbers = {"metric": metric, "mean": entry.mean, "low": low, "high": high}
                records.append({**place, **numbers, "runs": entry.runs, "leading": entry.leading})
        bold = {place for place, entry in enumerate(entries, 1) if entry is not None and entry.leading}
        lines.append(Line(cells=tuple(texts), bold=frozenset(bold if len(cells) > 1 else ())))
    head = (rows, *(f"{columns}={name}" for name in pivot.columns)) if columns else (rows, metric)
    notes = [
        f"Mean and 95 % interval. {chance(cells)} Bold: the highest, and what is tied with it (the interval of the "
        "paired difference holds 0)."
    ]
    if pivot.averaged:
        notes.append(f"Averaged over {', '.join(pivot.averaged)}.")
    return Table(title=_title(benchmark, metric), head=head, lines=tuple(lines), records=tuple(records),
                 notes=tuple(notes))  # fmt: skip


def _entry(entry: pivots.Entry) -> str:
    return decimals(entry.mean) + (f" [{', '.join(map(decimals, entry.interval))}]" if entry.interval else "")


def _effects(benchmark: Benchmark, cells: Sequence[Cell]) -> Table:
    lines, records = [], []
    for effect in pivots.effects(cells):
        base = ", ".join(f"{key}={level}" for key, level in zip(effect.axes, effect.reference, strict=True))
        kind = "main effect" if len(effect.axes) == 1 else "interaction"
        apart = effect.difference
        bold = frozenset({3} if not apart.tied else ())
        lines.append(Line(cells=(kind, effect.label, base, *_compared(apart, is_reference=False)), bold=bold))
        records.append({"kind": kind, "effect": effect.label, "reference": base, "metric": cells[0].metric,
                        "difference": apart.mean, "low": apart.low, "high": apart.high, "p_holm": apart.p})  # fmt: skip
    head = ("", "effect", "against", "difference", "95 % interval", "p")
    notes = (
        f"Averaged over the other axes. Interaction: how much the one effect changes with the other. {chance(cells)} "
        "p of the bootstrap, corrected over the table (Holm). Bold: the interval leaves out 0.",
    )
    title = f"Effects on {_title(benchmark, cells[0].metric)}"
    return Table(title=title, head=head, lines=tuple(lines), records=tuple(records), notes=notes, text_columns=3)


def _published(benchmark: Benchmark, cells: Sequence[Cell]) -> list[Table]:
    best = best_of(cells)
    rows = beside(benchmark, (best.metric,), {best.metric: (best.label, best.mean)})
    if not rows:
        return []
    lines = []
    for row in rows:
        rules = f"{row['protocol']} ({row['why']})" if row["why"] else row["protocol"]
        source = f"{row['source']} [{row['confidence']}]"
        system = f"{row['system']}, {row['note']}" if row["note"] else row["system"]
        texts = (system, row["backbone"], rules, source, row["value"], row["ours"])
        lines.append(Line(cells=texts, grey=not row["same"]))
    head = ("system", "backbone", "protocol", "source", f"{best.metric}, %", f"ours, % ({best.label})")
    notes = (
        "Grey or italic: by other rules or on other samples, not to be compared. [P] read in a primary source, "
        "[S] second-hand, [NC] not confirmed.",
    )
    title = f"Published: {best.metric} on {benchmark.dataset} {benchmark.split}"
    return [Table(title=title, head=head, lines=tuple(lines), records=tuple(rows), notes=notes, text_columns=4)]


if __name__ == "__main__":
    sys.exit(main())
