"""Counting requests without slowing them: one increment for each request, sums only when somebody asks."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from orchestrator.plan.count import Tally

__all__ = ["AtomicCounter", "RequestStats"]

#: So many kinds of requests that have no counter keep a tally of their own.
LATEST = 256


class AtomicCounter:
    """A counter that threads may advance at the same time, in tens of nanoseconds.

    ``next`` on :class:`itertools.count` is one C call, so no increment is lost; reading spends one and corrects for it.
    """

    def __init__(self) -> None:
        counter = itertools.count()
        self.increment: Callable[[], int] = counter.__next__
        self._reads = 0
        self._lock = threading.Lock()

    def value(self) -> int:
        """Returns how often :attr:`increment` was called."""
        with self._lock:
            count = self.increment() - self._reads
            self._reads += 1
            return count


class RequestStats:
    """Sums of tallies, in bounded memory however many sizes are asked for.

    A kind of request whose form its caller remembers has its tally and its counter. Of other kinds the latest are
    counted apart; older ones are a sum.
    """

    def __init__(self) -> None:
        self._counters: dict[Hashable, tuple[Tally, AtomicCounter]] = {}
        self._latest: OrderedDict[Hashable, list[Any]] = OrderedDict()
        self._older, self._older_requests = Tally(), 0
        self._lock = threading.Lock()

    def counter(self, kind: Hashable, tally: Callable[[], Tally]) -> AtomicCounter:
        """Returns the counter of a kind of request that the caller remembers; its tally is made when it is new."""
        entry = self._counters.get(kind)
        if entry is None:
            # A tally is worked out without the lock, since it takes long; of two threads the first one's stays.
            first = tally()
            with self._lock:
                entry = self._counters.setdefault(kind, (first, AtomicCounter()))
        return entry[1]

    def count(self, kind: Hashable, tally: Callable[[], Tally]) -> None:
        """Counts one request of a kind that nobody remembers."""
        with self._lock:
            entry = self._latest.get(kind)
            if entry is not None:
                entry[1] += 1
                self._latest.move_to_end(kind)
                return
        # Without the lock, as above: another thread may have added the kind meanwhile, and then its tally counts on.
        first = tally()
        with self._lock:
            self._latest.setdefault(kind, [first, 0])[1] += 1
            if len(self._latest) > LATEST:
                _, (oldest, times) = self._latest.popitem(last=False)
                self._older.add(oldest, times)
                self._older_requests += times

    def stats(self) -> dict[str, Any]:
        """Returns totals of all requests so far."""
        total = Tally()
        # Under the lock, since a kind that moves from the latest to the older ones would be counted twice or never.
        with self._lock:
            counts = [(self._older, 1), *((tally, times) for tally, times in self._latest.values())]
            requests = self._older_requests + sum(times for _, times in self._latest.values())
            for tally, times in counts:
                total.add(tally, times)
            counters = list(self._counters.values())
        # Counters go on while they are read: each is exact by itself, and none is taken away.
        for tally, counter in counters:
            times = counter.value()
            if times:
                total.add(tally, times)
                requests += times
        return {"requests": requests, **total.as_dict()}
