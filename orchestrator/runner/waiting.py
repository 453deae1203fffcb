"""Who waits for whom: whether a thread would wait for ever if it waited for another one.

A stage may wait for a thread that in turn closes the stage's session, or runs a request that waits until the stage's
own is done. Neither could go on. Nothing on the way of a request notes such things; they are read off the stacks of the
threads, by whoever has waited for a while already.

Only waits without a limit of time count: ``Thread.join``, ``Future.result``, and those of locks, conditions, events and
queues that are written in Python, as long as they are given no timeout. What would end such a wait is the thread that
is joined, that runs the future, or that has the event (condition, queue) in a local variable of a function.
"""

from __future__ import annotations

import abc
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from types import FrameType
from typing import Any

__all__ = ["POLL_SECONDS", "WaitPoint", "is_waited_for", "stack"]

#: Seconds to wait before looking at stacks, and from one look to the next.
POLL_SECONDS = 0.2

#: Modules whose functions of these names wait for what they have as ``self``.
_MODULES = ("threading", "queue", "concurrent.futures._base")
_WAITS = ("acquire", "exception", "get", "join", "put", "result", "wait", "wait_for", "_wait_for_tstate_lock")


class WaitPoint(abc.ABC):
    """Where threads wait in this package; a frame that waits there has it as ``self``."""

    @abc.abstractmethod
    def wakers(self) -> set[int]:
        """Idents of the threads that may end the wait."""


def stack(frame: FrameType | None) -> Iterator[FrameType]:
    """Yields a frame and those that called it, innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def is_waited_for(threads: Iterable[int]) -> bool:
    """Tells whether one of these threads waits for the calling one, by way of others or not, without a limit."""
    own = threading.get_ident()
    frames = sys._current_frames()
    # From each thread to those that may wake it, until the caller turns up among them.
    queue, past = set(threads) - {own}, {own}
    while queue:
        ident = queue.pop()
        past.add(ident)
        wakers = _wakers(ident, frames) if ident in frames else set()
        if own in wakers:
            return True
        queue |= wakers - past
    return False


def _wakers(ident: int, frames: Mapping[int, FrameType]) -> set[int]:
    """Threads that may end what a thread waits for now; none where it does not wait, or not for ever."""
    wakers: set[int] = set()
    has_timeout = False
    # Waits call one another (``Queue.get`` a condition's, that one a lock's): the frames of one wait are the innermost
    # ones, up to the first that is of no wait.
    for frame in stack(frames[ident]):
        target = frame.f_locals.get("self")
        if isinstance(target, WaitPoint):
            return target.wakers()
        if frame.f_globals.get("__name__") not in _MODULES or frame.f_code.co_name not in _WAITS:
            break
        # A limit of any of them ends the whole wait.
        has_timeout = has_timeout or frame.f_locals.get("timeout") not in (None, -1)
        if isinstance(target, threading.Thread):
            wakers.add(target.ident or 0)
        else:
            wakers |= {other for other in frames if other != ident and _holds(frames[other], target)}
    return set() if has_timeout else wakers


def _holds(frame: FrameType, target: Any) -> bool:
    """Tells whether a thread has an object in a variable of one of its functions, or runs the future that it is."""
    for each in stack(frame):
        variables = each.f_locals
        if variables is each.f_globals:
            continue  # the top of a script, which has everything
        if any(value is target for value in variables.values()):
            return True
        if getattr(variables.get("self"), "future", None) is target:
            return True
    return False
