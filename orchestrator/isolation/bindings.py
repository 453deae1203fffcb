"""The surroundings of a stage's code: modules, classes, functions and their contents, as they were before it ran.

Bindings are noted, of containers and objects in one another up to a depth: enough to put back what an entry was.
"""

from __future__ import annotations

import collections
import functools
import gc
import sys
import types
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch

from orchestrator.isolation.copies import CONTAINERS, HOOKS, LARGE, MAPPINGS, is_library
from orchestrator.isolation.objects import attributes_of, is_holder, slots_of
from orchestrator.isolation.referrers import Referrers

__all__ = ["Bindings"]

_LRU = type(functools.lru_cache(maxsize=None)(is_library))
_MISSING = object()
#: How deep in one another containers and objects are noted, of how many items at most, and how many of them.
_DEPTH = 4
_WIDE = 200
_MOST = 5_000
#: Values of these types hold nothing that code could put away.
_PLAIN = frozenset({str, bytes, int, float, bool, type(None), torch.Tensor, types.ModuleType})


class Bindings:
    """Notes and puts back bindings around the stages of one plan.

    Attributes:
        notes: Things that could not be put back, though no result hangs on them.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._contents: dict[int, tuple[Any, Any]] = {}
        self._cells: dict[int, tuple[types.CellType, Any]] = {}
        self._slots: dict[int, tuple[Any, dict[str, Any]]] = {}
        self._functions: dict[int, types.FunctionType] = {}
        self._modules: set[str] = set()
        self._bound: set[int] = set()

    def note(self, target: Any) -> None:
        """Notes the surroundings of a stage's target: the modules of its code, and those that they name."""
        functions, kinds = _code_of(target)
        for function in functions:
            self._module(str(function.__globals__.get("__name__")), following=True)
            self._function(function)
        for kind in kinds:
            if not is_library(kind.__module__):
                self._module(kind.__module__, following=True)
                self._class(kind)

    def note_attributes(self, item: Any) -> None:
        """Notes the contents of an object that runs itself, since it cannot be copied."""
        parts = item.modules() if isinstance(item, torch.nn.Module) else [item]
        for part in parts:
            for value in self._save(vars(part) if hasattr(part, "__dict__") else {}):
                self._value(value, _DEPTH)

    def was_there(self, item: Any, new_ids: Collection[int], referrers: Referrers) -> bool:
        """Tells whether an object was there before a run, though the collector saw it for the first time.

        A plain dict is seen once it holds more than plain values. It was there if it was bound, or is what an older
        object or module keeps its names in.

        Args:
            item: The object.
            new_ids: Identities of all that the run made, and of such dicts.
            referrers: Tells who refers to what.
        """
        if id(item) in self._contents or id(item) in self._bound:
            return True
        if type(item) is not dict:
            return False
        # No comprehension: its variables would be cells that hold the object.
        for other in referrers.of(item):
            is_noted = id(other) in self._contents or id(other) in self._cells
            if not is_noted and id(other) not in new_ids and _keeps(other, item, referrers):
                return True
        return False

    def cut(self, holder: Any, chain: Collection[int], referrers: Referrers) -> list[str]:
        """Takes the objects of these identities out of their holder.

        Args:
            holder: What refers to them.
            chain: The identities.
            referrers: Tells who refers to what.

        Returns:
            Where the former value is not known.
        """
        # Each kind of holder has its own way to give up an entry; only where a name is bound can its former value be
        # unknown. What is left has attributes, slots, or is of a kind that nothing can be taken out of.
        if isinstance(holder, dict):
            return self._cut_mapping(holder, chain, referrers)
        if isinstance(holder, (list, collections.deque)):
            self._cut_sequence(holder, chain)
            return []
        if isinstance(holder, set):
            holder.difference_update([item for item in holder if id(item) in chain])
            return []
        if isinstance(holder, _LRU):
            self._cut_cache(holder, chain, referrers)
            return []
        if isinstance(holder, types.CellType):
            return self._cut_cell(holder)
        space, slots = attributes_of(holder), slots_of(holder)
        if space is None and not slots:
            return [f"a {type(holder).__qualname__}"]
        places = [] if space is None else self._cut_mapping(space, chain, referrers)
        return places + self._cut_slots(holder, slots, chain)

    def _module(self, name: str, following: bool) -> None:
        module = sys.modules.get(name)
        if name in self._modules or module is None or is_library(name):
            return
        self._modules.add(name)
        for value in self._save(vars(module)):
            self._value(value, _DEPTH)
            if following:
                self._module(_home_of(value), following=False)

    def _value(self, value: Any, depth: int) -> None:
        """Notes the contents of one value, and theirs.

        Args:
            value: The value.
            depth: How many containers or objects deeper is looked.
        """
        if isinstance(value, types.FunctionType):
            self._function(value, depth)
        elif isinstance(value, type):
            if value.__module__ in self._modules:
                self._class(value)
        elif depth and len(self._contents) < _MOST:
            items = self._items(value, LARGE if depth == _DEPTH else _WIDE)
            for item in items if len(items) <= _WIDE else ():
                if type(item) not in _PLAIN:
                    self._value(item, depth - 1)

    def _items(self, value: Any, most: int) -> Sequence[Any]:
        """Notes and returns the contents of an object, or of a container of so many items at most."""
        if type(value) in CONTAINERS:
            return self._save(value) if len(value) <= most else ()
        if not is_holder(value):
            return ()
        space = attributes_of(value)
        return [*(() if space is None else self._save(space)), *self._save_slots(value)]

    def _class(self, kind: type) -> None:
        attributes = gc.get_referents(vars(kind))[0]  # what the proxy stands for
        if id(attributes) in self._contents:
            return
        self._keep(attributes, kind, dict(attributes))
        for value in list(attributes.values()):
            plain = getattr(value, "__func__", value)
            self._value(plain if isinstance(plain, types.FunctionType) else value, _DEPTH)

    def _function(self, function: types.FunctionType, depth: int = _DEPTH) -> None:
        """Notes the contents of a function."""
        if id(function) in self._functions:
            return
        # Noted before its values are: functions that hold one another would be followed for ever.
        self._functions[id(function)] = function
        values = [
            function.__dict__,
            *(function.__defaults__ or ()),
            *(function.__kwdefaults__ or {}).values(),
        ]
        for cell in function.__closure__ or ():
            try:
                self._cells[id(cell)] = cell, cell.cell_contents
                values.append(cell.cell_contents)
            except ValueError:
                self._cells[id(cell)] = cell, _MISSING
        for value in values:
            self._value(value, depth)

    def _save(self, container: Any) -> Sequence[Any]:
        """Notes a container's items, and returns them."""
        if id(container) in self._contents or len(container) > LARGE:
            return ()
        values = list(container.values()) if isinstance(container, MAPPINGS) else list(container)
        self._keep(container, container, dict(container) if isinstance(container, MAPPINGS) else values)
        return values

    def _save_slots(self, item: Any) -> Sequence[Any]:
        """Notes and returns the contents of an object's slots."""
        slots = slots_of(item)
        if not slots or id(item) in self._slots:
            return ()
        values = {name: slot.__get__(item) for name, slot in slots.items() if hasattr(item, name)}
        self._slots[id(item)] = item, values
        return list(values.values())

    def _keep(self, container: Any, owner: Any, items: Any) -> None:
        values = items.values() if isinstance(items, dict) else items
        self._contents[id(container)] = owner, items
        self._bound.update(id(value) for value in values if type(value) is dict)

    def _cut_mapping(self, space: dict[Any, Any], chain: Collection[int], referrers: Referrers) -> list[str]:
        owner, before = self._contents.get(id(space), (None, None))
        places: list[str] = []
        for key, value in list(space.items()):
            if id(value) not in chain and id(key) not in chain:
                continue
            if before is not None:
                _bind(owner, space, key, before.get(key, _MISSING))
            elif (holder := _namespace(space, referrers)) is None:
                del space[key]
            elif isinstance(holder, types.ModuleType) and is_library(holder.__name__):
                space[key] = None  # what a library makes once is None before
            else:
                places.append(_show(holder, key))
                if type(value) is dict:  # an empty one may have been there
                    self._cut_mapping(value, chain, referrers)
                else:
                    _bind(holder, space, key, _MISSING)
        return places

    def _cut_sequence(self, sequence: list[Any] | collections.deque[Any], chain: Collection[int]) -> None:
        _, before = self._contents.get(id(sequence), (None, None))
        rest = [item for item in sequence if id(item) not in chain]
        if before is not None and len(before) == len(sequence):
            pairs = zip(sequence, before, strict=True)  # places were filled
            rest = [old if id(item) in chain else item for item, old in pairs]
        if before is not None and getattr(sequence, "maxlen", None) == len(sequence):
            rest = before  # what is new has driven out what is old
        sequence.clear()
        sequence.extend(rest)

    def _cut_slots(self, item: Any, slots: Mapping[str, Any], chain: Collection[int]) -> list[str]:
        _, before = self._slots.get(id(item), (None, None))
        places: list[str] = []
        for name, slot in slots.items():
            if not hasattr(item, name) or id(slot.__get__(item)) not in chain:
                continue
            if before is not None and name in before:
                slot.__set__(item, before[name])
            else:
                slot.__delete__(item)
                places += [] if before is not None else [_show(item, name)]
        return places

    def _cut_cell(self, cell: types.CellType) -> list[str]:
        _, content = self._cells.get(id(cell), (None, cell))
        if content is cell:
            del cell.cell_contents
            return ["a variable of a function's closure"]
        if content is _MISSING:
            del cell.cell_contents
        else:
            cell.cell_contents = content
        return []

    def _cut_cache(self, cache: Any, chain: Collection[int], referrers: Referrers) -> None:
        """Entries of an unbounded ``lru_cache`` can be taken out; a bounded one can be emptied only."""
        entries = [item for item in gc.get_referents(cache) if isinstance(item, dict)]
        info = cache.cache_info()
        if info.maxsize is None:
            for table in entries:
                if table is not cache.__dict__:
                    self._cut_mapping(table, chain, referrers)
            return
        cache.cache_clear()
        if info.misses > 1:
            self.notes.append(
                f"Planning emptied the lru_cache of {cache.__module__}.{cache.__qualname__}, which a stage had filled "
                f"with tensors that have no content; it fills again when it is used."
            )


def _code_of(target: Any) -> tuple[list[types.FunctionType], set[type]]:
    """Functions and classes that a target's code begins with."""
    functions: list[types.FunctionType] = []
    kinds: set[type] = set()
    waiting = [target]
    # Wrappers are peeled off; a method leads to its object, a module to the code of its parts and to their hooks.
    while waiting:
        item = waiting.pop()
        while isinstance(item, (functools.partial, _LRU)):
            item = item.func if isinstance(item, functools.partial) else item.__wrapped__
        if isinstance(item, types.FunctionType):
            functions.append(item)
            continue
        item = getattr(item, "__self__", item)
        parts = list(item.modules()) if isinstance(item, torch.nn.Module) else [item]
        kinds.update(base for kind in {type(part) for part in parts} for base in kind.__mro__)
        for part in parts:
            hooks = (getattr(part, name, None) or {} for name in HOOKS)
            waiting += [hook for group in hooks for hook in group.values()]
    return functions, kinds


def _home_of(value: Any) -> str:
    """The module that a value of another module is of, or is."""
    if isinstance(value, types.ModuleType):
        return value.__name__
    if isinstance(value, types.FunctionType):
        return str(value.__globals__.get("__name__", ""))
    return str(value.__module__) if isinstance(value, type) else str(type(value).__module__)


def _keeps(other: Any, space: dict[Any, Any], referrers: Referrers) -> bool:
    """Tells whether an object has a dict as its own: for its names, as a variable, or as a default."""
    if isinstance(other, dict):
        return _is_of_threads(other) or _namespace(other, referrers) is not None
    if isinstance(other, tuple):
        return any(isinstance(holder, types.FunctionType) for holder in referrers.of(other))
    return isinstance(other, (types.CellType, type)) or getattr(other, "__dict__", None) is space


def _is_of_threads(space: dict[Any, Any]) -> bool:
    """Tells whether a dict is where ``threading.local`` keeps the names of each thread."""
    keys = (key() for key in space if isinstance(key, weakref.ref))
    return any(type(key).__qualname__ == "_localdummy" for key in keys)


def _namespace(space: dict[Any, Any], referrers: Referrers) -> Any:
    """The module, class or object whose names a dict holds; None: it is a dict of its own."""
    for holder in referrers.of(space):
        if isinstance(holder, type):
            if gc.get_referents(vars(holder))[0] is space:
                return holder
        elif getattr(holder, "__dict__", None) is space:
            return holder
    return None


def _bind(owner: Any, space: dict[Any, Any], key: Any, value: Any) -> None:
    """Gives a name its former value, or none; a class has to notice."""
    change: Callable[..., object]
    if isinstance(owner, type):
        change = delattr if value is _MISSING else setattr
        change(owner, key, *(() if value is _MISSING else (value,)))
    elif value is _MISSING:
        del space[key]
    else:
        space[key] = value


def _show(owner: Any, key: Any) -> str:
    if isinstance(owner, types.ModuleType):
        return f"the global {key!r} of the module {owner.__name__!r}"
    if isinstance(owner, type):
        return f"the attribute {key!r} of the class {owner.__qualname__}"
    return f"the attribute {key!r} of a {type(owner).__qualname__}"
