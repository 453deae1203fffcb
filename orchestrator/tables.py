"""Tables for people, as lines of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["table"]


def table(
    rows: Sequence[Sequence[str]], indent: str = "  ", align: Callable[[str, int], str] = str.ljust
) -> list[str]:
    """Returns rows as lines with aligned columns.

    Args:
        rows: Cells as text, as many in each row; the first row is the head.
        indent: What each line begins with.
        align: Widens a cell to the width of its column; ``str.rjust`` suits numbers.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [(indent + "  ".join(map(align, row, widths))).rstrip() for row in rows]
