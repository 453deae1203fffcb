"""Streaming what requests give bit by bit: values of each iteration of a loop, and results, as they come.

Requests run as in :mod:`orchestrator.runner.stream.stream`, each in a thread of its own. What they give goes through
one channel, so that values of different requests interleave, but those of one request keep their order. The channel
holds few values: who reads slowly slows the requests down.
"""

from __future__ import annotations

import collections
import functools
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.runner.stream.progress import Listener
from orchestrator.runner.stream.stream import RequestPool
from orchestrator.runner.waiting import POLL_SECONDS

__all__ = ["PartialStream"]

Partial = tuple[int, str, Any]
Run = Callable[[Mapping[str, Any], Listener, threading.Event], dict[str, Any]]

#: Values that wait to be taken, for each request that is under way.
ROOM = 2


class Channel:
    """Hands values from the threads that make them to the one that takes them.

    Args:
        room: How many wait at most.
        cancel: Once it is set nobody takes values any more.
        has_waiters: Tells whether somebody waits for the requests to end: then they do not wait for room.
    """

    def __init__(self, room: int, cancel: threading.Event, has_waiters: Callable[[], bool]) -> None:
        self._room = room
        self._cancel = cancel
        self._has_waiters = has_waiters
        self._items: collections.deque[tuple[Partial | None, BaseException | None]] = collections.deque()
        self._condition = threading.Condition()

    def put(self, value: Partial) -> None:
        """Adds a value, once there is room for it."""
        with self._condition:
            while len(self._items) >= self._room and not self._cancel.is_set() and not self._has_waiters():
                self._condition.wait(POLL_SECONDS)
            self._items.append((value, None))
            self._condition.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """Says that a request ended, and how; there is always room for that."""
        with self._condition:
            self._items.append((None, error))
            self._condition.notify_all()

    def take(self) -> tuple[Partial | None, BaseException | None]:
        """Waits for the next value, or the end of a request."""
        with self._condition:
            while not self._items:
                self._condition.wait()
            item = self._items.popleft()
            self._condition.notify_all()
        return item

    def cancel(self) -> None:
        """Lets go of those that wait for room."""
        with self._condition:
            self._cancel.set()
            self._condition.notify_all()


@dataclass(frozen=True)
class _PartialRun:
    """Runs requests and puts what they give into the channel.

    It does not hold the stream, so that one that nobody holds any more cancels what runs.
    """

    run: Run
    names: Collection[str]
    channel: Channel
    cancel: threading.Event

    def __call__(self, number: int, request: Mapping[str, Any]) -> dict[str, Any]:
        early_names: set[str] = set()

        def listen(_loop: str, iterations: int, _most: int, values: dict[str, Any]) -> None:
            for name, value in values.items():
                self.channel.put((number, name, value))
            if not iterations:
                early_names.update(values)

        # The end comes last, and always: who takes values counts the requests that run by it.
        try:
            results = self.run(request, listen, self.cancel)
            for name, value in results.items():
                if name not in self.names and name not in early_names:
                    self.channel.put((number, name, value))
        except BaseException as error:
            self.channel.end(error)
        else:
            self.channel.end()
        return {}


class PartialStream(Iterator[Partial]):
    """Yields ``(request, name, value)``; at most ``depth`` requests are under way, and few values wait to be taken.

    Args:
        run: Runs one request, with a listener of its iterations and an event that cancels it.
        requests: The requests; taken as there is room, and copied.
        depth: How many are under way.
        names: What is yielded in each iteration; outputs of these names are not yielded again.
        has_waiters: Tells whether somebody waits for the requests to end.
    """

    def __init__(
        self,
        run: Run,
        requests: Iterable[Mapping[str, Any]],
        depth: int,
        names: Collection[str],
        has_waiters: Callable[[], bool],
    ) -> None:
        self._depth = depth
        self._cancel = threading.Event()
        # Threads that run requests hold the channel, not the stream: a stream that is dropped can end them.
        self._number = 0
        self._running = 0
        self._pool = RequestPool(requests, depth)
        self._channel = Channel(ROOM * depth, self._cancel, has_waiters)
        self._run = _PartialRun(run, names, self._channel, self._cancel)

    def __next__(self) -> Partial:
        """Returns what comes next.

        Raises:
            InputError, StageError: What a request failed with; the others go on.
            StopIteration: All requests are done.
        """
        self._pool.check()
        self._fill()
        # An end makes room for one more request; one that waits for another's end is not taken before that.
        while self._running:
            value, error = self._channel.take()
            if value is not None:
                return value
            self._running -= 1
            if not self._running:
                self._pool.settle()
            if error is not None:
                try:
                    raise error
                finally:
                    del error  # its traceback holds this frame
            self._fill()
        self.close()
        raise StopIteration

    def _fill(self) -> None:
        while self._running < self._depth:
            future = self._pool.start(functools.partial(self._run, self._number))
            if future is None:
                return
            self._number += 1
            self._running += 1
            # A request tells its end by itself; where the source failed there is none that would.
            if future.done() and (error := future.exception()) is not None:
                self._channel.end(error)

    def close(self) -> None:
        """Cancels what is under way, waits for it, and takes no more requests; one of the requests does not wait."""
        self._channel.cancel()
        self._pool.close()
        self._running = 0

    def __enter__(self) -> PartialStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        pool = getattr(self, "_pool", None)
        if pool is not None:
            self._cancel.set()
            pool.close(wait=False)
