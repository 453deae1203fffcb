"""Describing any object by what it holds, alike in every process: no addresses, no set order, no hash order.

Objects are visited breadth first and numbered as they are found; a *record* describes one of them, and speaks of others
by their number. So cycles end, depth does not matter, and whether two places hold one object is part of the result.
Plain values stand in a record themselves.

A tensor counts by its content, unless it is a *weight*, one that a checkpoint fills: then by shape and dtype. Code
counts as :mod:`orchestrator.store.code` says. What has no state to read (a lock, a file) counts by its type.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch

from orchestrator.store.code import code_parts, global_names, release_of
from orchestrator.store.tensors import ContentlessError, contents

__all__ = ["LIMIT", "Walk"]

#: Objects that are looked into; those beyond count by their type. A large model has some thousands.
LIMIT = 500_000

_PLAIN = {str, int, float, complex, bool, bytes, type(None), type(...), type(NotImplemented)}
_PLAIN |= {torch.dtype, torch.device, torch.layout, torch.memory_format}
#: What every module has; of these only parameters, buffers, modules and hooks say what it computes.
_MODULE_PARTS = frozenset(vars(torch.nn.Module()))
#: What a traced module has besides its code, which says it all.
_TRACED_PARTS = frozenset({"_graph", "_code", "_tracer_cls", "_tracer_extras", "meta"})
_FUNCTIONS = (FunctionType, staticmethod, classmethod, property)


@dataclass(frozen=True, eq=False)
class _Use:
    """Names that code uses of a module, e.g. ``settings.SCALE``."""

    module: ModuleType
    names: frozenset[str]


class Walk:
    """One description.

    Args:
        weights: Tensors that count by shape and dtype.
        instead: Attributes to be taken for an object's own, by identity of the object.
        nested: It describes an element of a set for another walk.
    """

    def __init__(
        self,
        weights: Iterable[torch.Tensor] = (),
        instead: Mapping[int, Mapping[str, Any]] | None = None,
        nested: bool = False,
    ) -> None:
        self._weights = {id(tensor): tensor for tensor in weights}
        self._instead = instead or {}
        self._nested = nested
        self._numbers: dict[int, int] = {}
        # What was numbered stays alive until the end, so that no identity is used again.
        self._found: list[Any] = []
        self._uses: dict[tuple[int, frozenset[str]], _Use] = {}

    def digest(self, *roots: Any) -> str:
        """Returns the SHA-256 of the description of some objects.

        Raises:
            ContentlessError: A tensor that counts by its content has none.
        """
        digest = hashlib.sha256(json.dumps(self._all(roots)).encode())
        position = 0
        while position < len(self._found):
            value = self._found[position]
            digest.update(json.dumps(self._told(value) if position < LIMIT else _name(type(value))).encode())
            position += 1
        return digest.hexdigest()

    def _told(self, value: Any) -> Any:
        try:
            return self._record(value)
        except ContentlessError:
            raise
        except Exception:  # an object whose attributes cannot be asked for
            return _name(type(value))

    def _of(self, value: Any) -> Any:
        """The text of a plain value, the number of an object."""
        kind = type(value)
        if kind in _PLAIN:
            return repr(value)
        if kind is tuple and all(type(item) in _PLAIN for item in value):
            return [repr(item) for item in value]  # constants: whether two places hold one is chance
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self._found)
            self._found.append(value)
        return number

    def _all(self, values: Iterable[Any]) -> list[Any]:
        return [self._of(value) for value in values]

    def _pairs(self, pairs: Iterable[tuple[Any, Any]]) -> list[Any]:
        return [[self._of(name), self._of(value)] for name, value in pairs]

    def _record(self, value: Any) -> list[Any]:
        for kind, describe in _RECORDS:
            if isinstance(value, kind):
                return [kind.__name__, *describe(self, value)]
        if type(value) in (list, tuple):
            return [type(value).__name__, *self._all(value)]
        if type(value) is dict:
            return ["dict", *self._pairs(value.items())]
        if type(value) in (set, frozenset):
            return ["set", *sorted(self._element(item) for item in value)]
        return ["object", *self._object(value)]

    def _element(self, item: Any) -> str:
        """An element of a set, apart from all else; in a set within it others count by type, so that cycles end."""
        if type(item) in _PLAIN:
            return repr(item)
        if self._nested:
            return _name(type(item))
        return Walk(self._weights.values(), self._instead, nested=True).digest(item)

    def _tensor(self, value: torch.Tensor) -> list[Any]:
        form = [list(value.shape), str(value.dtype)]
        if id(value) in self._weights:
            return ["weight", *form]
        return [*form, *(part if isinstance(part, str) else self._of(part) for part in contents(value))]

    def _module(self, value: torch.nn.Module) -> list[Any]:
        if isinstance(vars(value).get("_modules", {}).get("_orig_mod"), torch.nn.Module):
            return ["compiled", self._of(value._orig_mod)]
        left_out, code = _MODULE_PARTS, ""
        if isinstance(value, torch.fx.GraphModule):
            left_out, code = _MODULE_PARTS | _TRACED_PARTS, value.code
        elif isinstance(value, torch.jit.ScriptModule):
            code = str(getattr(value, "code", ""))
        hooks = (*value._forward_pre_hooks.values(), *value._forward_hooks.values())
        return [
            self._of(type(value)),
            code,
            self._pairs(value._modules.items()),
            self._pairs(value._parameters.items()),
            self._pairs(value._buffers.items()),
            self._all(hooks),
            self._state(value, left_out),
        ]

    def _state(self, value: Any, left_out: Iterable[str] = ()) -> list[Any]:
        """Attributes and slots, by name."""
        slots = (name for kind in type(value).__mro__ for name in _slots(kind))
        found = {name: getattr(value, name) for name in slots if hasattr(value, name)}
        found |= {**getattr(value, "__dict__", {}), **self._instead.get(id(value), {})}
        return self._pairs(sorted((name, item) for name, item in found.items() if name not in left_out))

    def _class(self, value: type) -> list[Any]:
        release = release_of(value.__module__)
        if release:
            return [_name(value), release]
        parts = ((name, item) for name, item in sorted(vars(value).items()) if _is_written(name, item))
        return [_name(value), self._all(value.__bases__), self._pairs(parts)]

    def _function(self, value: FunctionType) -> list[Any]:
        compiled = vars(value).get("_torchdynamo_orig_callable")
        if compiled is not None:
            return ["compiled", self._of(compiled)]
        code, module = value.__code__, value.__globals__.get("__name__")
        release = release_of(module)
        known = [module, code.co_name, code.co_firstlineno, release]
        return [
            known if release else [code_parts(code), self._globals(value)],
            self._of(value.__defaults__),
            self._of(value.__kwdefaults__),
            self._all(_cells(value)),
            self._pairs(sorted(item for item in vars(value).items() if item[0][:2] != "__")),
        ]

    def _globals(self, value: FunctionType) -> list[Any]:
        read, names = global_names(value.__code__)
        own = value.__globals__
        return [[name, self._global(own[name], names)] for name in read if name in own]

    def _global(self, value: Any, names: frozenset[str]) -> Any:
        if not isinstance(value, ModuleType):
            return self._of(value)
        released = release_of(value.__name__) is not None
        used = frozenset() if released else frozenset(name for name in names if name in vars(value))
        return self._of(self._uses.setdefault((id(value), used), _Use(value, names)))

    def _use(self, value: _Use) -> list[Any]:
        release = release_of(value.module.__name__)
        if release:
            return [value.module.__name__, release]
        own = vars(value.module)
        return [[name, self._global(own[name], value.names)] for name in sorted(value.names) if name in own]

    def _object(self, value: Any) -> list[Any]:
        kind = type(value)
        if release_of(kind.__module__) is None or id(value) in self._instead:
            return [self._of(kind), self._state(value), *self._items(value)]
        block = _block(value)
        if block is not None:
            return [self._of(kind), *block]
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:  # it has no state that could be read otherwise
            return [self._of(kind), self._state(value)]
        if isinstance(reduced, str):
            return [self._of(kind), reduced]
        function, arguments, *more = reduced
        return [self._of(function), self._of(arguments), *(self._of(_listed(part)) for part in more)]

    def _items(self, value: Any) -> Iterator[Any]:
        """What an object that is also a container holds."""
        if isinstance(value, dict):
            yield self._pairs(dict.items(value))
        elif isinstance(value, (list, tuple)):
            yield self._all(value)
        elif isinstance(value, (set, frozenset)):
            yield sorted(self._element(item) for item in value)
        elif isinstance(value, (str, int, float, complex, bytes)):
            plain = next(kind for kind in type(value).__mro__ if kind in _PLAIN)
            yield plain.__repr__(value)  # type: ignore[call-arg]


_RECORDS: tuple[tuple[type, Callable[[Walk, Any], Iterable[Any]]], ...] = (
    (torch.Tensor, Walk._tensor),
    (torch.nn.Module, Walk._module),
    (type, Walk._class),
    (FunctionType, Walk._function),
    (MethodType, lambda walk, value: walk._all((value.__self__, value.__func__))),
    (BuiltinFunctionType, lambda walk, value: [value.__qualname__, *walk._all(_owner(value))]),
    (ModuleType, lambda _, value: [value.__name__, release_of(value.__name__)]),
    (_Use, Walk._use),
    (functools.partial, lambda walk, value: walk._all((value.func, value.args, value.keywords))),
    (property, lambda walk, value: walk._all((value.fget, value.fset, value.fdel))),
    (staticmethod, lambda walk, value: walk._all((value.__func__,))),
    (classmethod, lambda walk, value: walk._all((value.__func__,))),
    (enum.Enum, lambda walk, value: [value.name, *walk._all((type(value), value.value))]),
    (logging.Logger, lambda _, value: [value.name]),
)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_written(name: str, item: Any) -> bool:
    """Tells whether a class has this from its author; what Python adds has a dunder name and is no function."""
    return not (name.startswith("__") and name.endswith("__")) or isinstance(item, _FUNCTIONS)


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _cells(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not set yet
            yield None


def _owner(function: BuiltinFunctionType) -> tuple[Any, ...]:
    """The object whose method a builtin function is."""
    owner = function.__self__
    return () if owner is None or isinstance(owner, ModuleType) else (owner,)


def _block(value: Any) -> list[Any] | None:
    """Form and content of what is one block of memory, such as a numpy array; None where it is not."""
    try:
        view = memoryview(value)
    except Exception:
        return None
    if "O" in view.format:  # addresses of Python objects
        return None
    return [view.format, list(view.shape or ()), hashlib.sha256(view.tobytes()).hexdigest()]


def _listed(part: Any) -> Any:
    """Items of a container come as an iterator."""
    return list(part) if isinstance(part, Iterator) else part
