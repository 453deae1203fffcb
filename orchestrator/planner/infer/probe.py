"""Running a stage on fake tensors: shapes and dtypes come out, nothing is computed or allocated.

A stage runs on a fake deep copy of its object, so that planning leaves no trace in a user's module. Outcomes are
memoised by *structure*: two modules of one class with equal attributes and equally shaped parameters share one.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
import logging
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch._subclasses import fake_tensor

from orchestrator.backend import Operation
from orchestrator.duplicate import duplicate, owner_of
from orchestrator.errors import PlanError
from orchestrator.isolation import InPlace, Isolation, LeftBehindError, Leftovers, fake_mode
from orchestrator.planner.infer.descriptions import StageDescriptions
from orchestrator.planner.infer.memory_use import (
    MemoryUse,
    foreign_tensors,
    is_expanded,
    tensors_of,
    whole_inputs,
)
from orchestrator.planner.infer.shared_trials import SharedTrials
from orchestrator.planner.infer.structure import StructureKey, key_of, structure
from orchestrator.stage import ModelWrapper, Stage

__all__ = ["Argument", "DataDependentError", "ProbeResult", "Prober", "RefusedError", "UnfitError"]

_DATA_DEPENDENT = (fake_tensor.DataDependentOutputException, fake_tensor.DynamicOutputShapeException)
_WITHOUT_FAKE_KERNEL = (fake_tensor.UnsupportedFakeTensorException, fake_tensor.UnsupportedOperatorException)

#: A port's name with the shape and dtype it gets, or the Python constant.
Argument: TypeAlias = "tuple[str, tuple[tuple[int, ...], torch.dtype] | Any]"


class RefusedError(Exception):
    """The stage raised on fake inputs; ``__cause__`` is the stage's own error."""


class DataDependentError(RefusedError):
    """The stage asked for the content of a fake tensor, or gives a shape that hangs on it."""


class UnfitError(DataDependentError):
    """The stage does what cannot be done on fake tensors, whatever their shapes."""


@dataclass(frozen=True)
class ProbeResult:
    """Outputs and side effects of a stage on fake inputs.

    Attributes:
        returns: ``single``, ``tuple``, ``dict``, ``keys`` (a dict whose keys are no strings), or the name of a type
            that is no output.
        outputs: Keys (positions for a tuple) to shape and dtype.
        others: Keys of values that are no tensors, with their type.
        written_ports: Ports whose tensor the stage wrote into.
        shared_outputs: Keys of outputs that lie in memory that is not their own: of an input, of the stage, or of
            another output.
        input_outputs: Keys of outputs that are an input, whole and as it came, each with the input's port.
        expanded_outputs: Keys of outputs in which several elements are one place in memory, as ``expand`` makes them.
        operations: How many operations of torch it ran.
    """

    returns: str
    outputs: tuple[tuple[str, tuple[int, ...], torch.dtype], ...]
    written_ports: tuple[str, ...] = ()
    others: tuple[tuple[str, str], ...] = ()
    shared_outputs: tuple[str, ...] = ()
    input_outputs: tuple[tuple[str, str], ...] = ()
    expanded_outputs: tuple[str, ...] = ()
    operations: int = 0


class Prober:
    """Runs stages on fake tensors, once for each structure and inputs.

    Args:
        descriptions: What the plan knows of its stages; by default nothing yet.
    """

    def __init__(self, descriptions: StageDescriptions | None = None) -> None:
        self._process_trials = SharedTrials(descriptions or StageDescriptions())
        self._memo: dict[Any, ProbeResult] = {}
        self._copies: dict[int, Callable[..., Any]] = {}
        self._structures: dict[int, StructureKey] = {}
        self._log: list[Operation] | None = None

    # The mode imports a compiler (torch._dynamo, a second of time): a plan that tries nothing does without.
    @functools.cached_property
    def _mode(self) -> fake_tensor.FakeTensorMode:
        return fake_mode()

    @functools.cached_property
    def _isolation(self) -> Isolation:
        return Isolation(self._mode)

    @functools.cached_property
    def _leftovers(self) -> Leftovers:
        leftovers = Leftovers(self._mode, self._isolation)
        leftovers.allow(self._copies)
        return leftovers

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the plan on side effects of the stages that ran."""
        ran = "_leftovers" in self.__dict__
        return tuple(dict.fromkeys(self._leftovers.bindings.notes)) if ran else ()

    def run(self, stage: Stage, arguments: tuple[Argument, ...], capture: bool = False) -> ProbeResult:
        """Runs a stage.

        Args:
            stage: The stage.
            arguments: For each port with a value its name, and shape and dtype, or a Python constant.
            capture: Whether modules see a capture (``torch.compiler.is_compiling``).

        Raises:
            DataDependentError: It looks at tensor contents.
            RefusedError: It raised.
        """
        key = self._key(stage, arguments, capture)
        if key not in self._memo:
            self._memo[key] = self._run_shared(stage, arguments, capture)
        return self._memo[key]

    def operations(
        self, stage: Stage, arguments: tuple[Argument, ...], capture: bool = False
    ) -> list[Operation]:
        """Returns the operations that a stage runs, in order; it ran with these arguments before.

        Args:
            stage: The stage.
            arguments: As for :meth:`run`.
            capture: As for :meth:`run`.
        """
        log: list[Operation] = []
        self._log = log
        try:
            self._run_alone(stage, arguments, capture)
        finally:
            self._log = None
        return log

    def attempt(
        self, stage: Stage, arguments: tuple[Argument, ...], capture: bool = False
    ) -> ProbeResult | None:
        """Runs a stage that may refuse its inputs; None: it does.

        Args:
            stage: The stage.
            arguments: As for :meth:`run`.
            capture: As for :meth:`run`.

        Raises:
            DataDependentError: It looks at tensor contents.
        """
        if self._process_trials.is_refused(self._process_trials.key(stage, arguments, capture)):
            return None
        try:
            return self.run(stage, arguments, capture)
        except DataDependentError:
            raise
        except RefusedError:
            return None

    def _key(self, stage: Stage, arguments: tuple[Argument, ...], capture: bool) -> Hashable:
        if id(stage) not in self._structures:
            self._structures[id(stage)] = StructureKey(structure(stage.target))
        argument_keys = tuple((name, key_of(value)) for name, value in arguments)
        return (self._structures[id(stage)], argument_keys, capture)

    def _run_shared(self, stage: Stage, arguments: tuple[Argument, ...], capture: bool) -> ProbeResult:
        """Runs a stage, unless another plan of this process has the result."""
        key = self._process_trials.key(stage, arguments, capture)
        shared_result: ProbeResult | None = self._process_trials.result(key)
        if shared_result is not None:
            return shared_result
        # Traces of a run outside of its copy, and notes on it, are this plan's own, and another would miss them: such a
        # run is not shared. A refusal is, but without its error, which would hold the frames it came through.
        try:
            result = self._run_alone(stage, arguments, capture)
        except DataDependentError:
            raise
        except RefusedError:
            if not self._left_traces:
                self._process_trials.put(key, None)
            raise
        if not self._left_traces:
            self._process_trials.put(key, result)
        return result

    @property
    def _left_traces(self) -> bool:
        return self._leftovers.has_released or bool(self._leftovers.bindings.notes)

    def _run_alone(self, stage: Stage, arguments: tuple[Argument, ...], capture: bool) -> ProbeResult:
        # An inference tensor has no version, and versions tell what a stage wrote into. The caller's autocast is of the
        # moment, the plan is not. Nor is anything compiled: dynamo would keep what it makes of a function that meets
        # fake tensors, and what optimises a frozen script looks at its constants.
        with (
            _quiet(),
            torch.inference_mode(False),
            _no_autocast(),
            _capture(capture),
            torch.compiler.set_stance("force_eager"),
            torch.jit.optimized_execution(False),  # type: ignore[attr-defined]
        ):
            return self._run(stage, arguments)

    def examples(self, stage: Stage, wrapper: ModelWrapper) -> list[tuple[torch.Tensor, ...]]:
        """Returns a wrapper's example inputs, made as fake tensors."""
        rows: list[tuple[torch.Tensor, ...]] = []
        self._leftovers.bindings.note(wrapper)
        with self._watch(stage, rows), self._mode:
            rows += [tuple(row) for row in wrapper.input_generator()]
        return rows

    @contextlib.contextmanager
    def _watch(self, stage: Stage, owner: Any) -> Iterator[None]:
        """Undoes the traces that a run leaves outside of its own copy.

        Raises:
            PlanError: A trace cannot be undone.
        """
        try:
            with self._leftovers.watch(owner):
                yield
        except LeftBehindError as error:
            raise PlanError(
                f"Stage {stage.name!r} keeps tensors outside of itself, in {error}. Planning runs it on tensors "
                f"without content, which must not stay there, and what was there before is not known. Call the stage "
                f"once by hand before planning, or have it not run while planning: a ModelWrapper with opaque = True "
                f"that declares its outputs, or a host stage (device='host').",
                stage=stage.name,
                places=error.places,
            ) from None

    def _run(self, stage: Stage, arguments: tuple[Argument, ...]) -> ProbeResult:
        try:
            function = self._fake(stage)
            owner = None if function is stage.target or isinstance(function, InPlace) else function
            with self._watch(stage, owner):
                # A context variable that the stage sets ends with the run.
                return contextvars.copy_context().run(self._probe, stage, function, arguments)
        except PlanError:
            raise
        except Exception as error:
            unfit = UnfitError if _is_unfit(error) else RefusedError
            kind = DataDependentError if _needs_content(error) else unfit
            text = str(error) if isinstance(error, _DATA_DEPENDENT) else f"{type(error).__name__}: {error}"
            raise kind(text) from error

    def _probe(
        self, stage: Stage, function: Callable[..., Any], arguments: tuple[Argument, ...]
    ) -> ProbeResult:
        try:
            with self._mode, torch.no_grad():
                device = _device_of(function)
                values = {name: _tensor(value, device) for name, value in arguments}
                inputs = {name: value for name, value in values.items() if _is_tensor(value)}
                # Versions are read before the call: they grow with in-place writes, except through x.data, which
                # MemoryUse sees.
                versions = {name: value._version for name, value in inputs.items()}
                args, keywords = stage.arguments(values)
                with MemoryUse(inputs, self._log) as use:
                    result = function(*args, **keywords)
                del args, keywords
            written_ports = tuple(
                name
                for name, old in versions.items()
                if inputs[name]._version != old or name in use.written_ports
            )
            outcome = _as_result(result, written_ports)
            keys = [key for key, _, _ in outcome.outputs]
            whole = whole_inputs(result, inputs) if keys else {}
            expanded = [at for at, value in enumerate(tensors_of(result)) if is_expanded(value)]
            shared = {at for at, flag in enumerate(map(use.may_be_input, tensors_of(result))) if flag}
            use.forget()
            # The list becomes the only reference to the result: memory that survives it belongs to something else.
            holder = [result]
            del result
            shared |= foreign_tensors(holder)
            return replace(
                outcome,
                shared_outputs=tuple(key for at, key in enumerate(keys) if at in shared),
                input_outputs=tuple((keys[at], port) for at, port in whole.items()),
                expanded_outputs=tuple(key for at, key in enumerate(keys) if at in expanded),
                operations=use.operations,
            )
        except Exception as error:
            _clear_frames(error)
            raise

    def _fake(self, stage: Stage) -> Callable[..., Any]:
        """The stage's callable with fake parameters and buffers; the user's object stays as it is."""
        if id(stage) not in self._copies:
            self._leftovers.bindings.note(stage.target)
            self._copies[id(stage)] = self._copy(stage)
        return self._copies[id(stage)]

    def _copy(self, stage: Stage) -> Callable[..., Any]:
        wrapper = stage.wrapper
        # A model that is not built yet is built fake, so that no weights are loaded for planning.
        if wrapper is not None and wrapper.makes_model and wrapper.__dict__.get("_model") is None:
            twin = self._isolation.twin(wrapper, self._make_fake_model(stage, wrapper))
            return twin.forward if wrapper.overrides("forward") else twin.model
        # Objects that cannot be copied run in place; what such a run changes is undone by _watch.
        try:
            target: Any = self._isolation.copy(stage.target)
        except Exception:
            self._leftovers.bindings.note_attributes(stage.target)
            if isinstance(stage.target, torch.nn.Module):
                return InPlace(stage.target, self._mode)
            return stage.target
        owner = owner_of(target) if wrapper is None else target.__dict__.get("_model")
        if isinstance(owner, torch.nn.Module):
            _move_meta(owner)
        function: Callable[..., Any] = target
        if wrapper is not None and not wrapper.overrides("forward"):
            function = target.model
        return function

    def _make_fake_model(self, stage: Stage, wrapper: ModelWrapper) -> Any:
        """A fake model straight from its class; where that reads real files, a fake copy of the real one."""
        models: list[Any] = []
        try:
            with self._watch(stage, models), self._mode:
                models.append(wrapper.make_model())
            return models[0]
        except PlanError:
            raise
        except Exception:
            with fake_tensor.FakeCopyMode(self._mode):
                return duplicate(wrapper.model, {})


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _tensor(value: Any, device: torch.device) -> Any:
    """A fake tensor for ``(shape, dtype)``; any other value is a constant."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], torch.dtype):
        return torch.empty(value[0], dtype=value[1], device=device)
    return value


def _move_meta(owner: torch.nn.Module) -> None:
    """Says of fake weights and buffers on the meta device that they are on the host: a checkpoint brings them there."""
    for tensor in itertools.chain(owner.parameters(), owner.buffers()):
        if isinstance(tensor, fake_tensor.FakeTensor) and tensor.fake_device.type == "meta":
            tensor.fake_device = torch.device("cpu")


def _device_of(function: Any) -> torch.device:
    if isinstance(function, torch.nn.Module):
        for tensor in function.parameters():
            return tensor.device
    return torch.device("cpu")


def _needs_content(error: BaseException | None) -> bool:
    """Tells whether an error, or its cause, is that a fake tensor has no content."""
    while error is not None:
        text = str(error)
        if (
            isinstance(error, (*_DATA_DEPENDENT, *_WITHOUT_FAKE_KERNEL))
            or ".numpy() is not supported" in text
        ):
            return True
        error = error.__cause__
    return False


#: What errors say that speak of fake tensors, or of what there is no fake form of, and not of shapes.
_UNFIT = (
    "NestedTensor",
    "FakeTensor",
    "fake impl",
    "fake tensor",
    "file an issue",
    "Internal error",
    "mkldnn",
    "Mkldnn",
    "OpaqueTensor",
    "data pointer",
    "data_ptr",
    "UntypedStorage",
    "ScriptObject",
    "Could not run 'aten::",
)


def _is_unfit(error: BaseException | None) -> bool:
    """Tells whether an error, or its cause, is of fake tensors and not of the shapes of a stage's inputs."""
    while error is not None:
        if isinstance(error, NotImplementedError) or any(word in str(error) for word in _UNFIT):
            return True
        error = error.__cause__
    return False


def _clear_frames(error: BaseException | None) -> None:
    """Lets go of the tensors in the frames of an error, which is kept, and of those that led to it."""
    identities: set[int] = set()
    while error is not None and id(error) not in identities:
        identities.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _as_result(result: Any, written_ports: tuple[str, ...]) -> ProbeResult:
    if isinstance(result, torch.Tensor):
        return ProbeResult("single", (("output", tuple(result.shape), result.dtype),), written_ports)
    if isinstance(result, Mapping):
        items = [(str(name), value) for name, value in result.items() if value is not None]
        kind = "dict" if all(isinstance(name, str) for name in result) else "keys"
    elif isinstance(result, (tuple, list)):
        items, kind = [(str(position), value) for position, value in enumerate(result)], "tuple"
    else:
        return ProbeResult(f"a {type(result).__name__}", (), written_ports)
    # Keys become port names as text, so two keys that read alike would be one port.
    names = [name for name, _ in items]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        return ProbeResult(f"a dict with two keys that read {twice!r}", (), written_ports)
    tensors = tuple(
        (name, tuple(value.shape), value.dtype) for name, value in items if isinstance(value, torch.Tensor)
    )
    others = tuple(
        (name, type(value).__name__) for name, value in items if not isinstance(value, torch.Tensor)
    )
    return ProbeResult(kind, tensors, written_ports, others)


@contextlib.contextmanager
def _no_autocast() -> Iterator[None]:
    """Switches off the autocast modes of the thread that plans."""
    with contextlib.ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextlib.contextmanager
def _capture(active: bool) -> Iterator[None]:
    """Tells modules that they are being captured, as ``torch.export`` does: many look at masks only if not."""
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = active or before
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
