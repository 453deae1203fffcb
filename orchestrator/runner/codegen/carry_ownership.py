"""Which handles a loop owns, where they are freed by call.

A carry that each iteration makes anew needs no bookkeeping: its last reader frees it. One that is handed on as it is,
changes its name, or is what two carries go on with would be freed too early or twice; so would what a loop only
borrows: the values that carries start with, and what is the same in all iterations. There the loop keeps an account.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

__all__ = ["CarryOwnership"]


class CarryOwnership:
    """The account of one loop.

    Args:
        frees: For each carry what frees its handle.
        copies: For each carry what copies its handle.
    """

    def __init__(self, frees: Sequence[Callable[[Any], Any]], copies: Sequence[Callable[[Any], Any]]) -> None:
        self._frees = frees
        self._copies = copies
        self._handles: dict[int, tuple[int, Any]] = {}

    def hand_over(self, handles: Iterable[tuple[int, Any]], carries: Iterable[Any]) -> None:
        """Ends an iteration: frees what no carry holds any more.

        Args:
            handles: Handles that the iteration made, each with the number of the carry that it made it for.
            carries: Handles that all carries go on with.
        """
        self._handles.update((id(handle), (at, handle)) for at, handle in handles)
        alive = {id(handle) for handle in carries}
        for key in self._handles.keys() - alive:
            at, handle = self._handles.pop(key)
            self._frees[at](handle)

    def final(self, at: int, handle: Any) -> Any:
        """Hands out the last handle of a carry; a copy of it if it is not the loop's to give."""
        return self._copies[at](handle) if self._handles.pop(id(handle), None) is None else handle
