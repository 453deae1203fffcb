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
from orchestrator.runner.waiting import PATIENCE, Awaiting, is_waited_for, stack

__all__ = ["Closing"]


class Closing(Awaiting):
    """Counts the requests of a session that are under way, and ends it.

    Attributes:
        active: As long as there are requests under way.
        asked: Empty until the session is closed; a generated entry looks at it after its request.
    """

    def __init__(self) -> None:
        self.active: collections.deque[None] = collections.deque()
        self.asked: list[bool] = []
        self._left: Callable[[], None] | None = None
        self._released = False
        self._renew()

    def _renew(self) -> None:
        self._ended = threading.Condition()
        self._releasing = threading.RLock()

    def close(self, release: Callable[[], None]) -> None:
        """Waits for the requests and gives the devices back, once no more of them come in.

        It may be called again, also where it was interrupted.

        Args:
            release: Gives the devices back. It goes on where it was interrupted when it is called again.
        """
        if self._is_inside(sys._getframe()):
            self._left = release
            return
        with self._ended:
            while self.active:
                if not self._ended.wait(PATIENCE) and is_waited_for(self.awaited()):
                    self._left = release
                    break
        if not self.active:
            self._end(release)

    def finish(self) -> None:
        """Ends a request of a session that is being closed."""
        with self._ended:
            self._ended.notify_all()
        release = self._left
        if release is not None and not self.active:
            with contextlib.suppress(Exception):  # the next ``close`` tries again, and raises it
                self._end(release)

    def awaited(self) -> set[int]:
        """Idents of the threads that run requests."""
        return {ident for ident, frame in sys._current_frames().items() if self._is_inside(frame)}

    def after_fork(self) -> None:
        """Starts anew in a forked process: other threads are gone, and with them their requests."""
        self.active.clear()
        self.active.extend(None for each in stack(sys._getframe()) if self._is_own(each))
        self._renew()

    def _end(self, release: Callable[[], None]) -> None:
        with self._releasing:
            if not self._released:
                release()
                self._released, self._left = True, None

    def _is_inside(self, frame: FrameType) -> bool:
        """Tells whether a request of the session is on a stack; no request pays for being found."""
        return any(map(self._is_own, stack(frame)))

    def _is_own(self, frame: FrameType) -> bool:
        return is_entry(frame.f_code) and frame.f_globals.get("closing") is self.asked
