"""Who refers to an object: a scan of the heap takes a twentieth of a second, so that one answers for many objects."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Container
from typing import Any

__all__ = ["Referrers"]


class Referrers:
    """Referrers of what a run made and of what refers to that, at the time when each is first asked for.

    Args:
        new_ids: Identities of what the run made, or of more.
    """

    def __init__(self, new_ids: set[int]) -> None:
        self._new_ids = new_ids
        self._objects: dict[int, Any] = {}
        self._edges: dict[int, list[int]] = {}
        self._answers: dict[int, list[Any]] = {}
        self._waiting: dict[int, Any] = {}
        self._own_ids = {id(self._objects), id(self._waiting)}

    def of(self, item: Any) -> list[Any]:
        """Returns what refers to an object, the caller's own lists among it."""
        if id(item) not in self._answers:
            # Dicts and tuples that hold others are asked for next, and so is what else the run made.
            self._scan([item, *self._waiting.values()])
        return self._answers[id(item)]

    def follow(self, items: list[Any], is_end: Callable[[Any], bool]) -> None:
        """Looks for referrers of objects, and of all that the run made and that leads to them.

        Args:
            items: The objects.
            is_end: Tells whether what refers to an object is left out.
        """
        # 1. What the run made and is alive is in the generation above the youngest since that was collected. Most of it
        #    refers to nothing else, so it is looked into one by one: a chain of a hundred is no hundred scans.
        young = (item for item in gc.get_objects(generation=1) if id(item) in self._new_ids)
        self._objects |= {id(item): item for item in (*items, *young)}
        for holder in self._objects.values():
            self._connect(holder, self._objects)
        # 2. All that leads to the objects; each has these edges by now, and maybe others from what is older.
        above = dict.fromkeys(map(id, items))
        waiting = list(above)
        while waiting:
            for identity in self._edges.get(waiting.pop(), ()):
                if identity not in above and not is_end(self._objects[identity]):
                    above[identity] = None
                    waiting.append(identity)
        # 3. The heap is scanned only for those with references that no edge is for: one is of the table of objects, one
        #    of the call. Answers are references too, so they are made afterwards.
        open_ids = [
            identity
            for identity in above
            if sys.getrefcount(self._objects[identity]) > len(self._edges.get(identity, ())) + 2
        ]
        for identity in above.keys() - open_ids:
            self._answer(identity)
        if open_ids:
            self._scan([self._objects[identity] for identity in open_ids])

    def _scan(self, items: list[Any]) -> None:
        """Asks the heap for the referrers of some objects."""
        ids = set(map(id, items))
        # What is frozen is not asked, and nothing tells it apart from here on: it is old like the rest.
        if gc.get_freeze_count():
            gc.unfreeze()
        for holder in gc.get_referrers(*items):
            if holder is items or id(holder) in self._own_ids:
                continue
            self._objects[id(holder)] = holder
            self._connect(holder, ids)
            is_next = isinstance(holder, (dict, tuple)) or id(holder) in self._new_ids
            if is_next and id(holder) not in self._answers:
                self._waiting[id(holder)] = holder
        for identity in ids:
            self._answer(identity)

    def _connect(self, holder: Any, ids: Container[int]) -> None:
        for other in gc.get_referents(holder):
            if id(other) in ids:
                self._edges.setdefault(id(other), []).append(id(holder))

    def _answer(self, identity: int) -> None:
        answer = [self._objects[other] for other in dict.fromkeys(self._edges.get(identity, ()))]
        self._own_ids.add(id(answer))
        self._answers[identity] = answer
        self._waiting.pop(identity, None)
