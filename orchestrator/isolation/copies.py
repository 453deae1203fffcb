"""The copy of a stage that is run on fake tensors, apart from all that the user holds.

A module is copied with fake parameters. A function is copied with what it holds: the cells of its closure, its
defaults, and the containers, modules and functions in them; so are the functions that a module keeps, its hooks above
all. What such a function notes is then noted in the copy. Globals, classes and objects of other kinds are shared.
"""

from __future__ import annotations

import collections
import copy
import functools
import sys
import threading
import types
from collections.abc import Callable
from typing import Any, cast

import torch
from torch._subclasses import fake_tensor

from orchestrator.duplicate import duplicate
from orchestrator.stage import ModelWrapper

__all__ = ["CONTAINERS", "HOOKS", "LARGE", "MAPPINGS", "InPlace", "Isolation", "is_library"]

#: Containers of more items are copied one level deep.
LARGE = 10_000

MAPPINGS = (dict, collections.OrderedDict, collections.defaultdict)
CONTAINERS = (*MAPPINGS, list, set, collections.deque)
_EMPTY = object()
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_LIBRARIES = frozenset({"torch", "orchestrator", *sys.stdlib_module_names} - {"__main__"})


def is_library(module: str | None) -> bool:
    """Tells whether a module is torch's, Python's or this package's own."""
    return (module or "").partition(".")[0] in _LIBRARIES


class Isolation:
    """Makes the copies of one plan; what two stages share is copied once for each.

    Args:
        mode: The mode that fake tensors belong to.
    """

    def __init__(self, mode: fake_tensor.FakeTensorMode) -> None:
        self._mode = mode
        self._memo: dict[int, Any] = {}
        self.functions: set[int] = set()
        self.shared_ids: set[int] = set()

    def copy(self, target: Callable[..., Any]) -> Callable[..., Any]:
        """Copies a stage's target.

        Raises:
            Exception: Whatever :func:`copy.deepcopy` does, if it cannot be copied.
        """
        self._memo = {}
        if isinstance(target, (types.FunctionType, functools.partial)):
            return cast("Callable[..., Any]", self._isolate(target))
        return cast("Callable[..., Any]", self._duplicate(target))

    def twin(self, wrapper: ModelWrapper, model: Any) -> ModelWrapper:
        """Copies a wrapper with a model in place of the one that it has not made yet."""
        self._memo = {}
        wrapper_copy = copy.copy(wrapper)
        for name, value in vars(wrapper).items():
            vars(wrapper_copy)[name] = self._isolate(value)
        wrapper_copy._model = model
        return wrapper_copy

    def _duplicate(self, target: Any) -> Any:
        with fake_tensor.FakeCopyMode(self._mode):
            target_copy = duplicate(target, self._memo)
        self.shared_ids.update(key for key, value in self._memo.items() if id(value) == key)
        owner = getattr(target_copy, "__self__", target_copy)
        for part in owner.modules() if isinstance(owner, torch.nn.Module) else ():
            self._isolate_functions(part)
        return target_copy

    def _isolate_functions(self, part: torch.nn.Module) -> None:
        """Puts copies in place of the functions that a copied module keeps as attributes and hooks."""
        attributes = part.__dict__
        for name, value in attributes.items():
            if type(value) is types.FunctionType:
                attributes[name] = self._isolate(value)
        for name in HOOKS:
            hooks: dict[int, Any] = attributes.get(name) or {}
            for key, hook in hooks.items():
                hooks[key] = self._isolate(hook)

    def _isolate(self, value: Any) -> Any:
        """Returns a value's own copy, if it is of a kind that is copied; else the value."""
        # Kinds are exact: a subclass may mean something by its identity, so it is shared.
        if id(value) in self._memo:
            return self._memo[id(value)]
        kind = type(value)
        if kind is types.FunctionType:
            return self._function(value)
        if kind is functools.partial:
            keywords = {name: self._isolate(item) for name, item in value.keywords.items()}
            return functools.partial(self._isolate(value.func), *map(self._isolate, value.args), **keywords)
        if kind is types.MethodType:
            return types.MethodType(value.__func__, self._isolate(value.__self__))
        if isinstance(value, torch.nn.Module):
            return self._module(value)
        if kind in CONTAINERS:
            return self._container(value)
        return tuple(map(self._isolate, value)) if kind is tuple else self._share(value)

    def _share(self, value: Any) -> Any:
        self.shared_ids.add(id(value))
        return value

    def _module(self, module: torch.nn.Module) -> Any:
        try:
            return self._duplicate(module)
        except Exception:
            return self._share(module)

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        """A function of a library stays what it is, since it may be known by identity, unless it wraps a copied one."""
        # 1. While it is looked at it stands for itself, so that a closure that holds it comes to an end.
        self._remember(function, function)
        if is_library(function.__globals__.get("__name__")):
            cells = function.__closure__ or ()
            if all(self._isolate(content) is content for content in map(_content, cells)):
                return cast("types.FunctionType", self._share(function))
        elif not function.__closure__ and not function.__dict__ and not _has_mutable_defaults(function):
            return cast("types.FunctionType", self._share(function))
        # 2. The copy is known before what it holds is copied: its cells are filled last, for the same reason.
        function_copy = types.FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            None,
            tuple(map(self._new_cell, function.__closure__ or ())) or None,
        )
        self._remember(function, function_copy)
        self.functions.add(id(function_copy))
        functools.update_wrapper(function_copy, function, updated=())
        function_copy.__dict__.clear()
        function_copy.__dict__.update(
            {name: self._isolate(value) for name, value in function.__dict__.items()}
        )
        function_copy.__defaults__ = self._isolate(function.__defaults__)
        function_copy.__kwdefaults__ = self._isolate(function.__kwdefaults__)
        for old, new in zip(function.__closure__ or (), function_copy.__closure__ or (), strict=True):
            if _content(new) is _EMPTY and _content(old) is not _EMPTY:
                new.cell_contents = self._isolate(old.cell_contents)
        return function_copy

    def _new_cell(self, cell: types.CellType) -> types.CellType:
        """Functions that share a variable share its copy."""
        if id(cell) not in self._memo:
            self._remember(cell, types.CellType())
        return cast("types.CellType", self._memo[id(cell)])

    def _container(self, value: Any) -> Any:
        container_copy = copy.copy(value)
        self._remember(value, container_copy)
        if len(value) > LARGE:
            return container_copy
        if isinstance(container_copy, dict):
            container_copy.update({key: self._isolate(item) for key, item in value.items()})
        elif not isinstance(container_copy, set):
            for position, item in enumerate(value):
                container_copy[position] = self._isolate(item)
        return container_copy

    def _remember(self, value: Any, replacement: Any) -> None:
        """Notes a copy; the original is kept alive, so that no other object takes its identity."""
        self._memo[id(value)] = replacement
        self._memo.setdefault(id(self._memo), []).append(value)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _EMPTY


def _has_mutable_defaults(function: types.FunctionType) -> bool:
    values = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    return any(type(value) in CONTAINERS for value in values)


class InPlace:
    """Runs a module that cannot be copied on fake parameters, and puts back everything it holds."""

    _turn = threading.RLock()

    def __init__(self, module: torch.nn.Module, mode: fake_tensor.FakeTensorMode) -> None:
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self.module = module
        self.fakes: dict[str, torch.Tensor] = {
            name: mode.from_tensor(value) for name, value in tensors.items()
        }

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Calls the module."""
        with self._turn:
            spaces = [(part, dict(part.__dict__)) for part in self.module.modules()]
            try:
                return torch.func.functional_call(self.module, self.fakes, args, keywords)
            finally:
                for part, attributes in spaces:
                    part.__dict__.clear()
                    part.__dict__.update(attributes)
