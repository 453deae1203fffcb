"""Who waits for whom: whether a thread would wait for ever if it waited for another one.

A stage may wait for a thread that in turn closes the stage's session, or runs a request that waits for the turn of the
stage's. Neither could go on. Nothing on the way of a request notes such things; they are read off the stacks of the
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

__all__ = ["PATIENCE", "Awaiting", "is_waited_for", "stack"]

#: Seconds to wait before looking at stacks, and from one look to the next.
PATIENCE = 0.2

#: Modules whose functions of these names wait for what they have as ``self``.
_MODULES = ("threading", "queue", "concurrent.futures._base")
_WAITS = ("acquire", "exception", "get", "join", "put", "result", "wait", "wait_for", "_wait_for_tstate_lock")


class Awaiting(abc.ABC):
    """Where threads wait in this package; a frame that waits there has it as ``self``."""

    @abc.abstractmethod
    def awaited(self) -> set[int]:
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
    ahead, seen = set(threads) - {own}, {own}
    while ahead:
        ident = ahead.pop()
        seen.add(ident)
        wakers = _wakers(ident, frames) if ident in frames else set()
        if own in wakers:
            return True
        ahead |= wakers - seen
    return False


def _wakers(ident: int, frames: Mapping[int, FrameType]) -> set[int]:
    """Threads that may end what a thread waits for now; none where it does not wait, or not for ever."""
    wakers: set[int] = set()
    limited = False
    for frame in stack(frames[ident]):
        awaited = frame.f_locals.get("self")
        if isinstance(awaited, Awaiting):
            return awaited.awaited()
        if frame.f_globals.get("__name__") not in _MODULES or frame.f_code.co_name not in _WAITS:
            break
        limited = limited or frame.f_locals.get("timeout") not in (None, -1)
        if isinstance(awaited, threading.Thread):
            wakers.add(awaited.ident or 0)
        else:
            wakers |= {other for other in frames if other != ident and _holds(frames[other], awaited)}
    return set() if limited else wakers


def _holds(frame: FrameType, awaited: Any) -> bool:
    """Tells whether a thread has an object in a variable of one of its functions, or runs the future that it is."""
    for each in stack(frame):
        variables = each.f_locals
        if variables is each.f_globals:
            continue  # the top of a script, which has everything
        if any(value is awaited for value in variables.values()):
            return True
        if getattr(variables.get("self"), "future", None) is awaited:
            return True
    return False
