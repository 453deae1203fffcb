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
import copy
import dataclasses
import enum
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import PurePath
from typing import Any

import torch

from orchestrator.errors import InputError

__all__ = ["Modes", "Stream", "Workers", "copied"]

Result = dict[str, Any]

#: Types of values that nobody changes.
_LASTING = (
    str,
    bytes,
    int,
    float,
    complex,
    type(None),
    type,
    enum.Enum,
    frozenset,
    PurePath,
    torch.dtype,
    torch.device,
)


class Workers:
    """The threads that run the requests of one stream.

    Args:
        requests: The requests; taken as there is room.
        depth: How many are under way.
    """

    def __init__(self, requests: Iterable[Any], depth: int) -> None:
        self._requests = iter(requests)
        self._modes = Modes()
        self._process = os.getpid()
        self._own: set[int] = set()
        self._uncopied: Future[Any] | None = None
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(
            depth, "orchestrator-stream", initializer=_note_thread, initargs=(self._own,)
        )

    def check(self) -> None:
        """Makes sure that the caller may wait for a result.

        Raises:
            InputError: It is one of the requests, or a process that was forked from the stream's.
        """
        if threading.get_ident() in self._own:
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
        if self._pool is None or not self._is_free():
            return None
        try:
            request = next(self._requests)
        except StopIteration:
            return None
        except Exception as error:
            self._requests = iter(())
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed
        pool = self._pool  # the source may have closed the stream
        future = None if pool is None else pool.submit(self._modes.call, run, request)
        self._uncopied = None if is_copied(request) else future
        return future

    def settle(self) -> None:
        """Waits for the request after which none is taken."""
        if self._uncopied is not None:
            wait((self._uncopied,))

    def _is_free(self) -> bool:
        """Tells whether a source may change what it gave before."""
        return self._uncopied is None or self._uncopied.done()

    def close(self, wait: bool = True) -> None:
        """Takes no more requests, drops those that have not begun, and waits for the others.

        One of the requests does not wait: it would wait for itself.
        """
        pool, self._pool, self._requests = self._pool, None, iter(())
        if pool is not None:
            pool.shutdown(wait=wait and threading.get_ident() not in self._own, cancel_futures=True)


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
        self._workers = Workers(map(copied, requests), depth)
        self._waiting: collections.deque[Future[Result]] = collections.deque()

    def __next__(self) -> Result:
        """Returns the next result.

        Raises:
            InputError, StageError: What this request failed with; the one after it comes next.
            StopIteration: All requests are done.
        """
        self._workers.check()
        self._fill()
        if not self._waiting:
            self.close()
            raise StopIteration
        # It is waited for before it is taken off: an interrupt loses no result.
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
            future = self._workers.start(self._run)
            if future is None:
                return
            self._waiting.append(future)

    def close(self) -> None:
        """Waits for what is under way and takes no more requests; called by one of the requests, it does not wait."""
        self._workers.close()
        self._waiting.clear()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        workers = getattr(self, "_workers", None)
        if workers is not None:
            workers.close(wait=False)


def copied(request: Any) -> Any:
    """Returns a request that its source may not change any more; what is none stays as it is, to be refused."""
    return (
        {name: _copy(value) for name, value in request.items()} if isinstance(request, Mapping) else request
    )


def is_copied(request: Any) -> bool:
    """Tells whether a request that was copied shares nothing with its source that may change."""
    if isinstance(request, (tuple, list, set)):
        return all(map(is_copied, request))
    if isinstance(request, Mapping):
        return all(map(is_copied, request.values()))
    kept = isinstance(request, (torch.Tensor, bytearray, *_LASTING)) or hasattr(
        request, "__array_interface__"
    )
    held = vars(request) if dataclasses.is_dataclass(request) and hasattr(request, "__dict__") else None
    return kept or (held is not None and is_copied(held))


def _copy(value: Any) -> Any:
    """A copy of a tensor, NumPy array or byte array, or of what a container or a dataclass holds of them."""
    if type(value) in (torch.Tensor, torch.nn.Parameter):
        return value.detach().clone() if value.layout is torch.strided and not value.is_nested else value
    if isinstance(value, bytearray) or hasattr(value, "__array_interface__"):
        return copy.copy(value)
    if type(value) in (list, tuple, set):
        return type(value)(map(_copy, value))
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(map(_copy, value))
    if dataclasses.is_dataclass(value) and hasattr(value, "__dict__") and not isinstance(value, type):
        held: Any = copy.copy(value)
        vars(held).update({name: _copy(part) for name, part in vars(value).items()})
        return held
    if isinstance(value, dict):
        twin = copy.copy(value)
        twin.update({name: _copy(part) for name, part in value.items()})
        return twin
    return value


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
