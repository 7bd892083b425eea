"""A console that shows words of strangers and obeys none of them."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from grasp_rl.utils.text import printable


class PlainConsole(Console):
    """Prints text through :func:`grasp_rl.utils.text.printable`, line by line; tables escape their own cells."""

    def print(self, *objects: Any, **how: Any) -> None:
        super().print(*(_shown(item) if isinstance(item, str) else item for item in objects), **how)


class PlainTable(Table):
    """A table whose headings and cells of text are escaped."""

    def add_column(self, header: Any = "", *rest: Any, **how: Any) -> None:
        super().add_column(printable(header) if isinstance(header, str) else header, *rest, **how)

    def add_row(self, *cells: Any, **how: Any) -> None:
        super().add_row(*(printable(cell) if isinstance(cell, str) else cell for cell in cells), **how)


def _shown(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))
