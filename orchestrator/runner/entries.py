"""The entries of a session: for each way of running its plan the code, and the function that requests come in by."""

from __future__ import annotations

import functools
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import torch

from orchestrator.backend import CompilingBackend
from orchestrator.errors import StageError
from orchestrator.plan.locks import with_same_locks
from orchestrator.plan.model import Plan
from orchestrator.plan.steps import HOST, Step
from orchestrator.runner.admit import positional_error
from orchestrator.runner.closing import Closing
from orchestrator.runner.codegen.request_entry import entry_source, file_name, request_form
from orchestrator.runner.counters import RequestStats
from orchestrator.runner.device_inputs import find_device_inputs
from orchestrator.runner.device_outputs import dims_on_devices, keep_on_device
from orchestrator.runner.device_values import DeviceValue, note_device_value
from orchestrator.runner.failure import explain, is_own, release
from orchestrator.runner.load.load import Executable
from orchestrator.runner.stream.progress import ProgressHook, with_progress_outputs
from orchestrator.runner.variant import MAX_FORMS, PlanVariant

__all__ = ["RequestEntries", "RequestEntry", "weakly"]

RequestEntry = Callable[..., dict[str, Any]]
StepObserver = Callable[[Step, float, float], None]
RequestListener = Callable[[float, "BaseException | None"], None]

#: Outputs kept on their device, whether steps are observed, and what loops hand out (None: they are not watched).
_Kind = tuple[frozenset[str], bool, "tuple[str, ...] | None"]


class RequestEntries:
    """Makes entries, and remembers them and the forms they admitted.

    Args:
        executable: The loaded plan.
        stats: Where requests are counted.
        progress_hook: What generated code calls after an iteration.
        closing: The end of the session.
        refuse: Called with a request of a session that is closed.
    """

    def __init__(
        self,
        executable: Executable,
        stats: RequestStats,
        progress_hook: ProgressHook,
        closing: Closing,
        refuse: RequestEntry,
    ) -> None:
        self._executable = executable
        self._plan = executable.plan
        self._stats = stats
        self._progress_hook = progress_hook
        self._closing = closing
        self._refuse = refuse
        # Each kind's entry holds its table; they are listed here as well, so that closing can empty them all.
        self._entries: dict[_Kind, tuple[PlanVariant, RequestEntry]] = {}
        self._tables: list[dict[Any, Any]] = []
        self.lock = threading.RLock()

    def choose(
        self,
        device_outputs: frozenset[str],
        partial: tuple[str, ...] | None,
        observe: StepObserver | None,
        listeners: tuple[RequestListener, ...],
    ) -> RequestEntry:
        """Returns the entry that takes a dict of inputs.

        Args:
            device_outputs: Outputs that stay on their device.
            partial: What is handed out in each iteration of a loop; None: nobody watches the iterations.
            observe: Called after each step, where somebody listens.
            listeners: Called after each request.
        """
        kind = device_outputs, observe is not None, partial
        with self.lock:
            # Under the lock: ``clear`` may not come between this look and an entry that is added after it.
            if self._closing.flag:
                return self._refuse
            if kind not in self._entries:
                hook = None if partial is None else self._progress_hook
                plan = self._rewrite(device_outputs, partial)
                variant = PlanVariant(replace(self._executable, plan=plan), self._stats, observe, hook)
                # What devices copy by themselves keeps the size of its bucket.
                copying = [name for name, backend in self._executable.backends.items() if _copies(backend)]
                at_buckets = (
                    self._rewrite(device_outputs, partial, copying) if copying and device_outputs else plan
                )
                if at_buckets != plan:
                    executable = replace(self._executable, plan=at_buckets)
                    dims = dims_on_devices(at_buckets, device_outputs)
                    variant.divert(PlanVariant(executable, self._stats, observe, hook), dims)
                entry = self._noting(plan, device_outputs, self._generate(variant, "inputs"))
                self._entries[kind] = variant, _with_listeners(entry, listeners)
            return self._entries[kind][1]

    def _rewrite(
        self, device_outputs: frozenset[str], partial: tuple[str, ...] | None, copying: Collection[str] = ()
    ) -> Plan:
        """The plan that leaves outputs on their devices and hands out values of iterations."""
        # Outputs stay on their device before values of iterations are brought home from there.
        plan = keep_on_device(self._plan, device_outputs, copying)
        plan = with_progress_outputs(plan, partial, self._executable.stages) if partial else plan
        # What was added reads and runs programs at other steps than the planner's.
        return with_same_locks(plan) if plan is not self._plan else plan

    def _noting(self, plan: Plan, names: frozenset[str], entry: RequestEntry) -> RequestEntry:
        """Notes outputs that stay on a device, so that a later request may be given them."""
        # What is on the host anyway is an ordinary tensor; a session whose outputs all are keeps its plain entry.
        places = {name: plan.values[index].memory for name, index in plan.outputs if name in names}
        notes = {
            name: DeviceValue(name, memory, weakref.ref(self._closing))
            for name, memory in places.items()
            if memory != HOST
        }
        if not notes:
            return entry

        def call(inputs: Mapping[str, Any]) -> dict[str, Any]:
            results = entry(inputs)
            for name, note in notes.items():
                note_device_value(results[name], note)
            return results

        return call

    def method(self) -> RequestEntry:
        """Returns the plain entry as a method that takes the inputs by keyword."""
        return self._generate(self._entries[frozenset(), False, None][0], "_self, /, *args, **inputs")

    def forget_forms(self) -> None:
        """Makes every request of a session that is closed look for its form in vain."""
        with self.lock:
            for table in self._tables:
                table.clear()

    def clear(self) -> None:
        """Lets go of all code, and with it of stages and constants."""
        with self.lock:
            self._entries.clear()
            self._executable = replace(self._executable, functions={}, constants={})

    def _admit(
        self,
        variant: PlanVariant,
        table: dict[Any, Any],
        inputs: Mapping[str, Any],
        args: tuple[object, ...] = (),
    ) -> Any:
        """Checks a request in full; its form is remembered once it ran."""
        if self._closing.flag:
            return self._refuse(inputs)
        if args:
            raise positional_error(self._plan, args)
        # Whose a value on a device is, is no part of its form: such a request is looked at each time.
        places = find_device_inputs(self._plan, inputs, self._closing)
        is_reusable = not places and len(table) < MAX_FORMS
        variant = variant.with_device_inputs(places) if places else variant
        runner = run, count = variant.runner(inputs, is_reusable=is_reusable)
        form = request_form(self._plan, inputs)

        def first_run(*values: Any) -> dict[str, Any]:
            results = run(*values)
            _check_content(results)
            # Only a form that gave right results is remembered, and none once the session is closed: its tables were
            # emptied, and a runner in one of them would hold stages.
            with self.lock:
                if is_reusable and not self._closing.flag and len(table) < MAX_FORMS:
                    table[form] = runner
                    table[None] = (*runner, *form)
            return results

        return first_run, count

    def _generate(self, variant: PlanVariant, head: str) -> RequestEntry:
        """Makes an entry: look-up, checks, ``no_grad``, count; see :mod:`orchestrator.runner.codegen.request_entry`."""
        table: dict[Any, Any] = {}
        self._tables.append(table)
        # None of its globals holds the session: who drops a session while nobody closed it closes it by that.
        scope: dict[str, Any] = {
            "table": table,
            "begin": self._closing.active.append,
            "end": self._closing.active.pop,
            "closing": self._closing.flag,
            "finish": self._closing.finish,
            "admit": functools.partial(weakly(self._admit), variant, table),
            "locks": self._executable.locks,
            "grad": torch.is_grad_enabled,
            "no_grad": torch.no_grad,
            "explain": functools.partial(explain, variant),
            "release": functools.partial(release, variant),
            "is_own": functools.partial(is_own, variant),
        }
        source = entry_source(self._plan, self._executable.locks is not None, head)
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


def _copies(backend: Any) -> bool:
    return isinstance(backend, CompilingBackend) and backend.copies_values


def weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that does not hold the method's object: a session that nobody holds is gone at once."""
    weak = weakref.WeakMethod(method)

    def call(*values: Any) -> Any:
        bound = weak()
        assert bound is not None, "who calls it holds the session"
        return bound(*values)

    return call


def _with_listeners(entry: RequestEntry, listeners: tuple[RequestListener, ...]) -> RequestEntry:
    """Tells the observers of requests, where there are any."""
    if not listeners:
        return entry

    def call(inputs: Mapping[str, Any]) -> dict[str, Any]:
        start, failure = time.perf_counter(), None
        try:
            return entry(inputs)
        except BaseException as error:
            failure = error
            raise
        finally:
            for listener in listeners:
                listener(time.perf_counter() - start, failure)
            failure = None  # its traceback holds this frame

    return call
