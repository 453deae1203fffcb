"""A loaded plan that runs requests.

A session may be called from several threads, and their requests run at the same time. On devices with one output buffer
for each program a request waits where the plan says so, for a program whose result another one is still to read.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NoReturn, overload

from orchestrator.errors import InputError, nearest
from orchestrator.plan.count import constant_bytes
from orchestrator.plan.model import Plan
from orchestrator.plan.records import PlannedGroup
from orchestrator.plan.steps import CallStep, Step
from orchestrator.runner.admit import positional_error
from orchestrator.runner.closing import Closing
from orchestrator.runner.counters import RequestStats
from orchestrator.runner.direct_call import forget_call, set_call
from orchestrator.runner.entries import RequestEntries, RequestEntry, RequestListener, weakly
from orchestrator.runner.exclusive import BufferLocks
from orchestrator.runner.load.load import Executable
from orchestrator.runner.stream.partial import PartialStream
from orchestrator.runner.stream.progress import Listener, ProgressHook
from orchestrator.runner.stream.stream import Stream
from orchestrator.runner.trace import Trace

__all__ = ["Session"]

StageObserver = Callable[[str, str, float], None]

#: Where a device has room for so many requests, nobody counts them.
FEW_PLACES = 64


class Session:
    """Runs requests; made by ``plan.load()``.

    ``session(image=..., text=...)`` takes host tensors and Python values by input name and returns a dict of
    results by output name, on the host. It runs under ``no_grad`` in the caller's own thread.

    Args:
        executable: The loaded plan.
        on_stage: Observers of stages, called with call, device and seconds; empty: the plain path runs.
        on_request: Observers of requests, called with seconds and the error, if any.
    """

    def __init__(
        self,
        executable: Executable,
        on_stage: tuple[StageObserver, ...] = (),
        on_request: tuple[RequestListener, ...] = (),
    ) -> None:
        self.plan: Plan = executable.plan
        self._executable = executable
        self._open_backends = list(executable.backends.values())
        self._stats = RequestStats()
        self._on_stage = on_stage
        self._on_request = on_request
        self._traces: tuple[Trace, ...] = ()
        self._progress_hook = ProgressHook()
        self._closing = Closing()
        # What devices compiled up to here is no request's.
        self._compiles_at_load = sum(self._compiles().values())
        self._locks = _locks(executable, self._closing)
        self._entries = RequestEntries(
            replace(executable, locks=self._locks),
            self._stats,
            self._progress_hook,
            self._closing,
            weakly(self._refuse),
        )
        self._entry: RequestEntry
        self._switch()
        _sessions.add(self)

    def __call__(self, /, *args: NoReturn, **inputs: Any) -> dict[str, Any]:
        """Runs one request, given by input name.

        Raises:
            InputError: It does not fit the plan, comes by position, or the session is closed.
            StageError: A stage raised, or gave something else than it declared.
        """
        if args:
            raise positional_error(self.plan, args)
        return self._entry(inputs)

    def run(
        self,
        inputs: Mapping[str, Any],
        keep_on_device: Iterable[str] = (),
        *,
        progress: Callable[[str, int, int], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> dict[str, Any]:
        """Runs one request, given as a dict.

        Args:
            inputs: Values by input name.
            keep_on_device: Outputs to leave on their device; what is returned for them is valid until ``close``, and
                a later request of this session takes it as an input that is read there.
            progress: Called after each iteration of a loop: its name, iterations done, the most there are. What it
                raises ends the request.
            cancel: Once it is set, the request ends after the iteration that is running.

        Raises:
            InputError: It does not fit the plan, an output is unknown, or the session is closed.
            StageError: A stage raised, or gave something else than it declared.
            CancelledError: ``cancel`` was set.
        """
        device_outputs = _output_names(self.plan, keep_on_device)
        # Code that tells of iterations is another variant of the plan: who does not listen does not pay for it.
        if progress is None and cancel is None:
            return (self._choose(device_outputs) if device_outputs else self._entry)(inputs)
        listener = (
            None if progress is None else (lambda loop, iterations, most, _: progress(loop, iterations, most))
        )
        return self._run_with_progress(device_outputs, (), inputs, listener, cancel)

    def _has_waiters(self) -> bool:
        """Whether somebody waits for the requests that run: to close the session, or to run another one."""
        return self._closed or (self._locks is not None and self._locks.has_waiters)

    def _run_with_progress(
        self,
        device_outputs: frozenset[str],
        partial: tuple[str, ...],
        inputs: Mapping[str, Any],
        listener: Listener | None,
        cancel: threading.Event | None,
    ) -> dict[str, Any]:
        entry = self._choose(device_outputs, partial)
        return self._progress_hook.run(lambda: entry(inputs), listener, cancel)

    @overload
    def stream(
        self, requests: Iterable[Mapping[str, Any]], depth: int = 2, *, keep_on_device: Iterable[str] = ()
    ) -> Stream: ...
    @overload
    def stream(
        self,
        requests: Iterable[Mapping[str, Any]],
        depth: int = 2,
        *,
        partial: Iterable[str],
        keep_on_device: Iterable[str] = (),
    ) -> PartialStream: ...
    def stream(
        self,
        requests: Iterable[Mapping[str, Any]],
        depth: int = 2,
        partial: Iterable[str] = (),
        keep_on_device: Iterable[str] = (),
    ) -> Stream | PartialStream:
        """Runs requests at the same time and yields their results in order.

        Args:
            requests: Dicts of inputs; taken one by one as there is room, and copied: their source may fill the same
                tensors, NumPy arrays and lists again. Other Python objects are handed on as they are.
            depth: How many requests run at once, each in a thread of its own.
            partial: What loops give in each iteration, to be yielded at once: outputs that a loop gives, or its ports
                (``"decode.token"``, or ``"token"`` of every loop). What a carry starts with comes first where the same
                stage, or another call of its object, makes it.
            keep_on_device: As for :meth:`run`.

        Returns:
            An iterator of results; ``next`` raises a failed request's error at its place, and goes on after it. With
            ``partial`` it yields ``(request, name, value)`` as values come: the number of the request, from 0, and
            what it gives in an iteration or, once it is done, each output that was not yielded bit by bit. Few values
            wait to be taken; a slow reader slows the requests down. A request in chunks gives what the iterations of
            one chunk gave, then those of the next. Closing it cancels the requests that run.

        Raises:
            InputError: ``depth`` is not positive, no loop gives a ``partial``, the session is closed, or the caller is
                in a request that holds a program of a device with one output buffer for each.
        """
        names = (partial,) if isinstance(partial, str) else tuple(partial)
        _check_depth(depth)
        if self._closed:
            raise self._refusal()
        if self._locks is not None:
            self._locks.check()
        device_outputs = _output_names(self.plan, keep_on_device)
        if not names:
            run_one = (
                functools.partial(self.run, keep_on_device=device_outputs) if device_outputs else self.run
            )
            return Stream(run_one, requests, depth)
        self._choose(device_outputs, names)
        run = functools.partial(self._run_with_progress, device_outputs, names)
        return PartialStream(run, requests, depth, names, self._has_waiters)

    @property
    def stats(self) -> dict[str, Any]:
        """RequestStats since load, with the keys of ``plan.summary``, and ``requests``.

        Where a device counts by itself, ``measured`` has what it saw, by device; where one may compile for a request,
        ``compiles`` is how often it did since load: 0, unless it was loaded with ``warm=False``.
        """
        stats = self._stats.stats()
        for group in self.plan.groups:
            stats["peak_bytes"].setdefault(group.device, 0)
        backends = self._executable.backends.items()
        by_device = {
            device: counts for device, backend in backends if (counts := backend.measured()) is not None
        }
        if compiles := self._compiles():
            stats["compiles"] = sum(compiles.values()) - self._compiles_at_load
        return {**stats, "measured": by_device} if by_device else stats

    def _compiles(self) -> dict[str, int]:
        """How often devices compiled since they were opened, those that tell."""
        counts = {device: backend.measured() or {} for device, backend in self._executable.backends.items()}
        return {device: measured["compiles"] for device, measured in counts.items() if "compiles" in measured}

    @contextlib.contextmanager
    def trace(self) -> Iterator[Trace]:
        """Records the times of every step while the block runs.

        ``with session.trace() as trace: session(...)``; then ``str(trace)`` is a table, and ``trace.save(path)``
        writes Chrome trace JSON, which ui.perfetto.dev opens.
        """
        trace = Trace(self.plan.pipeline)
        # A new tuple each time: a request that runs goes over the one that it began with.
        with self._entries.lock:
            self._traces = (*self._traces, trace)
            self._switch()
        try:
            yield trace
        finally:
            with self._entries.lock:
                self._traces = tuple(other for other in self._traces if other is not trace)
                self._switch()

    def close(self) -> None:
        """Waits for running requests and gives the devices back; later calls are :class:`InputError`.

        Called from within a request of the session (by a stage, a listener, a signal handler, or a thread that one of
        them waits for), it does not wait: the last request that ends gives the devices back. Where it is interrupted,
        the next call goes on.
        """
        # First the flag, then the tables: a request that looks its form up in vain finds the session closed.
        self._closing.flag[:] = [True]
        self._entries.forget_forms()
        self._closing.close(self._release)

    def _release(self) -> None:
        """Gives the devices back; called again after an interrupt, or where a device failed to close."""
        failures = []
        for backend in tuple(self._open_backends):
            try:
                backend.close()
                self._open_backends.remove(backend)
            except Exception as error:
                failures.append(error)
        # All devices were tried. What held stages and constants lets go of them, whether or not one failed.
        self._entries.clear()
        self._executable = replace(self._executable, functions={}, constants={})
        self._switch()
        if failures:
            raise failures[0]

    def __del__(self) -> None:
        """Gives the devices back where nobody closed the session; no request can be under way."""
        if getattr(self, "_entry", None) is not None and not self._closed:
            with contextlib.suppress(Exception):
                self.close()

    def _after_fork(self) -> None:
        self._entries.lock = threading.RLock()
        self._closing.after_fork()
        if self._locks is not None:
            self._locks.after_fork()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state, devices = "closed" if self._closed else "open", [group.device for group in self.plan.groups]
        return f"<Session of {self.plan.pipeline!r} on {devices}, {state}>"

    @property
    def _closed(self) -> bool:
        return bool(self._closing.flag)

    def _refusal(self) -> InputError:
        text = f"This session of {self.plan.pipeline!r} is closed; load the plan again."
        return InputError(text, session=self)

    def _switch(self) -> None:
        """Takes the entries that fit: plain, observed, or (closed) one that refuses.

        While nobody observes a session its calls go straight to the generated entry.
        """
        self._entry = self._choose(frozenset())
        if self._closed or self._on_stage or self._traces or self._on_request:
            forget_call(self, Session)
        elif type(self) is Session:
            set_call(self, Session, self._entries.method())

    def _refuse(self, _inputs: Mapping[str, Any]) -> dict[str, Any]:
        raise self._refusal()

    def _choose(self, device_outputs: frozenset[str], partial: tuple[str, ...] | None = None) -> RequestEntry:
        """The entry for this set of kept outputs and watched values, observed if somebody listens now."""
        observe = weakly(self._observe) if self._on_stage or self._traces else None
        return self._entries.choose(device_outputs, partial, observe, self._on_request)

    def _observe(self, step: Step, start: float, end: float) -> None:
        for trace in self._traces:
            trace.add(step, start, end)
        match step:
            case CallStep(name=name, device=device):
                for observer in self._on_stage:
                    observer(name, device, end - start)


def _locks(executable: Executable, closing: Closing) -> BufferLocks | None:
    """The locks of a session; None: its requests never wait for one another."""
    plan = executable.plan
    places = [limit for group in plan.groups if (limit := _places(plan, group))]
    if not plan.locks and not places:
        return None
    names = tuple(lock.name for lock in plan.locks)
    return BufferLocks(plan.pipeline, names, min(places, default=0), closing.wakers, closing.is_nested)


def _places(plan: Plan, group: PlannedGroup) -> int:
    """How many requests a device has room for at the same time; 0: for as many as come.

    What one of them puts there is known from the plan. A device with buffers that runs no programs has no locks that
    the planner proved: there one request at a time runs.
    """
    if not group.output_buffers:
        return 0
    if not group.runs_programs:
        return 1
    one, budget = plan.summary["peak_bytes"].get(group.device, 0), dict(plan.budget).get(group.device, 0)
    fixed = dict(plan.weights).get(group.device, 0) + dict(plan.buffers).get(group.device, 0)
    room = budget - fixed - constant_bytes(plan, group.device)
    places = max(1, room // one) if budget and one else 0
    return places if places < FEW_PLACES else 0


#: Sessions that are there, for what a forked process has to put right in them.
_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _after_fork() -> None:
    for session in list(_sessions):
        session._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _check_depth(depth: int) -> None:
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise InputError(f"The depth of a stream is a positive int, not {depth!r}.", depth=depth)


def _output_names(plan: Plan, names: Iterable[str]) -> frozenset[str]:
    """Returns the names of the outputs to keep, once each.

    Raises:
        InputError: One of them is no output.
    """
    device_outputs = frozenset([names] if isinstance(names, str) else names)
    outputs = [name for name, _ in plan.outputs]
    for name in device_outputs:
        if name not in outputs:
            raise InputError(
                f"keep_on_device names {name!r}, which is no output.{nearest(name, outputs)}", output=name
            )
    return device_outputs
