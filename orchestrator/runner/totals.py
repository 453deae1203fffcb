"""Counting requests without slowing them: a tick for each request, sums only when somebody asks."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

from orchestrator.plan.count import Tally

__all__ = ["Ticks", "Totals"]


class Ticks:
    """A counter that threads may advance at the same time, in tens of nanoseconds.

    ``next`` on :class:`itertools.count` is one C call, so no tick is lost; reading spends a tick and corrects for it.
    """

    def __init__(self) -> None:
        counter = itertools.count()
        self.up: Callable[[], int] = counter.__next__
        self._reads = 0
        self._lock = threading.Lock()

    def value(self) -> int:
        """Returns how often :attr:`up` was called."""
        with self._lock:
            count = self.up() - self._reads
            self._reads += 1
            return count


class Totals:
    """Sums of tallies: each kind of request has its tally and its ticks."""

    def __init__(self) -> None:
        self._kinds: dict[Any, tuple[Tally, Ticks]] = {}
        self._lock = threading.Lock()

    def ticks(self, kind: Any, tally: Callable[[], Tally]) -> Ticks:
        """Returns the ticks of a kind of request; its tally is made when it is new."""
        found = self._kinds.get(kind)
        if found is None:
            made = tally()
            with self._lock:
                found = self._kinds.setdefault(kind, (made, Ticks()))
        return found[1]

    def stats(self) -> dict[str, Any]:
        """Returns totals of all requests so far."""
        total, requests = Tally(), 0
        with self._lock:
            kinds = list(self._kinds.values())
        for tally, ticks in kinds:
            times = ticks.value()
            if times:
                total.add(tally, times)
                requests += times
        return {"requests": requests, **total.as_dict()}
