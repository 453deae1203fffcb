"""What one request at a time uses: output buffers of programs, and states.

Which locks there are, and from which step to which a request holds them, is said by the plan
(:mod:`orchestrator.plan.locks`); generated code takes and gives them back. Whatever ends a request, an error or an
interrupt at any point, it leaves no lock held: its end drops all that its thread has, and who waits looks whether the
holder is still in a request at all.

A lock is an entry of a dict, which is made and taken out in one call each, so that no interrupt comes between.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue

from orchestrator.errors import InputError
from orchestrator.runner.waiting import POLL_SECONDS, WaitPoint, is_waited_for

__all__ = ["BufferLocks"]


class BufferLocks:
    """The locks of a session.

    A thread that holds one, in a stage or a listener that runs a request of the same session, would overwrite what the
    outer request is still to read; it is refused, and so is a thread that waits for one which waits for it.

    Args:
        pipeline: The pipeline's name.
        names: The locks, in the order in which they are taken.
        places: How many requests may be under way; 0: any number.
        running: Returns the idents of the threads that are in a request of the session.
        is_nested: Tells whether the calling thread is in two of them.
    """

    def __init__(
        self,
        pipeline: str,
        names: tuple[str, ...],
        places: int,
        running: Callable[[], set[int]],
        is_nested: Callable[[], bool],
    ) -> None:
        self._pipeline = pipeline
        self._names = names
        #: A request that is under way has one of these, too; no lock of a plan has a number for a name.
        self._places = tuple(range(places))
        self._running = running
        self._is_nested = is_nested
        self._holders: dict[str | int, int] = {}  # to idents of threads
        self._waits: dict[int, _Wait] = {}  # by ident of the thread, the longest wait first
        self._mutex = threading.Lock()

    @property
    def has_waiters(self) -> bool:
        """Whether somebody waits for one of them."""
        return bool(self._waits)

    @property
    def is_short(self) -> bool:
        """Whether there is memory for a few requests at a time alone."""
        return bool(self._places)

    def check(self) -> None:
        """Makes sure that this thread holds none.

        Raises:
            InputError: It does.
        """
        if threading.get_ident() in self._holders.values():
            raise self._refusal("runs in this thread already")

    def __enter__(self) -> None:
        """Begins a request: waits until there is a place for it.

        Raises:
            InputError: This thread holds a lock, or a request waits for this thread.
        """
        ident = threading.get_ident()
        # What this thread holds is an outer request's, or was left by one that was interrupted at its very end. Who
        # waits for that may be taking it away just now, under the mutex.
        if ident in self._holders.values():
            if self._is_nested():
                self.check()
            with self._mutex:
                self._drop_all(ident)
        if self._places and not self._is_taken(self._places, ident):
            try:
                self._wait(self._places, ident)
            except BaseException:
                self._drop_all(ident)  # a place may have been handed over meanwhile
                raise

    def __exit__(self, *_: object) -> None:
        """Ends a request: drops what its thread still has."""
        self._drop_all(threading.get_ident())

    def lock(self, name: str) -> None:
        """Takes a lock, once the request that has it gives it back; one that this thread has is left as it is.

        Raises:
            InputError: The thread that has it waits for this one.
        """
        ident = threading.get_ident()
        if self._holders.setdefault(name, ident) != ident:
            self._wait((name,), ident)

    def unlock(self, name: str) -> None:
        """Gives back a lock that this thread has."""
        self._drop(name)

    def _is_taken(self, names: Iterable[str | int], ident: int) -> bool:
        """Takes the first of these that is free, or was handed over to this thread already."""
        holders = self._holders
        return any(holders.get(name) == ident for name in names) or any(
            holders.setdefault(name, ident) == ident for name in names
        )

    def _wait(self, names: tuple[str | int, ...], ident: int) -> None:
        wait = self._waits[ident] = _Wait(self, names)
        try:
            wait.run(ident)
        finally:
            self._waits.pop(ident, None)

    def _drop(self, name: str | int) -> None:
        """Hands a lock over to who has waited for it longest, or makes it free."""
        heir = self._longest_wait(name)
        if heir is not None:
            ident, wait = heir
            self._holders[name] = ident
            wait.wake()
            return
        self._holders.pop(name, None)
        # Who began to wait in between has found it taken.
        heir = self._longest_wait(name)
        if heir is not None:
            heir[1].wake()

    def _longest_wait(self, name: str | int) -> tuple[int, _Wait] | None:
        if not self._waits:
            return None
        waits = ((ident, wait) for ident, wait in list(self._waits.items()) if name in wait.names)
        return next(waits, None)

    def _drop_all(self, ident: int) -> None:
        self._waits.pop(ident, None)
        for name in [name for name, holder in list(self._holders.items()) if holder == ident]:
            self._drop(name)

    def look(self, names: Iterable[str | int]) -> None:
        """Looks, for a thread that has waited a while, at those that have what it waits for.

        Raises:
            InputError: Each of them waits for this thread, without a limit.
        """
        # A holder that is in no request was interrupted as its last one ended. It cannot begin another one meanwhile:
        # it would come to the mutex first.
        with self._mutex:
            running = self._running() | {threading.get_ident()}
            for name in names:
                if self._holders.get(name, 0) not in (0, *running):
                    self._drop(name)
        holders = self.holders_of(names) - {threading.get_ident()}
        if holders and all(is_waited_for({holder}) for holder in holders):
            raise self._refusal("runs, and waits for this thread")

    def holders_of(self, names: Iterable[str | int]) -> set[int]:
        """Returns the idents of the threads that have one of these."""
        return {holder for name in names if (holder := self._holders.get(name, 0))}

    def after_fork(self) -> None:
        """Forgets what other threads have: they are gone."""
        self._mutex = threading.Lock()
        own = threading.get_ident()
        self._holders = {name: ident for name, ident in self._holders.items() if ident == own}
        self._waits.clear()

    def _refusal(self, state: str) -> InputError:
        return InputError(
            f"A request of {self._pipeline!r} {state}, and another one inside it would overwrite "
            f"what it reads: each program has one output buffer. Run it afterwards, or load the plan twice.",
            pipeline=self._pipeline,
        )


class _Wait(WaitPoint):
    """One thread's wait.

    Args:
        locks: The locks.
        names: Those of which it wants one.
    """

    def __init__(self, locks: BufferLocks, names: tuple[str | int, ...]) -> None:
        self.names = names
        self._locks = locks
        self._bell: SimpleQueue[None] = SimpleQueue()

    def run(self, ident: int) -> None:
        """Waits until the thread has one of the locks."""
        while not self._locks._is_taken(self.names, ident):
            try:
                self._bell.get(timeout=POLL_SECONDS)
            except Empty:
                self._locks.look(self.names)

    def wake(self) -> None:
        """Has the thread look again."""
        self._bell.put(None)

    def wakers(self) -> set[int]:
        """Idents of the threads that have what this one waits for."""
        return self._locks.holders_of(self.names)
