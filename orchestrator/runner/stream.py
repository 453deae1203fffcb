"""Streaming: several requests at once, results in order.

Each request runs whole, in a thread of its own, under the caller's grad mode, inference mode and autocast (torch
keeps these per thread). While one request is in a stage that releases the interpreter lock, or waits for a device,
the others go on: stages of different requests run at the same time.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

__all__ = ["Modes", "Stream"]

Result = dict[str, Any]


class Stream(Iterator[Result]):
    """Results of requests, in order; at most ``depth`` are under way or waiting to be taken.

    Args:
        run: Runs one request.
        requests: The requests; taken as there is room.
        depth: How many are under way.
    """

    def __init__(
        self, run: Callable[[Mapping[str, Any]], Result], requests: Iterable[Mapping[str, Any]], depth: int
    ) -> None:
        self._run = run
        self._requests = iter(requests)
        self._depth = depth
        self._modes = Modes()
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(
            depth, thread_name_prefix="orchestrator-stream"
        )
        self._waiting: collections.deque[Future[Result]] = collections.deque()

    def __next__(self) -> Result:
        """Returns the next result.

        Raises:
            InputError, StageError: What this request failed with; the one after it comes next.
            StopIteration: All requests are done.
        """
        self._fill()
        if not self._waiting:
            self.close()
            raise StopIteration
        future = self._waiting.popleft()
        try:
            return future.result()
        finally:
            del future
            self._fill()

    def _fill(self) -> None:
        while self._pool is not None and len(self._waiting) < self._depth:
            try:
                request = next(self._requests)
            except StopIteration:
                return
            except Exception as error:
                self._requests = iter(())
                self._waiting.append(_failed(error))
                return
            self._waiting.append(self._pool.submit(self._modes.call, self._run, request))

    def close(self) -> None:
        """Waits for what is under way and takes no more requests."""
        if self._pool is not None:
            pool, self._pool = self._pool, None
            for future in self._waiting:
                future.cancel()
            pool.shutdown(wait=True)
            self._waiting.clear()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_pool", None) is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)  # type: ignore[union-attr]


def _failed(error: Exception) -> Future[Result]:
    future: Future[Result] = Future()
    future.set_exception(error)
    return future


class Modes:
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
