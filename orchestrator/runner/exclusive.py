"""One request at a time, on devices with one output buffer for each program."""

from __future__ import annotations

import contextlib
import threading

from orchestrator.errors import InputError
from orchestrator.runner.waiting import POLL_SECONDS, WaitPoint, is_waited_for

__all__ = ["RequestLock"]


class RequestLock(WaitPoint):
    """A lock for whole requests.

    Other threads wait. The thread that holds it, in a stage or a listener that runs a request of the same session,
    would wait for itself, or overwrite what the outer request is still to read; it is refused, and so is a thread that
    it waits for.

    Args:
        pipeline: The pipeline's name.
    """

    def __init__(self, pipeline: str) -> None:
        self._pipeline = pipeline
        self._lock = threading.RLock()
        self._holder = 0  # ident of the thread that is in a request, which no thread has as 0
        self._waiting: list[None] = []

    @property
    def has_waiters(self) -> bool:
        """Whether somebody waits for it."""
        return bool(self._waiting)

    def check(self) -> None:
        """Makes sure that this thread is in no request.

        Raises:
            InputError: It is.
        """
        if self._holder == threading.get_ident():
            raise self._refusal("runs in this thread already")

    def __enter__(self) -> None:
        """Waits for the other threads' requests.

        Raises:
            InputError: This thread is in a request already, or a request waits for this thread.
        """
        self.check()
        try:
            if not self._lock.acquire(blocking=False):
                self._wait()
            self._holder = threading.get_ident()
        except BaseException:
            # An interrupt may come right after the lock was taken, or before: only what is taken can be released.
            with contextlib.suppress(RuntimeError):
                self._lock.release()
            raise

    def _wait(self) -> None:
        self._waiting.append(None)
        try:
            while not self._lock.acquire(timeout=POLL_SECONDS):
                if is_waited_for(self.wakers()):
                    raise self._refusal("runs, and waits for this thread")
        finally:
            self._waiting.pop()

    def __exit__(self, *_: object) -> None:
        self._holder = 0
        self._lock.release()

    def wakers(self) -> set[int]:
        """Ident of the thread that holds it."""
        return {self._holder} - {0}

    def after_fork(self) -> None:
        """Starts anew in a forked process, unless this thread holds it: other threads are gone."""
        if self._holder != threading.get_ident():
            self._lock, self._holder = threading.RLock(), 0
        self._waiting.clear()

    def _refusal(self, state: str) -> InputError:
        return InputError(
            f"A request of {self._pipeline!r} {state}, and another one inside it would overwrite "
            f"what it reads: each program has one output buffer. Run it afterwards, or load the plan twice.",
            pipeline=self._pipeline,
        )
