"""The end of a session: no more requests, those that run end, and the devices are given back, once.

Where waiting for the requests would never end, since the caller is in one of them or one of them waits for the caller,
nobody waits: the last request gives the devices back.
"""

from __future__ import annotations

import collections
import contextlib
import sys
import threading
from collections.abc import Callable
from types import FrameType

from orchestrator.runner.codegen.request_entry import is_entry
from orchestrator.runner.waiting import POLL_SECONDS, WaitPoint, is_waited_for, stack

__all__ = ["Closing"]


class Closing(WaitPoint):
    """Counts the requests of a session that are under way, and ends it.

    Attributes:
        active: One item for each request that is under way; appending and popping are one C call each.
        flag: Empty until the session is closed, then ``[True]``. A list, since a generated entry has it as a global and
            looks at it after its request.
    """

    def __init__(self) -> None:
        self.active: collections.deque[None] = collections.deque()
        self.flag: list[bool] = []
        self._deferred_release: Callable[[], None] | None = None
        self._is_released = False
        self._renew()

    def _renew(self) -> None:
        self._condition = threading.Condition()
        self._release_lock = threading.RLock()

    def close(self, release: Callable[[], None]) -> None:
        """Waits for the requests and gives the devices back, once no more of them come in.

        It may be called again, also where it was interrupted.

        Args:
            release: Gives the devices back. It goes on where it was interrupted when it is called again.
        """
        # The caller is in a request: that one would have to end for the wait to end.
        if self._is_inside(sys._getframe()):
            self._deferred_release = release
            return
        # Others run. A request that ends after the look at ``active`` notifies, so no end is missed.
        with self._condition:
            while self.active:
                if not self._condition.wait(POLL_SECONDS) and is_waited_for(self.wakers()):
                    self._deferred_release = release
                    break
        # Where the wait was given up, the last request releases; it may have ended since.
        if not self.active:
            self._end(release)

    def finish(self) -> None:
        """Ends a request of a session that is being closed."""
        with self._condition:
            self._condition.notify_all()
        release = self._deferred_release
        if release is not None and not self.active:
            with contextlib.suppress(Exception):  # the next ``close`` tries again, and raises it
                self._end(release)

    def wakers(self) -> set[int]:
        """Idents of the threads that run requests."""
        return {ident for ident, frame in sys._current_frames().items() if self._is_inside(frame)}

    def is_nested(self) -> bool:
        """Tells whether the calling thread is in two requests, one inside the other."""
        return sum(map(self._is_own, stack(sys._getframe()))) > 1

    def after_fork(self) -> None:
        """Starts anew in a forked process: other threads are gone, and with them their requests."""
        self.active.clear()
        self.active.extend(None for each in stack(sys._getframe()) if self._is_own(each))
        self._renew()

    def _end(self, release: Callable[[], None]) -> None:
        with self._release_lock:
            if not self._is_released:  # a call that was interrupted left it so, and the next one goes on
                release()
                self._is_released, self._deferred_release = True, None

    def _is_inside(self, frame: FrameType) -> bool:
        """Tells whether a request of the session is on a stack; no request pays for being found."""
        return any(map(self._is_own, stack(frame)))

    def _is_own(self, frame: FrameType) -> bool:
        return is_entry(frame.f_code) and frame.f_globals.get("closing") is self.flag
