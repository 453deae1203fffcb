"""Streaming: several requests at once, results in order.

Each request runs whole, in a thread of its own, under the caller's grad mode, inference mode and autocast (torch
keeps these per thread). While one request is in a stage that releases the interpreter lock, or waits for a device,
the others go on: stages of different requests run at the same time.

A request is taken from its source before those that it took earlier are done, so that a source that fills one buffer
again and again would overwrite what still runs: what is taken is copied. Until a request is done that holds what cannot
be copied, an object of a class of the user's, none is taken after it.
"""

from __future__ import annotations

import collections
import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch

from orchestrator.errors import InputError
from orchestrator.runner.copies import copy_request

__all__ = ["RequestPool", "Stream", "TorchModes"]

Result = dict[str, Any]


class RequestPool:
    """The threads that run the requests of one stream.

    Args:
        requests: The requests; taken as there is room, and copied.
        depth: How many are under way.
    """

    def __init__(self, requests: Iterable[Any], depth: int) -> None:
        self._requests = map(copy_request, requests)
        self._modes = TorchModes()
        self._process = os.getpid()
        self._idents: set[int] = set()
        self._blocker: Future[Any] | None = (
            None  # the request with what could not be copied, until it is done
        )
        self._executor: ThreadPoolExecutor | None = ThreadPoolExecutor(
            depth, "orchestrator-stream", initializer=_note_thread, initargs=(self._idents,)
        )

    def check(self) -> None:
        """Makes sure that the caller may wait for a result.

        Raises:
            InputError: It is one of the requests, or a process that was forked from the stream's.
        """
        if threading.get_ident() in self._idents:
            raise InputError(
                "A request of a stream cannot wait for a result of the same stream: it would be its own."
            )
        if os.getpid() != self._process:
            raise InputError(
                "A forked process has no threads of its parent's stream; make a stream of its own there."
            )

    def start(self, run: Callable[[Any], Any]) -> Future[Any] | None:
        """Takes the next request and runs it.

        Returns:
            What becomes of it; of a source that failed, its failure. None: there is none, the stream is closed, or an
            earlier one has to be done first.
        """
        if self._executor is None or not self._is_free():
            return None
        # A source is the user's code: what it raises is told in the place of its request, and it is not asked again.
        try:
            request, is_independent = next(self._requests)
        except StopIteration:
            return None
        except Exception as error:
            self._requests = map(copy_request, ())
            failure: Future[Any] = Future()
            failure.set_exception(error)
            return failure
        executor = self._executor  # the source may have closed the stream
        future = None if executor is None else executor.submit(self._modes.call, run, request)
        self._blocker = None if is_independent else future
        return future

    def settle(self) -> None:
        """Waits for the request after which none is taken."""
        if self._blocker is not None:
            wait((self._blocker,))

    def _is_free(self) -> bool:
        """Tells whether a source may change what it gave before."""
        return self._blocker is None or self._blocker.done()

    def close(self, wait: bool = True) -> None:
        """Takes no more requests, drops those that have not begun, and waits for the others.

        One of the requests does not wait: it would wait for itself.
        """
        executor, self._executor, self._requests = self._executor, None, map(copy_request, ())
        if executor is not None:
            executor.shutdown(wait=wait and threading.get_ident() not in self._idents, cancel_futures=True)


def _note_thread(threads: set[int]) -> None:
    threads.add(threading.get_ident())


class Stream(Iterator[Result]):
    """Results of requests, in order; at most ``depth`` are under way or waiting to be taken.

    Args:
        run: Runs one request.
        requests: The requests; taken as there is room, and copied.
        depth: How many are under way.
    """

    def __init__(
        self, run: Callable[[Mapping[str, Any]], Result], requests: Iterable[Mapping[str, Any]], depth: int
    ) -> None:
        self._run = run
        self._depth = depth
        self._pool = RequestPool(requests, depth)
        self._waiting: collections.deque[Future[Result]] = collections.deque()

    def __next__(self) -> Result:
        """Returns the next result.

        Raises:
            InputError, StageError: What this request failed with; the one after it comes next.
            StopIteration: All requests are done.
        """
        self._pool.check()
        self._fill()
        if not self._waiting:
            self.close()
            raise StopIteration
        # The first one is next. It is waited for before it is taken off: an interrupt loses no result.
        future = self._waiting[0]
        future.exception()
        if self._waiting and self._waiting[0] is future:
            self._waiting.popleft()
        try:
            return future.result()
        finally:
            del future
            self._fill()

    def _fill(self) -> None:
        while len(self._waiting) < self._depth:
            future = self._pool.start(self._run)
            if future is None:
                return
            self._waiting.append(future)

    def close(self) -> None:
        """Waits for what is under way and takes no more requests; called by one of the requests, it does not wait."""
        self._pool.close()
        self._waiting.clear()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        pool = getattr(self, "_pool", None)
        if pool is not None:
            pool.close(wait=False)


class TorchModes:
    """The torch modes of the thread that made it, to be taken on by another."""

    _KINDS = ("cpu", "cuda")

    def __init__(self) -> None:
        self.grad = torch.is_grad_enabled()
        self.inference = torch.is_inference_mode_enabled()
        self.autocast = [
            (kind, torch.get_autocast_dtype(kind)) for kind in self._KINDS if torch.is_autocast_enabled(kind)
        ]

    def call(self, run: Callable[[Any], Result], request: Any) -> Result:
        """Runs a request under these modes."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(self.inference))
            if not self.inference:
                stack.enter_context(torch.set_grad_enabled(self.grad))
            for kind, dtype in self.autocast:
                stack.enter_context(torch.autocast(kind, dtype))
            return run(request)
