"""The report of a check: a row for each stage and promise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.tables import table

__all__ = ["CheckReport", "CheckRow"]


@dataclass(frozen=True)
class CheckRow:
    """One promise, tried at one stage.

    Attributes:
        stage: The stage, by its name in the plan; on a device that compiles also ``output 'name'``.
        promise: Which one: ``pad of 'tokens'``, ``batch 'rows' in chunks``, ``batch 'rows' permuted``.
        holds: Whether it holds; None: it was not tried.
        error: The largest difference over the largest magnitude of the reference; None: there is none.
        sizes: The sizes at which it was tried, the worst ones where there were several.
        why: Why it was not tried, or what else there is to say.
    """

    stage: str
    promise: str
    holds: bool | None
    error: float | None = None
    sizes: str = ""
    why: str = ""

    @property
    def verdict(self) -> str:
        """``holds``, ``broken`` or ``not tried``."""
        return "not tried" if self.holds is None else "holds" if self.holds else "broken"

    def worse(self, other: CheckRow) -> CheckRow:
        """Returns the worse of two rows of one stage and promise: a broken one, else the one with the larger error."""
        rank = {None: 0, True: 1, False: 2}
        pairs = [(rank[row.holds], row.error or 0.0) for row in (self, other)]
        return other if pairs[1] > pairs[0] else self


@dataclass(frozen=True)
class CheckReport:
    """The report of ``pipeline.check``; its ``str`` is a table.

    Attributes:
        pipeline: The pipeline's name.
        device: Where its stages ran.
        rows: A row for each stage and promise, in the order in which they ran.
        first: The first row that is broken, in the order in which stages ran; None: all that was tried holds.
    """

    pipeline: str
    device: str
    rows: tuple[CheckRow, ...] = ()
    first: CheckRow | None = None

    @property
    def ok(self) -> bool:
        """No promise is broken."""
        return self.first is None

    @property
    def broken(self) -> tuple[CheckRow, ...]:
        """The rows that are broken."""
        return tuple(row for row in self.rows if row.holds is False)

    def __str__(self) -> str:
        lines = [f"Promises of {self.pipeline!r}, tried on {self.device}:", ""]
        if not self.rows:
            return f"{lines[0]} none is given: no dim is padded, and none is batch=True."
        head = ("stage", "promise", "verdict", "largest error", "sizes", "")
        lines += table([head, *map(_cells, self.rows)])
        return "\n".join([*lines, "", self.conclusion])

    @property
    def conclusion(self) -> str:
        """What holds, or which stage is the first that breaks a promise, in one sentence."""
        if self.first is None:
            count = sum(row.holds is not None for row in self.rows)
            return f"All that was tried holds: {count} of {len(self.rows)}."
        return f"The first stage that breaks a promise is {self.first.stage!r}: {self.first.promise}."


def _cells(row: CheckRow) -> tuple[str, ...]:
    error = "-" if row.error is None else f"{row.error:.1e}" if row.error else "0"
    return row.stage, row.promise, row.verdict, error, row.sizes or "-", row.why


def worst_rows(rows: Iterable[CheckRow]) -> tuple[CheckRow, ...]:
    """Returns the worst row for each stage and promise, in the order of their first ones."""
    worst: dict[tuple[str, str], CheckRow] = {}
    for row in rows:
        key = (row.stage, row.promise)
        worst[key] = worst[key].worse(row) if key in worst else row
    return tuple(worst.values())
