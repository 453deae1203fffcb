"""Whether a stage keeps state: what it holds is looked at while it runs twice, on tensors without content.

The first run may fill what is built lazily. What the second one changes is state, which a program does not keep: an
attribute, a list that grows, a buffer or weight that is written. A tensor that is put in place of another which
nothing has read is none: it is left there for somebody outside, such as the attention map of the last run.

A stage that does not run in this way, e.g. since it asks for content, is not looked at.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import enum
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from orchestrator.errors import CompileError
from orchestrator.isolation import Isolation, LeftBehindError, Leftovers
from orchestrator_neuron.isolation import default_torch_state, silenced
from orchestrator_neuron.module import ProgramModule

__all__ = ["check_state"]

#: How far into objects, containers and functions one looks; modules are looked at as deep as they go.
_DEPTH = 4
#: Larger containers are tables, of which the length says enough.
_LARGE = 4096
_PLAIN = (type(None), bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, torch.device)
#: What torch keeps in every module.
_TORCH_OWN = frozenset(vars(torch.nn.Module())) - {"training"}
#: What gives a tensor other data, uncounted.
_SETS = (torch.Tensor.data.__set__, torch.Tensor.set_)  # type: ignore[attr-defined]
_FOREIGN = sys.stdlib_module_names | {"torch", "orchestrator", "orchestrator_neuron"}


def check_state(where: str, stage: str, module: ProgramModule, inputs: Sequence[torch.Tensor]) -> bool:
    """Makes sure that a stage keeps no state; nothing is written to the module.

    Args:
        where: What is compiled, for the message.
        stage: The stage's name.
        module: What would be compiled.
        inputs: Example inputs.

    Returns:
        Whether a run may put tensors away, in the stage or elsewhere; False: it was seen that none does.

    Raises:
        CompileError: A run changes what the next one reads.
    """
    with default_torch_state(), silenced():
        changed, caches = _changed(module, inputs)
    if changed is not None:
        raise CompileError(
            f"{where} cannot be compiled: each run changes {changed!r}. A program keeps no state: what was there when "
            f"it was compiled would be used for ever. Hand it over as an input and an output, e.g. as the carry of a "
            f"loop, or run the stage on 'cpu' or as a host stage.",
            stage=stage,
            attribute=changed,
        )
    return caches


def _changed(module: ProgramModule, inputs: Sequence[torch.Tensor]) -> tuple[str | None, bool]:
    """What each run changes, and whether a run may put tensors away."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    isolation = Isolation(mode)
    try:
        copied = isolation.copy(module)
    except Exception:
        return None, True
    leftovers = Leftovers(mode, isolation)
    leftovers.bindings.note(module.target)
    changed, fills = None, True
    # What it caches outside of the copy would be compiled in.
    with contextlib.suppress(LeftBehindError), leftovers.watch(copied):
        changed, fills = contextvars.copy_context().run(_changed_in, copied, mode, inputs)
    return changed, fills or leftovers.released


def _changed_in(copied: Any, mode: FakeTensorMode, inputs: Sequence[torch.Tensor]) -> tuple[str | None, bool]:
    """What the second run changes, and whether the first one fills anything; (None, True) if it cannot run."""
    uses = _Uses()
    after: dict[str, Any] | None = None
    try:
        start = _Marks(copied).found
        first, second = ([mode.from_tensor(value.clone()) for value in inputs] for _ in range(2))
        with mode, torch.compiler.set_stance("force_eager"):
            copied(*first)
            before = _Marks(copied).found
            try:
                with uses:
                    uses.read(copied(*second))
            finally:
                after = _Marks(copied).found
    except Exception:
        if after is None:
            return None, True
    assert after is not None
    changed = (path for path in {**before, **after} if _differs(before.get(path), after.get(path), uses))
    fills = start.keys() != before.keys() or any(
        _is_filled(mark, before[path]) for path, mark in start.items()
    )
    return next(changed, None), fills


def _is_filled(start: Any, before: Any) -> bool:
    """Tells whether the first run put something else in a place."""
    if isinstance(start, _Tensor) and isinstance(before, _Tensor):
        return start.value is not before.value or start.version != before.version
    return bool(type(start) is not type(before) or start != before)


def _differs(before: Any, after: Any, uses: _Uses) -> bool:
    if isinstance(before, _Tensor) and isinstance(after, _Tensor):
        if before.value is after.value:
            return before.version != after.version or id(before.value) in uses.set
        return id(before.value) in uses.seen
    return bool(type(before) is not type(after) or before != after)


class _Uses(TorchFunctionMode):
    """Notes which tensors are used while it is on.

    Attributes:
        seen: Identities of those that were read or written.
        set: Of those that were given other data.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()
        self.set: set[int] = set()

    def read(self, value: Any) -> None:
        """Notes the tensors in a value."""
        leaves = pytree.tree_leaves(value)
        self.seen.update(id(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.read((args, kwargs))
        if func in _SETS:
            self.set.add(id(args[0]))
        return func(*args, **(kwargs or {}))


class _Tensor:
    """A tensor, and how often it was written."""

    def __init__(self, value: torch.Tensor, version: int) -> None:
        self.value, self.version = value, version


class _Same:
    """An object that equals itself alone."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


class _Marks:
    """What a stage holds.

    Args:
        module: The program it is in.

    Attributes:
        found: Path to what is compared: a tensor, a plain value, or the form of a container.
    """

    def __init__(self, module: ProgramModule) -> None:
        self.found: dict[str, Any] = {}
        self._seen: set[int] = set()
        if module.stage is not None:
            self._visit("", module.stage, _DEPTH)
        target = module._target[0]
        self._visit(target.__name__ if isinstance(target, types.FunctionType) else "", target, _DEPTH)

    def _visit(self, path: str, value: Any, depth: int) -> None:
        if isinstance(value, torch.Tensor):
            self.found[path] = _Tensor(value, 0 if value.is_inference() else value._version)
        elif isinstance(value, _PLAIN):
            self.found[path] = (type(value), value)
        elif isinstance(value, (set, frozenset)):
            self.found[path] = (type(value), frozenset(value))
        elif id(value) not in self._seen:
            self._seen.add(id(value))
            self._open(path, value, depth)

    def _open(self, path: str, value: Any, depth: int) -> None:
        if isinstance(value, (list, tuple, dict, collections.deque)):
            self.found[path] = (type(value), len(value))
        elif path:
            self.found[path] = _Same(value)
        if depth > 0:
            below = depth if isinstance(value, torch.nn.Module) else depth - 1
            for name, part in _parts(value):
                self._visit(f"{path}{name}" if name[0] == "[" or not path else f"{path}.{name}", part, below)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields what an object consists of, by name."""
    if isinstance(value, torch.nn.Module):
        yield from _module_parts(value)
    elif isinstance(value, (list, tuple, dict, collections.deque)):
        if len(value) <= _LARGE:
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            yield from ((f"[{key!r}]", part) for key, part in list(pairs))
    elif isinstance(value, types.FunctionType):
        yield from _function_parts(value)
    elif isinstance(value, types.MethodType):
        yield from (("__self__", value.__self__), ("__func__", value.__func__))
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif not isinstance(value, (type, types.ModuleType)) and not _is_foreign(type(value)):
        yield from list(getattr(value, "__dict__", {}).items())


def _module_parts(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    own = vars(module)
    yield from [(name, part) for name, part in own.items() if name not in _TORCH_OWN]
    for kind in ("_parameters", "_buffers", "_modules"):
        yield from list(own[kind].items())
    forward = inspect.getattr_static(type(module), "forward", None)
    if isinstance(forward, types.FunctionType) and not _is_foreign(forward):
        yield "forward", forward


def _function_parts(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Variables around a function, and functions that it calls."""
    if _is_foreign(function):
        return
    code, outside = function.__code__, function.__globals__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        if cell != types.CellType():
            yield name, cell.cell_contents
    yield from [(name, outside[name]) for name in code.co_names if name in outside]
    yield "__defaults__", function.__defaults__


def _is_foreign(thing: type | Callable[..., Any]) -> bool:
    """Tells whether a class or function is of Python, torch or this project."""
    if thing is types.SimpleNamespace:
        return False
    return str(thing.__module__).partition(".")[0] in _FOREIGN
