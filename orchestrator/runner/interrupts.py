"""Signals held back: Python calls their handlers only where what they raise does no harm.

Python runs a handler in the main thread, between any two instructions, whichever thread of the process took the signal;
a mask is that of one thread. So where an exception would leave something behind (a forked process that nobody knows,
a lock that a fork hook holds) the handlers are replaced by one that takes a note, and are called later.
"""

from __future__ import annotations

import collections
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["DeferredSignals"]


class DeferredSignals:
    """Holds signals back inside its block; in a thread other than the main one there is nothing to hold back."""

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._queue: collections.deque[tuple[int, FrameType | None]] = collections.deque()

    def __enter__(self) -> DeferredSignals:
        if threading.current_thread() is threading.main_thread():
            try:
                for number in signal.valid_signals():
                    handler = signal.getsignal(number)
                    if callable(handler):
                        self._handlers[number] = handler
                        signal.signal(number, self._enqueue)
            except BaseException:
                self._restore()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        """Puts the handlers back and calls those that are due; what they raise is raised."""
        try:
            self._restore()
        finally:  # one that is back already may have raised
            self._restore()
        self.deliver()

    def deliver(self) -> None:
        """Calls the handlers of the signals that came until now; what they raise is raised."""
        while self._queue:
            number, frame = self._queue.popleft()
            self._handlers[number](number, frame)

    def _enqueue(self, number: int, frame: FrameType | None) -> None:
        self._queue.append((number, frame))

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._enqueue:
                signal.signal(number, handler)
