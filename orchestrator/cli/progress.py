"""Show progress while a person waits: on a terminal, on stderr. Elsewhere nothing is printed.

The bar counts finished stage calls against those that are expected: at first those of the plan's largest request, with
all iterations of its loops; then fewer where a loop ended early or a branch did not run, more where there were more
items. It listens as an observer does, which makes a session take its slower path, so it is not there unless somebody
looks at it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from orchestrator.plan import Plan, Step
    from orchestrator.plan.chunks import SizeAssignment

__all__ = ["Meter", "Progress", "progress"]

_PLUGIN = "orchestrator.cli progress bar"


class Meter:
    """Counts the stage calls of a request against those expected.

    Args:
        plan: The plan that runs.
    """

    def __init__(self, plan: Plan) -> None:
        from orchestrator.plan.chunks import SizeAssignment
        from orchestrator.plan.steps import CallStep, iter_steps

        # At first the largest request is expected: each bucket's last size, all iterations.
        largest = {dim.name: dim.buckets[-1] for dim in plan.dims}
        self._expected_calls = [_count(plan, [step], SizeAssignment(largest, largest)) for step in plan.steps]
        self._place = {
            inner.name: at for at, step in enumerate(plan.steps) for inner in iter_steps([step], CallStep)
        }
        self._at = 0
        self._here = 0
        self.finished_calls = 0

    @property
    def total(self) -> int:
        """Calls that are done, and those that are expected yet."""
        here, after = self._expected_calls[self._at : self._at + 1], self._expected_calls[self._at + 1 :]
        return self.finished_calls + max(0, sum(here) - self._here) + sum(after)

    def advance(self, call: str) -> None:
        """Counts one more call; steps before it are over.

        Where the call stands before the last one, the next chunk of the request has begun.
        """
        at = self._place[call]
        if at != self._at:
            self._at, self._here = at, 0
        self._here += 1
        self.finished_calls += 1


def _count(plan: Plan, steps: Iterable[Step], run: SizeAssignment) -> int:
    """The stage calls of steps, those of all iterations too."""
    from orchestrator.plan.iterations import repeats
    from orchestrator.plan.steps import CallStep, LoopLikeStep, body_of

    total = 0
    for step in steps:
        match step:
            case CallStep():
                total += 1
            case LoopLikeStep(body=body):
                total += sum(times * _count(plan, body, inner) for inner, times in repeats(plan, step, run))
            case _:
                total += _count(plan, body_of(step), run)
    return total


class Progress(Protocol):
    """The progress of a command, for a person."""

    def phase(self, text: str, plan: Plan | None = None) -> None:
        """Begins a phase; ``plan`` is the plan that runs, if one does."""


class _NoProgress:
    def phase(self, text: str, plan: Plan | None = None) -> None:
        """Says nothing."""


class _BarProgress:
    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task: TaskID = bar.add_task("", total=None)
        self._meter: Meter | None = None

    def phase(self, text: str, plan: Plan | None = None) -> None:
        """Shows the phase, with a bar that fills if something runs."""
        self._meter = None if plan is None else Meter(plan)
        self._bar.reset(self._task, description=text, total=self._meter.total if self._meter else None)

    def advance(self, call: str) -> None:
        """One more call is done."""
        if self._meter is not None:
            self._meter.advance(call)
            self._bar.update(self._task, completed=self._meter.finished_calls, total=self._meter.total)


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Shows progress while the context is open, and nothing of it afterwards."""
    if not sys.stderr.isatty():
        yield _NoProgress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        bar_progress = _BarProgress(bar)
        with _listening(bar_progress.advance):
            yield bar_progress


@contextlib.contextmanager
def _listening(advance: Callable[[str], None]) -> Iterator[None]:
    from orchestrator.plugin import default_manager

    manager = default_manager()
    manager.register(_observer(advance), _PLUGIN)
    try:
        yield
    finally:
        manager.unregister(_PLUGIN)


def _observer(advance: Callable[[str], None]) -> Any:
    from orchestrator.plugin import hookimpl

    class CallObserver:
        @hookimpl
        def orchestrator_stage_finished(self, call: str) -> None:
            advance(call)

    return CallObserver()
