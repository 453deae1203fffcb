"""The entries of a session: for each way of running its plan the code, and the function that requests come in by."""

from __future__ import annotations

import functools
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from orchestrator.errors import StageError
from orchestrator.plan.model import Step
from orchestrator.runner.closing import Closing
from orchestrator.runner.codegen.request_entry import entry_source, file_name, request_form
from orchestrator.runner.counters import Totals
from orchestrator.runner.device_outputs import keep_on_device
from orchestrator.runner.exclusive import Turn
from orchestrator.runner.failure import explain, is_own, release
from orchestrator.runner.load.load import Programs
from orchestrator.runner.stream.progress import Watch, watch_plan
from orchestrator.runner.variant import REMEMBERED, Lane

__all__ = ["Entries", "Entry", "weakly"]

Entry = Callable[..., dict[str, Any]]
Observe = Callable[[Step, float, float], None]
Finish = Callable[[float, "BaseException | None"], None]

#: Outputs kept on their device, whether steps are observed, and what loops hand out (None: they are not watched).
_Kind = tuple[frozenset[str], bool, "tuple[str, ...] | None"]


class Entries:
    """Makes entries, and remembers them and the forms they admitted.

    Args:
        programs: The loaded plan.
        totals: Where requests are counted.
        watch: What generated code calls after an iteration.
        closing: The end of the session.
        turn: What requests take turns by, where they do.
        refuse: Called with a request of a session that is closed.
    """

    def __init__(
        self,
        programs: Programs,
        totals: Totals,
        watch: Watch,
        closing: Closing,
        turn: Turn | None,
        refuse: Entry,
    ) -> None:
        self._programs = programs
        self._plan = programs.plan
        self._totals = totals
        self._watch = watch
        self._closing = closing
        self._turn = turn
        self._refuse = refuse
        self._entries: dict[_Kind, tuple[Lane, Entry]] = {}
        self._tables: list[dict[Any, Any]] = []
        self.lock = threading.RLock()

    def choose(
        self,
        keep: frozenset[str],
        partial: tuple[str, ...] | None,
        observe: Observe | None,
        listeners: tuple[Finish, ...],
    ) -> Entry:
        """Returns the entry that takes a dict of inputs.

        Args:
            keep: Outputs that stay on their device.
            partial: What is handed out in each iteration of a loop; None: nobody watches the iterations.
            observe: Called after each step, where somebody listens.
            listeners: Called after each request.
        """
        kind = keep, observe is not None, partial
        with self.lock:
            if self._closing.asked:
                return self._refuse
            if kind not in self._entries:
                plan = keep_on_device(self._plan, keep)
                programs = replace(self._programs, plan=watch_plan(plan, partial) if partial else plan)
                lane = Lane(programs, self._totals, observe, None if partial is None else self._watch)
                self._entries[kind] = lane, _finished(self._made(lane, "inputs"), listeners)
            return self._entries[kind][1]

    def method(self) -> Entry:
        """Returns the plain entry as a method that takes the inputs by keyword."""
        return self._made(self._entries[frozenset(), False, None][0], "_self, /, **inputs")

    def forget_forms(self) -> None:
        """Makes every request of a session that is closed look for its form in vain."""
        with self.lock:
            for table in self._tables:
                table.clear()

    def clear(self) -> None:
        """Lets go of all code, and with it of stages and constants."""
        with self.lock:
            self._entries.clear()
            self._programs = replace(self._programs, functions={}, constants={})

    def _admit(self, lane: Lane, table: dict[Any, Any], inputs: Mapping[str, Any]) -> Any:
        """Checks a request in full; its form is remembered once it ran."""
        if self._closing.asked:
            return self._refuse(inputs)
        admitted = run, tick = lane.runner(inputs, remembered=len(table) < REMEMBERED)
        key = request_form(self._plan, inputs)

        def first_run(*values: Any) -> dict[str, Any]:
            results = run(*values)
            _check_content(results)
            with self.lock:
                if not self._closing.asked and len(table) < REMEMBERED:
                    table[key] = admitted
                    table[None] = (*admitted, *key)
            return results

        return first_run, tick

    def _made(self, lane: Lane, head: str) -> Entry:
        """Makes an entry: look-up, checks, ``no_grad``, count; see :mod:`orchestrator.runner.codegen.request_entry`."""
        table: dict[Any, Any] = {}
        self._tables.append(table)
        scope: dict[str, Any] = {
            "table": table,
            "begin": self._closing.active.append,
            "end": self._closing.active.pop,
            "closing": self._closing.asked,
            "finish": self._closing.finish,
            "admit": functools.partial(weakly(self._admit), lane, table),
            "turn": self._turn,
            "grad": torch.is_grad_enabled,
            "no_grad": torch.no_grad,
            "explain": functools.partial(explain, lane),
            "release": functools.partial(release, lane),
            "is_own": functools.partial(is_own, lane),
        }
        source = entry_source(self._plan, self._turn is not None, head)
        exec(compile(source, file_name(self._plan.pipeline, "entry"), "exec"), scope)
        return scope.pop("entry")  # type: ignore[no-any-return]


def _check_content(results: Mapping[str, Any]) -> None:
    """Makes sure that results are tensors with content.

    Planning runs stages on fake tensors and takes out what they leave behind; what slipped through shows here.

    Raises:
        StageError: A result has none.
    """
    for name, value in results.items():
        if type(value).__name__ == "FakeTensor":
            raise StageError(
                f"Output {name!r} is a fake tensor: it has a shape and no content. A "
                f"stage kept it from a run without data, as planning and torch.export do. Let the stage make anew "
                f"what it keeps, or declare it as a host stage (device='host').",
                output=name,
            )


def weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that does not hold the method's object: a session that nobody holds is gone at once."""
    weak = weakref.WeakMethod(method)

    def call(*values: Any) -> Any:
        bound = weak()
        assert bound is not None, "who calls it holds the session"
        return bound(*values)

    return call


def _finished(entry: Entry, listeners: tuple[Finish, ...]) -> Entry:
    """Tells the observers of requests, where there are any."""
    if not listeners:
        return entry

    def observed(inputs: Mapping[str, Any]) -> dict[str, Any]:
        started, failure = time.perf_counter(), None
        try:
            return entry(inputs)
        except BaseException as error:
            failure = error
            raise
        finally:
            for finish in listeners:
                finish(time.perf_counter() - started, failure)
            failure = None

    return observed
