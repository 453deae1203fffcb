"""Results of chunks until they are joined: where handles are freed by call, a later chunk may fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from orchestrator.plan.records import PlannedValue
from orchestrator.plan.steps import HOST

__all__ = ["PendingHandles"]


class PendingHandles:
    """Handles of the results of chunks so far; leaving its block by an exception frees them.

    Args:
        free: Frees a handle, where that is not done by reference count.
    """

    def __init__(self, free: Callable[[PlannedValue, Any], None]) -> None:
        self._free = free
        self._handles: dict[int, tuple[PlannedValue, Any]] = {}

    def keep(self, values: Iterable[PlannedValue], handles: tuple[Any, ...]) -> tuple[Any, ...]:
        """Notes handles, and returns them."""
        pairs = zip(values, handles, strict=True)
        self._handles.update((id(handle), (value, handle)) for value, handle in pairs if value.memory != HOST)
        return handles

    def spend(self, value: PlannedValue, handle: Any) -> None:
        """Frees a handle, once."""
        if self._handles.pop(id(handle), None) is not None:
            self._free(value, handle)

    def __enter__(self) -> None:
        """Begins the block."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for value, handle in self._handles.values():
                self._free(value, handle)
        self._handles.clear()
