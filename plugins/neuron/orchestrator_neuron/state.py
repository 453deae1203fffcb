"""Whether a stage keeps state: its attributes are compared while it runs twice, on tensors without content.

The first run may fill lazily built attributes. A change of the second one is state, which a program does not keep: an
attribute, a list that grows, a buffer or weight that is written. A tensor that replaces another which nothing has read
is none: it is left there for somebody outside, such as the attention map of the last run.

Stages of one module may hand each other something behind the plan's back: one puts a tensor into an attribute, and
another reads it there. A program would read what was there when it was compiled.

A stage that does not run in this way, e.g. since it asks for content, is not checked.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import enum
import functools
import inspect
import itertools
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from orchestrator.errors import CompileError
from orchestrator.isolation import Isolation, LeftBehindError, Leftovers, fake_mode
from orchestrator_neuron.isolation import default_torch_state, silenced
from orchestrator_neuron.module import EntryPoints, ProgramModule

__all__ = ["check_handover", "check_state"]

#: Levels of objects, containers and functions that are compared; modules are compared as deep as they go.
_DEPTH = 4
#: Of larger containers, which are tables, the length alone is compared.
_LARGE = 4096
_PLAIN = (type(None), bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, torch.device)
#: Attributes of torch's own in every module.
_TORCH_OWN = frozenset(vars(torch.nn.Module())) - {"training"}
#: Functions that give a tensor other data without counting it as a write.
_SETS = (torch.Tensor.data.__set__, torch.Tensor.set_)  # type: ignore[attr-defined]
_FOREIGN = sys.stdlib_module_names | {"torch", "orchestrator", "orchestrator_neuron"}


def check_state(where: str, stage: str, module: ProgramModule, inputs: Sequence[torch.Tensor]) -> bool:
    """Makes sure that a stage keeps no state; nothing is written to the module.

    Args:
        where: The program, for the message.
        stage: The stage's name.
        module: The module that would be compiled.
        inputs: Example inputs.

    Returns:
        Whether a run may put tensors away, in the stage or elsewhere; False: certainly none does.

    Raises:
        CompileError: A run changes an attribute that the next one reads.
    """
    with default_torch_state(), silenced():
        attribute, caches = _find_state(module, inputs)
    if attribute is not None:
        raise CompileError(
            f"{where} cannot be compiled: each run changes {attribute!r}. A program keeps no state: what was there "
            f"when it was compiled would be used for ever. Hand it over as an input and an output, e.g. as the carry "
            f"of a loop, or run the stage on 'cpu' or as a host stage.",
            stage=stage,
            attribute=attribute,
        )
    return caches


def check_handover(application: str, points: EntryPoints) -> None:
    """Makes sure that no stage of an application reads what another one leaves in the module that they share.

    Args:
        application: The application's name.
        points: Its stages; one alone hands over nothing.

    Raises:
        CompileError: One reads a tensor that each run of another puts into an attribute.
    """
    if len(points) < 2:
        return
    with default_torch_state(), silenced():
        handover = _find_handover(points)
    if handover is not None:
        giver, reader, attribute = handover
        raise CompileError(
            f"The stages of {application!r} cannot be compiled: each run of {giver!r} puts a tensor into "
            f"{attribute!r}, and {reader!r} reads it there. A program keeps no state: it would read for ever what "
            f"was there when it was compiled. Hand it over as an output and an input of the stages, or run them on "
            f"'cpu'.",
            application=application,
            attribute=attribute,
        )


def _find_handover(points: EntryPoints) -> tuple[str, str, str] | None:
    """Returns the stage that leaves a tensor, the one that reads it, and the path; None: there are none.

    On copies that share what the stages share, and with everything that is bound outside of them put back.
    """
    mode = fake_mode()
    isolation = Isolation(mode)
    try:
        copies: Any = isolation.copy(torch.nn.ModuleList(module for module, _ in points.values()))
    except Exception:
        return None
    leftovers = Leftovers(mode, isolation)
    for module, _ in points.values():
        leftovers.bindings.note(module.target)
    runs = {
        stage: functools.partial(_run_copy, copy, mode, inputs)
        for (stage, (_, inputs)), copy in zip(points.items(), copies, strict=True)
    }
    handover = None
    with contextlib.suppress(LeftBehindError), leftovers.watch(copies):
        handover = contextvars.copy_context().run(_handover_of_copies, copies[0], mode, runs)
    return handover


def _run_copy(copy: Any, mode: FakeTensorMode, inputs: Sequence[torch.Tensor]) -> Any:
    return copy(*(mode.from_tensor(value.clone()) for value in inputs))


def _handover_of_copies(
    copy: Any, mode: FakeTensorMode, runs: Mapping[str, Callable[[], Any]]
) -> tuple[str, str, str] | None:
    """Runs each stage before each other one, and looks whether the second reads what the first has put somewhere."""
    with mode, torch.compiler.set_stance("force_eager"), contextlib.suppress(Exception):
        # 1. All caches are filled: what a run puts somewhere from here on, it puts there each time.
        for run in runs.values():
            run()
        for giver, reader in itertools.permutations(runs, 2):
            before = _Snapshot(copy).marks
            runs[giver]()
            left = {
                id(mark.value): path
                for path, mark in _Snapshot(copy).marks.items()
                if isinstance(mark, _Tensor) and _is_filled(before.get(path), mark)
            }
            # 2. What the other one reads of it would be a constant of its program. Tensors of the first run live until
            #    then in their places, so that no identity is another's.
            uses = _Uses()
            with uses:
                uses.read(runs[reader]())
            attribute = next((path for key, path in left.items() if key in uses.identities), None)
            if attribute is not None:
                return giver, reader, attribute
    return None


def _find_state(module: ProgramModule, inputs: Sequence[torch.Tensor]) -> tuple[str | None, bool]:
    """Returns the path of an attribute that each run changes, and whether a run may put tensors away.

    On a copy, and with everything that is bound outside of it put back: a check leaves no trace.
    """
    mode = fake_mode()
    isolation = Isolation(mode)
    try:
        copy = isolation.copy(module)
    except Exception:
        return None, True
    leftovers = Leftovers(mode, isolation)
    leftovers.bindings.note(module.target)
    attribute, fills = None, True
    # Tensors that it caches outside of the copy would be compiled in as constants, so they count as put away.
    with contextlib.suppress(LeftBehindError), leftovers.watch(copy):
        attribute, fills = contextvars.copy_context().run(_state_of_copy, copy, mode, inputs)
    return attribute, fills or leftovers.has_released


def _state_of_copy(
    module: Any, mode: FakeTensorMode, inputs: Sequence[torch.Tensor]
) -> tuple[str | None, bool]:
    """Returns the path that the second run changes, and whether the first fills any; (None, True): it cannot run."""
    uses = _Uses()
    after: dict[str, Any] | None = None
    try:
        # 1. The first run may fill caches: they are not state, but they are tensors that a run puts away.
        start = _Snapshot(module).marks
        first, second = ([mode.from_tensor(value.clone()) for value in inputs] for _ in range(2))
        with mode, torch.compiler.set_stance("force_eager"):
            module(*first)
            # 2. The second run finds all caches filled, so whatever it changes would change in every run. Marks are
            #    taken even where it fails: whatever a run writes before its error is state all the same.
            before = _Snapshot(module).marks
            try:
                with uses:
                    uses.read(module(*second))
            finally:
                after = _Snapshot(module).marks
    except Exception:
        if after is None:
            return None, True
    # 3. A mark that is gone is a change too, so both sides are walked.
    assert after is not None
    changes = (path for path in {**before, **after} if _differs(before.get(path), after.get(path), uses))
    fills = start.keys() != before.keys() or any(
        _is_filled(mark, before[path]) for path, mark in start.items()
    )
    return next(changes, None), fills


def _is_filled(start: Any, before: Any) -> bool:
    """Tells whether the first run put something else in a place."""
    if isinstance(start, _Tensor) and isinstance(before, _Tensor):
        return start.value is not before.value or start.version != before.version
    return bool(type(start) is not type(before) or start != before)


def _differs(before: Any, after: Any, uses: _Uses) -> bool:
    if isinstance(before, _Tensor) and isinstance(after, _Tensor):
        if before.value is after.value:
            return before.version != after.version or id(before.value) in uses.replacements
        return id(before.value) in uses.identities
    return bool(type(before) is not type(after) or before != after)


class _Uses(TorchFunctionMode):
    """Notes which tensors are used while it is on.

    Attributes:
        identities: Of those that were read or written.
        replacements: Identities of those that were given other data.
    """

    def __init__(self) -> None:
        super().__init__()
        self.identities: set[int] = set()
        self.replacements: set[int] = set()

    def read(self, value: Any) -> None:
        """Notes the tensors in a value."""
        leaves = pytree.tree_leaves(value)
        self.identities.update(id(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.read((args, kwargs))
        if func in _SETS:
            self.replacements.add(id(args[0]))
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


class _Snapshot:
    """The attributes of a stage at one time, as marks that compare.

    Args:
        module: The program that runs the stage.

    Attributes:
        marks: Path to a comparable mark: of a tensor, of a plain value, or of the type and length of a container.
    """

    def __init__(self, module: ProgramModule) -> None:
        self.marks: dict[str, Any] = {}
        self._visits: set[int] = set()
        if module.stage is not None:
            self._visit("", module.stage, _DEPTH)
        target = module._target[0]
        self._visit(target.__name__ if isinstance(target, types.FunctionType) else "", target, _DEPTH)

    def _visit(self, path: str, value: Any, depth: int) -> None:
        if isinstance(value, torch.Tensor):
            self.marks[path] = _Tensor(value, 0 if value.is_inference() else value._version)
        elif isinstance(value, _PLAIN):
            self.marks[path] = (type(value), value)
        elif isinstance(value, (set, frozenset)):
            self.marks[path] = (type(value), frozenset(value))
        elif id(value) not in self._visits:
            self._visits.add(id(value))
            self._open(path, value, depth)

    def _open(self, path: str, value: Any, depth: int) -> None:
        if isinstance(value, (list, tuple, dict, collections.deque)):
            self.marks[path] = (type(value), len(value))
        elif path:
            self.marks[path] = _Same(value)
        if depth > 0:
            below = depth if isinstance(value, torch.nn.Module) else depth - 1
            for name, part in _parts(value):
                self._visit(f"{path}{name}" if name[0] == "[" or not path else f"{path}.{name}", part, below)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields the parts of an object, by name."""
    # Modules first, which are objects as well; classes, Python modules and objects of libraries are not walked: they
    # belong to everybody, and a stage that changes them is found by its own references. Lists are made before parts are
    # yielded, since comparing may run code that changes them.
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
    """Yields variables around a function, and functions that it calls."""
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
