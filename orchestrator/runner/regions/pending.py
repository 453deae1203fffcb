"""Chunks of values: cutting them, joining them, and freeing what waits to be joined when a later chunk fails."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from orchestrator.adapter import part_of
from orchestrator.plan.chunks import SizeAssignment
from orchestrator.plan.records import PlannedValue
from orchestrator.plan.steps import HOST
from orchestrator.runner.load.load import Executable
from orchestrator.specs import TensorSpec, plain_dims

__all__ = ["PendingHandles", "chunk_of"]


def chunk_of(executable: Executable, value: PlannedValue, handle: Any, run: SizeAssignment) -> Any:
    """Returns the chunk of a value that a run reads; the value itself where the run has all of it."""
    if not isinstance(value.spec, TensorSpec) or handle is None or not value.unpadded:
        return handle  # what is at its bucket comes from a region that ran once, and so does this one
    chunk = handle
    for axis, name in enumerate(plain_dims(value.spec.dims)):
        if name in run.offset and handle.shape[axis] != run.actual[str(name)]:
            start, size, wider = run.offset[str(name)], run.actual[str(name)], chunk
            if value.memory == HOST:
                chunk = part_of(wider, axis, start, size)
                continue
            chunk = executable.backend_of(value.memory).part(wider, axis, start, size)
            # Cut along two dims: what was cut along the first one alone is nobody's. The whole is the caller's.
            if wider is not handle:
                executable.free(value, wider)
    return chunk


class PendingHandles:
    """Handles of the results of chunks so far; leaving its block by an exception frees them.

    Args:
        executable: The loaded plan.
    """

    def __init__(self, executable: Executable) -> None:
        self._executable = executable
        self._handles: dict[int, tuple[PlannedValue, Any]] = {}

    def keep(self, values: Iterable[PlannedValue], handles: tuple[Any, ...]) -> tuple[Any, ...]:
        """Notes handles, and returns them."""
        pairs = zip(values, handles, strict=True)
        self._handles.update(
            (id(handle), (value, handle))
            for value, handle in pairs
            if value.memory != HOST and handle is not None
        )
        return handles

    def join(self, value: PlannedValue, handles: list[Any], axis: int) -> Any:
        """Joins the chunks of a value; of those that were noted each is freed, once."""
        if value.memory == HOST:
            return torch.cat(handles, axis)
        whole = self._executable.backend_of(value.memory).join(handles, axis)
        self.keep((value,), (whole,))
        for handle in handles:
            if self._handles.pop(id(handle), None) is not None:
                self._executable.free(value, handle)
        return whole

    def __enter__(self) -> PendingHandles:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for value, handle in self._handles.values():
                self._executable.free(value, handle)
        self._handles.clear()
