"""Counting requests without slowing them: a tick for each request, sums only when somebody asks."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from orchestrator.plan.count import Tally

__all__ = ["Ticks", "Totals"]

#: So many kinds of requests that nobody remembers keep a tally of their own.
LATEST = 256


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
    """Sums of tallies, in bounded memory however many sizes are asked for.

    A kind of request that its caller remembers has its tally and its ticks. Of other kinds the latest are counted
    apart; older ones are a sum.
    """

    def __init__(self) -> None:
        self._remembered: dict[Hashable, tuple[Tally, Ticks]] = {}
        self._latest: OrderedDict[Hashable, list[Any]] = OrderedDict()
        self._older, self._requests = Tally(), 0
        self._lock = threading.Lock()

    def ticks(self, kind: Hashable, tally: Callable[[], Tally]) -> Ticks:
        """Returns the ticks of a kind of request that the caller remembers; its tally is made when it is new."""
        found = self._remembered.get(kind)
        if found is None:
            made = tally()
            with self._lock:
                found = self._remembered.setdefault(kind, (made, Ticks()))
        return found[1]

    def count(self, kind: Hashable, tally: Callable[[], Tally]) -> None:
        """Counts one request of a kind that nobody remembers."""
        with self._lock:
            known = self._latest.get(kind)
            if known is not None:
                known[1] += 1
                self._latest.move_to_end(kind)
                return
        made = tally()
        with self._lock:
            self._latest.setdefault(kind, [made, 0])[1] += 1
            if len(self._latest) > LATEST:
                _, (oldest, times) = self._latest.popitem(last=False)
                self._older.add(oldest, times)
                self._requests += times

    def stats(self) -> dict[str, Any]:
        """Returns totals of all requests so far."""
        total = Tally()
        with self._lock:
            counts = [(self._older, 1), *((tally, times) for tally, times in self._latest.values())]
            requests = self._requests + sum(times for _, times in self._latest.values())
            for tally, times in counts:
                total.add(tally, times)
            remembered = list(self._remembered.values())
        for tally, ticks in remembered:
            times = ticks.value()
            if times:
                total.add(tally, times)
                requests += times
        return {"requests": requests, **total.as_dict()}
