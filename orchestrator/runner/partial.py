"""Streaming what requests give bit by bit: values of each iteration of a loop, and results, as they come.

Requests run as in :mod:`orchestrator.runner.stream`, each in a thread of its own. What they give goes through one
queue, so that values of different requests interleave, but those of one request keep their order.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from orchestrator.runner.stream import Modes
from orchestrator.runner.watch import Listener

__all__ = ["PartialStream"]

Partial = tuple[int, str, Any]
Given = queue.SimpleQueue[tuple[Partial | None, Exception | None]]
Run = Callable[[Mapping[str, Any], Listener, threading.Event], dict[str, Any]]


@dataclass(frozen=True)
class _One:
    """Runs one request and puts what it gives into the queue.

    It does not hold the stream, so that one that nobody holds any more cancels what runs.
    """

    run: Run
    names: Collection[str]
    given: Given
    cancel: threading.Event

    def __call__(self, numbered: tuple[int, Mapping[str, Any]]) -> dict[str, Any]:
        number, request = numbered

        def listen(_loop: str, _done: int, _most: int, values: dict[str, Any]) -> None:
            for name, value in values.items():
                self.given.put(((number, name, value), None))

        try:
            results = self.run(request, listen, self.cancel)
        except Exception as error:
            self.given.put((None, error))
        else:
            for name, value in results.items():
                if name not in self.names:
                    self.given.put(((number, name, value), None))
            self.given.put((None, None))
        return {}


class PartialStream(Iterator[Partial]):
    """Yields ``(request, name, value)``; at most ``depth`` requests are under way.

    Args:
        run: Runs one request, with a listener of its iterations and an event that cancels it.
        requests: The requests; taken as there is room.
        depth: How many are under way.
        names: What is yielded in each iteration; outputs of these names are not yielded again.
    """

    def __init__(
        self, run: Run, requests: Iterable[Mapping[str, Any]], depth: int, names: Collection[str]
    ) -> None:
        self._requests = enumerate(requests)
        self._depth = depth
        self._modes = Modes()
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(
            depth, thread_name_prefix="orchestrator-stream"
        )
        self._cancel = threading.Event()
        self._running = 0
        self._given: Given = queue.SimpleQueue()
        self._one = _One(run, names, self._given, self._cancel)

    def __next__(self) -> Partial:
        """Returns what comes next.

        Raises:
            InputError, StageError: What a request failed with; the others go on.
            StopIteration: All requests are done.
        """
        self._fill()
        while self._running:
            value, error = self._given.get()
            if value is not None:
                return value
            self._running -= 1
            if error is not None:
                try:
                    raise error
                finally:
                    del error  # its traceback holds this frame
            self._fill()
        self.close()
        raise StopIteration

    def _fill(self) -> None:
        while self._pool is not None and self._running < self._depth:
            try:
                number, request = next(self._requests)
            except StopIteration:
                return
            except Exception as error:
                self._requests = enumerate(())
                self._running += 1
                self._given.put((None, error))
                return
            self._running += 1
            self._pool.submit(self._modes.call, self._one, (number, request))

    def close(self) -> None:
        """Cancels what is under way, waits for it, and takes no more requests."""
        self._cancel.set()
        if self._pool is not None:
            pool, self._pool = self._pool, None
            pool.shutdown(wait=True, cancel_futures=True)
            self._running = 0

    def __enter__(self) -> PartialStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_pool", None) is not None:
            self._cancel.set()
            self._pool.shutdown(wait=False, cancel_futures=True)  # type: ignore[union-attr]
