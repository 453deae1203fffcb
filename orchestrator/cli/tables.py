"""Tables for people: plain and complete when piped, fitted to the terminal's width on one."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from orchestrator.tables import table

__all__ = ["print_table", "printable"]


def printable(text: str) -> str:
    """Returns a text with control characters spelled out: it may come from somebody's file."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """Prints rows under their column names.

    Args:
        columns: Names of the columns.
        rows: Cells as text; they hold no markup.
        title: A line above.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_fitted(columns, rows, title)
        return
    for line in [title] * bool(title) + table([columns, *rows], indent=""):
        typer.echo(line)


def _print_fitted(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if title:
        console.print(Text(title, style="bold"))
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    console.print(grid)
