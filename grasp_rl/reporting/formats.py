"""Tables as Markdown, LaTeX (booktabs), CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from grasp_rl.utils.files import Record, to_json
from grasp_rl.utils.text import csv_cell, latex_text, markdown_line, markdown_text


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row."""

    cells: tuple[str, ...]
    bold: frozenset[int] = frozenset()
    """Places of the cells that stand out."""
    grey: bool = False
    """Whether it is no part of the comparison."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table with its caption."""

    title: str
    head: tuple[str, ...]
    lines: tuple[Line, ...]
    records: tuple[Record, ...]
    """The same in full precision, for files that a program reads."""
    notes: tuple[str, ...] = ()
    text_columns: int = 1
    """So many columns from the left are words, the others numbers."""


def as_markdown(tables: Sequence[Table]) -> str:
    """Every table under its title, notes below; grey lines in italics."""
    lines = []
    for table in tables:
        lines += [f"### {markdown_text(table.title)}", ""]
        body = [[_md_cell(line, place) for place in range(len(line.cells))] for line in table.lines]
        lines += [*markdown_table(table.head, body), "", *(markdown_line(note) for note in table.notes), ""]
    return "\n".join(lines).rstrip() + "\n"


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; the cells of ``body`` as they are."""
    rows = [[markdown_text(cell) for cell in head], ["---"] * len(head), *body]
    return ["| " + " | ".join(row) + " |" for row in rows]


def _md_cell(line: Line, place: int) -> str:
    text = markdown_text(line.cells[place])
    if not text:
        return ""
    return f"**{text}**" if place in line.bold else f"*{text}*" if line.grey else text


def as_latex(tables: Sequence[Table]) -> str:
    """Every table as a ``table`` environment for the packages booktabs and xcolor."""
    lines = ["% needs \\usepackage{booktabs,xcolor}"]
    for table in tables:
        columns = "l" * table.text_columns + "r" * (len(table.head) - table.text_columns)
        caption = " ".join([f"{table.title}.", *table.notes])
        lines += [r"\begin{table}", r"\centering", rf"\caption{{{latex_text(caption)}}}"]
        lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
        lines += [" & ".join(latex_text(cell) for cell in table.head) + r" \\", r"\midrule"]
        for line in table.lines:
            lines.append(" & ".join(_tex_cell(line, place) for place in range(len(line.cells))) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


def _tex_cell(line: Line, place: int) -> str:
    text = latex_text(line.cells[place])
    if not text:
        return ""
    return rf"\textbf{{{text}}}" if place in line.bold else rf"\textcolor{{gray}}{{{text}}}" if line.grey else text


def as_csv(records: Sequence[Record]) -> str:
    """The records as comma-separated values; every column that any of them has."""
    buffer = io.StringIO()
    columns = list(dict.fromkeys(name for row in records for name in row))
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([csv_cell(name) for name in columns])
    writer.writerows([csv_cell(row.get(name, "")) for name in columns] for row in records)
    return buffer.getvalue()


def tables_as_csv(tables: Sequence[Table]) -> str:
    """All records, the table's title in a column of its own."""
    return as_csv([{"table": table.title, **record} for table in tables for record in table.records])


def tables_as_json(tables: Sequence[Table]) -> str:
    """A list of tables with their records and notes."""
    records = [{"title": t.title, "notes": list(t.notes), "rows": list(t.records)} for t in tables]
    return json.dumps(to_json({"tables": records}), ensure_ascii=False) + "\n"


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "md": as_markdown,
    "tex": as_latex,
    "csv": tables_as_csv,
    "json": tables_as_json,
}
"""By the ending of a file's name."""
