"""Which handles a loop owns, where they are freed by call.

A carry that each iteration makes anew needs no bookkeeping: its last reader frees it. One that is handed on as it is,
changes its name, or is what two carries go on with would be freed too early or twice; so would what a loop only
borrows: the values that carries start with, and what is the same in all iterations. There the loop keeps an account.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

__all__ = ["Owned"]


class Owned:
    """The account of one loop.

    Args:
        frees: For each carry what frees its handle.
        copies: For each carry what copies its handle.
    """

    def __init__(self, frees: Sequence[Callable[[Any], Any]], copies: Sequence[Callable[[Any], Any]]) -> None:
        self._frees = frees
        self._copies = copies
        self._held: dict[int, tuple[int, Any]] = {}

    def hand_over(self, made: Iterable[tuple[int, Any]], carried: Iterable[Any]) -> None:
        """Ends an iteration: frees what no carry holds any more.

        Args:
            made: Carries with handles that the iteration made for them.
            carried: Handles of all carries.
        """
        self._held.update((id(handle), (at, handle)) for at, handle in made)
        kept = {id(handle) for handle in carried}
        for key in self._held.keys() - kept:
            at, handle = self._held.pop(key)
            self._frees[at](handle)

    def final(self, at: int, handle: Any) -> Any:
        """Hands out the last handle of a carry; a copy of it if it is not the loop's to give."""
        return self._copies[at](handle) if self._held.pop(id(handle), None) is None else handle
