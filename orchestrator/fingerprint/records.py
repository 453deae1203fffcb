"""Records of kinds whose attributes do not say what they hold: each is read in a way of its own."""

from __future__ import annotations

import collections
import contextvars
import enum
import functools
import io
import logging
import pathlib
import sys
import threading
import types
import typing
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch._library.custom_ops import OPDEFS, CustomOpDef
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket

from orchestrator.fingerprint import functions
from orchestrator.fingerprint.code import code_parts, release_of
from orchestrator.fingerprint.describer import Describer
from orchestrator.fingerprint.opaque import process_unique_token

__all__ = ["BY_BASE", "BY_KIND"]

Describe: typing.TypeAlias = Callable[[Describer, Any], Iterable[Any]]

#: Namespaces of operators that come with torch.
_OPERATORS = {
    "aten",
    "prims",
    "prim",
    "quantized",
    "_quantized",
    "c10d",
    "_c10d_functional",
    "mkldnn",
    "onednn",
    "inductor",
    "rngprims",
    "symm_mem",
}


def _builtin(describer: Describer, value: types.BuiltinFunctionType) -> list[Any]:
    """A function in C: its name, and the object whose method it is."""
    owner, module = value.__self__, value.__module__
    parts = [module, value.__qualname__]
    if module is not None:
        parts.append(release_of(module) or process_unique_token(value))
    has_owner = owner is not None and not isinstance(owner, types.ModuleType)
    return [*parts, describer.of(owner)] if has_owner and type(owner).__name__ != "PyCapsule" else parts


def _descriptor(describer: Describer, value: Any) -> list[Any]:
    return [describer.of(value.__objclass__), value.__name__]


def _cached(describer: Describer, value: Any) -> list[Any]:
    """What caches results counts as the function whose results they are."""
    return [describer.pairs(functions.authored_items(vars(value)))]


def _variable(describer: Describer, value: contextvars.ContextVar[Any]) -> list[Any]:
    try:
        return [value.name, describer.of(value.get())]
    except LookupError:
        return [value.name]


def _stream(describer: Describer, value: io.IOBase) -> Iterable[Any]:
    for name in ("stdin", "stdout", "stderr"):
        if value is getattr(sys, name) or value is getattr(sys, f"__{name}__"):
            return [name]
    return describer.parts(value)


def _operator(describer: Describer, value: Any) -> list[Any]:
    """An operator counts by name, one that is defined in Python by its definition too."""
    if isinstance(value, HigherOrderOperator):
        return [value._name, describer.of(type(value))]
    name = str(value._name if isinstance(value, OpOverload) else value._qualified_op_name)
    space = name.partition("::")[0]
    if space in _OPERATORS or release_of(space):
        return [name, release_of(space)]
    definition = OPDEFS.get(name.partition(".")[0])
    return [name, process_unique_token(value) if definition is None else describer.of(definition)]


def _definition(describer: Describer, value: CustomOpDef) -> list[Any]:
    names = ("_init_fn", "_backend_fns", "_abstract_fn", "_setup_context_fn", "_backward_fn", "_vmap_fn")
    return [value._qualname, *describer.all(getattr(value, name, None) for name in names)]


def _script(_: Describer, value: Any) -> list[Any]:
    # Constants of a script cannot be read.
    return [value.code, process_unique_token(value) if "CONSTANTS" in value.code else ""]


def _views(describer: Describer, value: Iterable[Any]) -> list[Any]:
    return describer.all(value)


def _kind_alone(describer: Describer, value: Any) -> list[Any]:
    return [describer.of(type(value))]


def _path(describer: Describer, value: pathlib.PurePath) -> list[Any]:
    return [describer.of(type(value)), describer.of(str(value))]


def _weak_reference(describer: Describer, value: weakref.ref[Any]) -> list[Any]:
    return [describer.of(type(value)), describer.of(value()), describer.state(value)]


def _thread_local(describer: Describer, value: threading.local) -> list[Any]:
    return [describer.of(type(value)), describer.state(value)]


_FIELDS: dict[type, tuple[str, ...]] = {
    types.MethodType: ("__self__", "__func__"),
    functools.partial: ("func", "args", "keywords"),
    property: ("fget", "fset", "fdel"),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    enum.Enum: ("name", "value"),
}


def _fields(names: tuple[str, ...]) -> Describe:
    """Describes by some attributes, and by those that its author added."""

    def describe(describer: Describer, value: Any) -> list[Any]:
        attributes = [] if isinstance(value, types.MethodType) else functions.authored_items(_vars_of(value))
        return [
            describer.of(type(value)),
            *describer.all(getattr(value, name) for name in names),
            describer.pairs(attributes),
        ]

    return describe


def _vars_of(value: Any) -> dict[str, Any]:
    """Returns attributes, also of what may have none."""
    return dict(getattr(value, "__dict__", {}))


_ORDERED_DICT: Any = collections.OrderedDict()
_DICT: dict[Any, Any] = {}

#: Kinds that have no kinds below them, or whose own are looked at as objects.
BY_KIND: dict[type, Describe] = {
    types.MappingProxyType: lambda describer, value: describer.pairs(value.items()),
    **{
        type(view()): _views
        for each in (_DICT, _ORDERED_DICT)
        for view in (each.keys, each.values, each.items)
    },
    types.CellType: lambda describer, value: describer.all([functions.cell_value(value)]),
    types.CodeType: lambda _, value: code_parts(value),
    contextvars.ContextVar: _variable,
    type(functools.lru_cache(_views)): _cached,
    **dict.fromkeys(
        (
            types.GetSetDescriptorType,
            types.MemberDescriptorType,
            types.WrapperDescriptorType,
            types.MethodDescriptorType,
            types.ClassMethodDescriptorType,
        ),
        _descriptor,
    ),
    # What only says who may go on holds nothing that a program depends on.
    **dict.fromkeys(
        (type(threading.Lock()), type(threading.RLock()), torch.Stream, torch.Event), _kind_alone
    ),
    typing.TypeVar: lambda _, value: [value.__name__],
}

#: Kinds with all that are below them, in this order.
BY_BASE: tuple[tuple[type | tuple[type, ...], str, Describe], ...] = (
    (type, "type", functions.describe_class),
    (types.FunctionType, "function", functions.describe_function),
    (types.BuiltinFunctionType, "builtin", _builtin),
    (types.ModuleType, "namespace", functions.describe_module),
    (functions.ModuleUse, "use", functions.describe_use),
    *((kind, kind.__name__, _fields(names)) for kind, names in _FIELDS.items()),
    (
        pathlib.PurePath,
        "path",
        lambda describer, value: [describer.of(type(value)), describer.of(str(value))],
    ),
    (logging.Logger, "logger", lambda _, value: [value.name]),
    (
        weakref.ref,
        "ref",
        lambda describer, value: [describer.of(type(value)), describer.of(value()), describer.state(value)],
    ),
    (weakref.WeakSet, "set", lambda describer, value: describer.elements(value)),
    (threading.local, "local", _thread_local),
    (io.IOBase, "stream", _stream),
    ((OpOverload, OpOverloadPacket, HigherOrderOperator), "operator", _operator),
    (CustomOpDef, "definition", _definition),
    (torch.jit.ScriptFunction, "script", _script),
)
