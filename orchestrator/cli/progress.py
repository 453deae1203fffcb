"""Say what is going on while a person waits: on a terminal, on stderr. Elsewhere nothing is printed.

The bar counts finished stage calls. It listens as an observer does, which makes a session take its slower
path, so it is not there unless somebody looks at it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

__all__ = ["Progress", "progress"]

_PLUGIN = "orchestrator.cli progress bar"


class Progress(Protocol):
    """What a command tells of its progress."""

    def phase(self, text: str, calls: int | None = None) -> None:
        """Begins a phase; ``calls`` is how many stage calls are expected, if known."""


class _Silent:
    def phase(self, text: str, calls: int | None = None) -> None:
        """Says nothing."""


class _Shown:
    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task: TaskID = bar.add_task("", total=None)

    def phase(self, text: str, calls: int | None = None) -> None:
        """Shows the phase, with a bar that fills if the number of calls is known."""
        self._bar.reset(self._task, description=text, total=calls)

    def advance(self) -> None:
        """One more call is done."""
        self._bar.advance(self._task)


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Shows progress while the context is open, and nothing of it afterwards."""
    if not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        shown = _Shown(bar)
        with _listening(shown.advance):
            yield shown


@contextlib.contextmanager
def _listening(advance: Callable[[], None]) -> Iterator[None]:
    from orchestrator.plugin import default_manager

    manager = default_manager()
    manager.register(_observer(advance), _PLUGIN)
    try:
        yield
    finally:
        manager.unregister(_PLUGIN)


def _observer(advance: Callable[[], None]) -> Any:
    from orchestrator.plugin import hookimpl

    class Observer:
        @hookimpl
        def orchestrator_stage_finished(self) -> None:
            advance()

    return Observer()
