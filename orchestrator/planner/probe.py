"""Running a stage on fake tensors: shapes and dtypes come out, nothing is computed or allocated.

A stage runs on a fake deep copy of its object, so that planning leaves no trace in a user's module. Outcomes are
memoised by *structure*: two modules of one class with equal attributes and equally shaped parameters share one.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch._subclasses import fake_tensor

from orchestrator.duplicate import duplicate, fill_meta, owner_of
from orchestrator.planner.dtypes import SameDtypes
from orchestrator.stage import ModelWrapper, Stage

__all__ = ["Argument", "DataDependentError", "Outcome", "Prober", "RefusedError"]

_DATA_DEPENDENT = (fake_tensor.DataDependentOutputException, fake_tensor.DynamicOutputShapeException)
_UNSUPPORTED = (fake_tensor.UnsupportedFakeTensorException, fake_tensor.UnsupportedOperatorException)

#: A port's name with the shape and dtype it gets, or the Python constant.
Argument: TypeAlias = "tuple[str, tuple[tuple[int, ...], torch.dtype] | Any]"


class RefusedError(Exception):
    """The stage raised on fake inputs; ``__cause__`` is what it raised."""


class DataDependentError(RefusedError):
    """The stage asked for the content of a fake tensor, or gives a shape that hangs on it."""


@dataclass(frozen=True)
class Outcome:
    """What a stage gave for fake inputs.

    Attributes:
        returns: ``single``, ``tuple``, ``dict``, or the name of a type that is no output.
        outputs: Keys (positions for a tuple) to shape and dtype.
        written: Ports whose tensor the stage wrote into.
    """

    returns: str
    outputs: tuple[tuple[str, tuple[int, ...], torch.dtype], ...]
    written: tuple[str, ...] = ()


class Prober:
    """Runs stages on fake tensors, once for each structure and inputs."""

    def __init__(self) -> None:
        self._mode = _mode()
        self._memo: dict[Any, Outcome] = {}
        self._copies: dict[int, Callable[..., Any]] = {}
        self._structures: dict[int, Any] = {}

    def run(self, stage: Stage, arguments: tuple[Argument, ...], captured: bool = False) -> Outcome:
        """Runs a stage.

        Args:
            stage: The stage.
            arguments: For each fed port its name, and shape and dtype, or a Python constant.
            captured: Whether it is told that it is being captured (``torch.compiler.is_compiling``).

        Raises:
            DataDependentError: It looks at tensor contents.
            RefusedError: It raised.
        """
        if id(stage) not in self._structures:
            self._structures[id(stage)] = structure(stage.target)
        key = (self._structures[id(stage)], tuple((name, _key(value)) for name, value in arguments), captured)
        if key not in self._memo:
            # An inference tensor has no version, and versions tell what a stage wrote into. The caller's autocast is
            # of the moment, the plan is not.
            with _quiet(), torch.inference_mode(False), _no_autocast(), _capture(captured):
                self._memo[key] = self._run(stage, arguments)
        return self._memo[key]

    def examples(self, wrapper: ModelWrapper) -> list[tuple[torch.Tensor, ...]]:
        """Returns a wrapper's example inputs, made as fake tensors."""
        with self._mode:
            return [tuple(row) for row in wrapper.input_generator()]

    def _run(self, stage: Stage, arguments: tuple[Argument, ...]) -> Outcome:
        try:
            function = self._fake(stage)
            with self._mode, torch.no_grad(), SameDtypes():  # type: ignore[no-untyped-call]
                device = _device_of(function)
                values = {name: _tensor(value, device) for name, value in arguments}
                versions = {name: value._version for name, value in values.items() if _is_tensor(value)}
                result = call_stage(stage, function, values)
        except _DATA_DEPENDENT as error:
            raise DataDependentError(str(error)) from error
        except Exception as error:
            kind = DataDependentError if _needs_content(error) else RefusedError
            raise kind(f"{type(error).__name__}: {error}") from error
        written = tuple(name for name, version in versions.items() if values[name]._version != version)
        return _outcome(result, written)

    def _fake(self, stage: Stage) -> Callable[..., Any]:
        """The stage's callable with fake parameters and buffers; the user's object stays as it is."""
        if id(stage) not in self._copies:
            self._copies[id(stage)] = self._copy(stage)
        return self._copies[id(stage)]

    def _copy(self, stage: Stage) -> Callable[..., Any]:
        wrapper = stage.wrapper
        if wrapper is not None and wrapper.__dict__.get("_model") is None and wrapper.makes_model:
            twin = copy.copy(wrapper)
            twin._model = self._built(wrapper)
            return twin.forward if wrapper.overrides("forward") else twin.model
        try:
            with fake_tensor.FakeCopyMode(self._mode):
                target: Any = duplicate(stage.target, {})
        except Exception:
            if isinstance(stage.target, torch.nn.Module):
                return _InPlace(stage.target, self._mode)
            return stage.target
        owner = owner_of(target) if wrapper is None else target.__dict__.get("_model")
        if isinstance(owner, torch.nn.Module):
            with self._mode:
                fill_meta(owner)  # a checkpoint gives it content on the host
        function: Callable[..., Any] = target
        if wrapper is not None and not wrapper.overrides("forward"):
            function = target.model
        return function

    def _built(self, wrapper: ModelWrapper) -> Any:
        """A fake model straight from its class; where that reads real files, a fake copy of the real one."""
        try:
            with self._mode:
                return wrapper.make_model()
        except Exception:
            with fake_tensor.FakeCopyMode(self._mode):
                return duplicate(wrapper.model, {})


def _mode() -> fake_tensor.FakeTensorMode:
    """Makes a mode; the first one in a thread of its own.

    Torch imports much for it, and exceptions that it catches meanwhile would hold the frames of the caller, and with
    them the modules that are planned, until the cyclic collector runs.
    """
    if "torch._dynamo" in sys.modules:
        return fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(fake_tensor.FakeTensorMode, allow_non_fake_inputs=True).result()


class _InPlace:
    """Runs a module that cannot be copied on fake parameters, and puts back everything it holds."""

    _turn = threading.RLock()

    def __init__(self, module: torch.nn.Module, mode: fake_tensor.FakeTensorMode) -> None:
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self.module = module
        self.fakes: dict[str, torch.Tensor] = {
            name: mode.from_tensor(value) for name, value in tensors.items()
        }

    def __call__(self, *args: Any, **named: Any) -> Any:
        with self._turn:
            held = [(part, dict(part.__dict__)) for part in self.module.modules()]
            try:
                return torch.func.functional_call(self.module, self.fakes, args, named)
            finally:
                for part, attributes in held:
                    part.__dict__.clear()
                    part.__dict__.update(attributes)


def call_stage(stage: Stage, function: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """Calls a stage's function with values by port: by position while no port is left out, then by keyword."""
    positional: list[Any] = []
    named: dict[str, Any] = {}
    gap = False
    for port in stage.inputs:
        if port.name not in values:
            gap = True
        elif gap or port.keyword:
            named[port.name] = values[port.name]
        else:
            positional.append(values[port.name])
    return function(*positional, **named)


def structure(target: Any) -> Any:
    """Returns a hashable key: equal for objects that act alike on shapes. Unknown objects count by identity."""
    if isinstance(target, torch.nn.Module):
        return (type(target), tuple((name, _key(value)) for name, value in sorted(target.__dict__.items())))
    return _key(target)


_PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, type)


def _key(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return (type(value), value)
    if isinstance(value, torch.Tensor):
        return ("tensor", tuple(value.shape), value.dtype, str(value.device))
    if isinstance(value, torch.nn.Module):
        return structure(value)
    if isinstance(value, (tuple, list)):
        return (type(value), tuple(_key(item) for item in value))
    if isinstance(value, (set, frozenset)):
        return (type(value), frozenset(_key(item) for item in value))
    if isinstance(value, dict):
        return (type(value), tuple((_key(name), _key(item)) for name, item in value.items()))
    return ("object", id(value))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _tensor(value: Any, device: torch.device) -> Any:
    """A fake tensor for ``(shape, dtype)``; any other value is a constant."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], torch.dtype):
        return torch.empty(value[0], dtype=value[1], device=device)
    return value


def _device_of(function: Any) -> torch.device:
    if isinstance(function, torch.nn.Module):
        for tensor in function.parameters():
            return tensor.device
    return torch.device("cpu")


def _needs_content(error: BaseException | None) -> bool:
    """Tells whether an error, or its cause, is that a fake tensor has no content."""
    while error is not None:
        text = str(error)
        if isinstance(error, (*_DATA_DEPENDENT, *_UNSUPPORTED)) or ".numpy() is not supported" in text:
            return True
        error = error.__cause__
    return False


def _outcome(result: Any, written: tuple[str, ...]) -> Outcome:
    if isinstance(result, torch.Tensor):
        return Outcome("single", (("output", tuple(result.shape), result.dtype),), written)
    if isinstance(result, Mapping):
        items = [(str(name), value) for name, value in result.items() if value is not None]
        kind = "dict"
    elif isinstance(result, (tuple, list)):
        items, kind = [(str(position), value) for position, value in enumerate(result)], "tuple"
    else:
        return Outcome(f"a {type(result).__name__}", (), written)
    strange = [type(value).__name__ for _, value in items if not isinstance(value, torch.Tensor)]
    if strange:
        return Outcome(f"a {kind} that holds a {strange[0]}", (), written)
    return Outcome(kind, tuple((name, tuple(value.shape), value.dtype) for name, value in items), written)


@contextlib.contextmanager
def _no_autocast() -> Iterator[None]:
    """Leaves the autocast modes of the thread that plans out of what is inferred."""
    with contextlib.ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextlib.contextmanager
def _capture(asked: bool) -> Iterator[None]:
    """Tells modules that they are being captured, as ``torch.export`` does: many look at masks only if not."""
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = asked or before
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch from logging a traceback for a shape error under fake tensors; it is raised all the same."""
    logger = logging.getLogger(fake_tensor.__name__)

    def drop(_record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)
