"""Fake tensors that a stage's code put away where the user finds them: who holds them, and how that is undone.

A stage runs on a copy of its object, but what its code caches in a global, a class, a function's attribute, an
``lru_cache`` or a list of its own is the user's. After each run, fake tensors that are alive although nothing of the
copy holds them are followed to whoever does, and the entries that the run made there are taken out again.
"""

from __future__ import annotations

import collections
import gc
import itertools
import sys
import threading
import types
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.functional_tensor import FunctionalTensor

from orchestrator.isolation.bindings import Bindings
from orchestrator.isolation.copies import Isolation
from orchestrator.isolation.referrers import Referrers

__all__ = ["LeftBehindError", "Leftovers"]

#: What a copy may refer to without owning it.
_COMMON_TYPES = (type, types.ModuleType, types.CodeType, types.FrameType)

#: One run at a time: the collector is the process's own, and so are the places that are put back.
_TURN = threading.RLock()


class LeftBehindError(Exception):
    """A run left tensors in places whose former content is not known; they were taken out.

    Attributes:
        places: Descriptions of the places.
    """

    def __init__(self, places: tuple[str, ...]) -> None:
        super().__init__(", ".join(places))
        self.places = places


class Leftovers:
    """Watches runs, of one plan say.

    Args:
        mode: The mode that their fake tensors belong to; None: any, and wrappers around them as exporting makes them.
        isolation: The maker of the copies that run, if there is one.

    Attributes:
        has_released: Whether a run left anything outside of its copy so far.
    """

    def __init__(
        self, mode: fake_tensor.FakeTensorMode | None = None, isolation: Isolation | None = None
    ) -> None:
        self._mode = mode
        self._functions = set() if isolation is None else isolation.functions
        self._shared_ids = set() if isolation is None else isolation.shared_ids
        self._keepers: list[Any] = []
        self.has_released = False
        self.bindings = Bindings()

    def watch(self, owner: Any) -> _RunWatch:
        """Returns a context that takes out again, at its end, all tensors that a run left outside of an object.

        Args:
            owner: The copy that runs, or a list of objects that may keep tensors; None: nothing may.

        Raises:
            LeftBehindError: (the context, at its end) It left something in a place whose former content is not known.
        """
        return _RunWatch(self, owner)

    def allow(self, keeper: Any) -> None:
        """Lets an object keep copies; it is not looked at."""
        self._keepers.append(keeper)

    def undo(self, owner: Any, parts: list[Any], places: list[str], keeper: dict[str, Any]) -> None:
        """Looks for leftovers of a run, and undoes them.

        Args:
            owner: The copy that ran.
            parts: Parts of it that gained a reference.
            places: Descriptions of places whose former content is not known; more are added.
            keeper: The object that holds the copy for the time of the run.
        """
        young = gc.get_objects(generation=0)
        left = [weakref.ref(item) for item in young if self._is_fake(item)]
        if not left and not parts:
            return
        new_ids = set(map(id, young))
        # What a cycle alone holds is nobody's.
        del young
        gc.collect(0)
        suspects = [item for item in (ref() for ref in left) if item is not None]
        own_ids, edges = self._reach(owner, set(map(id, suspects)))
        # A reference each from the list, the loop and the call.
        suspects = [item for item in suspects if sys.getrefcount(item) > edges[id(item)] + 3]
        strays = [weakref.ref(item) for item in suspects if not edges[id(item)]]
        suspects += parts
        parts.clear()
        if not suspects:
            return
        self.has_released = True
        self._release(suspects, {*own_ids, id(keeper)}, new_ids, places)
        suspects.clear()
        gc.collect(0)
        if not places and sys.exc_info()[0] is None and self._is_foreign(strays, owner):
            places.append("something that Python cannot name")

    def _is_foreign(self, strays: list[weakref.ref[Any]], owner: Any) -> bool:
        """Tells whether a tensor is alive that shares no memory with tensors of the copy, as a view of a view does."""
        alive = [item for item in (ref() for ref in strays) if item is not None]
        if not alive or owner is None:
            return bool(alive)
        tensors: list[torch.Tensor] = []
        self._reach(owner, set(), tensors)
        storages = {tensor.untyped_storage()._cdata for tensor in tensors}
        return any(item.untyped_storage()._cdata not in storages for item in alive)

    def _is_fake(self, item: Any) -> bool:
        # Asked of its type: an object that stands for another may do anything when it is asked for its class.
        kind = type(item)
        if self._mode is None:
            return issubclass(kind, (fake_tensor.FakeTensor, FunctionalTensor))
        return issubclass(kind, fake_tensor.FakeTensor) and item.fake_mode is self._mode

    def _reach(
        self, owner: Any, ids: set[int], tensors: list[torch.Tensor] | None = None
    ) -> tuple[set[int], collections.Counter[int]]:
        """Identities of all that a copy owns, and how often it refers to each object that is wanted.

        Args:
            owner: The copy.
            ids: Identities of objects.
            tensors: Takes the fake tensors that it owns.
        """
        # Only what the copy owns is followed: what it shares with the user would lead to everything there is.
        own_ids: set[int] = set()
        edges: collections.Counter[int] = collections.Counter()
        waiting = [] if owner is None else [owner]
        while waiting:
            item = waiting.pop()
            if id(item) in own_ids or not self._is_own(item):
                continue
            own_ids.add(id(item))
            if tensors is not None and self._is_fake(item):
                tensors.append(item)
            referents = _referents(item)
            edges.update(id(other) for other in referents if id(other) in ids)
            waiting += referents
        return own_ids, edges

    def _is_own(self, item: Any) -> bool:
        if isinstance(item, types.FunctionType):
            return id(item) in self._functions
        return not isinstance(item, _COMMON_TYPES) and id(item) not in self._shared_ids

    def _release(self, suspects: list[Any], own_ids: set[int], new_ids: set[int], places: list[str]) -> None:
        """Follows references from leftovers up to objects that were there before, and cuts them there."""
        referrers = Referrers(new_ids)
        chain = set(map(id, suspects))
        waiting = list(suspects)
        places_to_cut: dict[int, Any] = {}
        # The lists of this very search refer to the objects too, and are no holders.
        ours = {*own_ids, id(suspects), id(waiting), id(places_to_cut), *map(id, self._keepers)}

        def is_end(holder: Any) -> bool:
            return id(holder) in ours or isinstance(holder, (types.FrameType, types.TracebackType, _RunWatch))

        # 1. What the run made is climbed; what was there before is where it hangs.
        referrers.follow(suspects, is_end)
        for item in waiting:
            for holder in referrers.of(item):
                if id(holder) in chain or is_end(holder):
                    continue
                if id(holder) in new_ids and not self.bindings.was_there(holder, new_ids, referrers):
                    chain.add(id(holder))
                    waiting.append(holder)
                else:
                    places_to_cut[id(holder)] = holder
        # 2. Each place is cut once, when all that has to go is known: a sequence is put back by its length.
        for holder in places_to_cut.values():
            places += self.bindings.cut(holder, chain, referrers)


def _referents(item: Any) -> list[Any]:
    if isinstance(item, types.FunctionType):  # Its globals are everybody's.
        return [item.__closure__, item.__defaults__, item.__kwdefaults__, item.__dict__]
    referents = gc.get_referents(item)
    if issubclass(type(item), torch.Tensor) and item._base is not None:
        referents.append(item._base)  # a view holds it where the collector does not look
    return referents


class _RunWatch:
    """The context of one run; no generator, whose frame would hold the objects that are searched for."""

    def __init__(self, leftovers: Leftovers, owner: Any) -> None:
        self._leftovers = leftovers
        self._owner = owner

    def __enter__(self) -> None:
        _TURN.acquire()
        self._parts = _parts(self._owner)
        self._before = list(map(sys.getrefcount, self._parts))
        self._was_enabled = gc.isenabled()
        # From here on, objects of the youngest generation are those that the run makes.
        gc.collect(0)
        gc.disable()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # The collector runs again only when all is put back. Places are raised last, never over a run's own error.
        places: list[str] = []
        try:
            after = list(map(sys.getrefcount, self._parts))
            has_grown = [new > old for new, old in zip(after, self._before, strict=True)]
            self._leftovers.undo(
                self._owner, list(itertools.compress(self._parts, has_grown)), places, vars(self)
            )
        finally:
            del self._parts
            if self._was_enabled:
                gc.enable()
            _TURN.release()
        if places and kind is None:
            raise LeftBehindError(tuple(dict.fromkeys(places)))


def _parts(owner: Any) -> list[Any]:
    """A copied module's own modules, parameters and buffers."""
    owner = getattr(owner, "__self__", owner)
    owner = getattr(owner, "_model", owner)
    if not isinstance(owner, torch.nn.Module):
        return []
    items: Iterable[Any] = (*owner.modules(), *owner.parameters(), *owner.buffers())
    return list(items)
