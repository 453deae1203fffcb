"""A stage on TorchNeuron: one program for each combination of sizes, compiled at load and never after.

``torch.compile`` compiles at the first call of each new shape, which takes minutes there. So every shape that the plan
has is called once at load (with ``load(warm=False)`` when a request brings it), with ``fullgraph=True``, which raises
where a part would silently run uncompiled. Each shape has a function of its own: Dynamo keeps its results by code
object, a few for each, and drops to eager above that.

A compiled graph is good for tensors of one layout and under one set of modes, too. So whatever comes to be on the
device is dense, in the order of its dims, and is made and run outside of the caller's inference mode and autocast.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

import torch
from torch.utils import _pytree as pytree

from orchestrator.errors import CompileError, StageError
from orchestrator.stage import Stage
from orchestrator.surroundings import own_modes

__all__ = ["CompileCounter", "StageOperations", "StagePrograms", "dense", "in_own_modes"]

#: Shapes and dtypes of the tensors that a call takes, in order.
Signature = tuple[tuple[tuple[int, ...], torch.dtype], ...]


class CompileCounter:
    """Counts what a backend of ``torch.compile`` is asked to compile, and refuses it once all is loaded and warm.

    Attributes:
        compiles: Graphs that were compiled.
        is_closed: It refuses.
    """

    def __init__(self, backend: str) -> None:
        self.compiles = 0
        self._backend = backend
        self.is_closed = False

    def close(self) -> None:
        """Refuses to compile anything from now on."""
        self.is_closed = True

    def __call__(self, graph: torch.fx.GraphModule, examples: list[Any], **keywords: Any) -> Any:
        """Compiles one graph, as a backend of ``torch.compile``.

        Raises:
            CompileError: All is loaded: a request would wait for it.
        """
        if self.is_closed:
            shapes = [list(value.shape) for value in examples if isinstance(value, torch.Tensor)]
            raise CompileError(
                f"A request would compile a graph for {shapes}, which was not compiled at load."
            )
        compiler = torch._dynamo.lookup_backend(self._backend)
        self.compiles += 1
        return compiler(graph, examples, **keywords)


class StageOperations:
    """The callable of a stage that runs operation by operation.

    Args:
        stage: The stage.
        target: Its callable, with weights on the device.
        host_operations: Names of the operations that the plan says run on the host.
    """

    def __init__(self, stage: Stage, target: Callable[..., Any], host_operations: Set[str]) -> None:
        self.stage = stage
        self.target = target
        self.host_operations = host_operations

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Runs it."""
        return in_own_modes(_run_dense, self.target, *args, **keywords)


class StagePrograms:
    """The callable of a stage: picks the program of the shapes it is called with.

    Args:
        stage: The stage.
        target: Its callable, with weights on the device.
        counter: The backend of ``torch.compile``.
    """

    def __init__(self, stage: Stage, target: Callable[..., Any], counter: CompileCounter) -> None:
        self.stage = stage
        self.target = target
        self._counter = counter
        self._programs: dict[Signature, Callable[..., Any]] = {}

    def compile(self, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        """Compiles the program of the shapes of a call, by making it.

        Raises:
            CompileError: It cannot be compiled as one graph.
        """
        signature = _signature((*args, *keywords.values()))
        if signature in self._programs:
            return
        program = torch.compile(
            _own_function(self.target), backend=self._counter, fullgraph=True, dynamic=False
        )
        try:
            _run_dense(program, *args, **keywords)
        except Exception as error:
            # What the compiler raised says more than that it raised.
            cause = getattr(error, "inner_exception", error)
            raise CompileError(
                f"Stage {self.stage.name!r} cannot be compiled for TorchNeuron at {_show(signature)}: "
                f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]} To run it operation by operation, "
                f"add it with config={{'eager': True}}, or place it on another device.",
                stage=self.stage.name,
            ) from error
        self._programs[signature] = program

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Runs the program of these shapes, which is compiled now if it was loaded cold.

        Raises:
            StageError: There is none, and all were to be compiled at load.
        """
        signature = _signature((*args, *keywords.values()))
        program = self._programs.get(signature)
        if program is None and not self._counter.is_closed:
            self.compile(args, keywords)
            program = self._programs[signature]
        if program is None:
            raise StageError(
                f"Stage {self.stage.name!r} is called with {_show(signature)}, for which nothing was compiled at "
                f"load; there is {', '.join(map(_show, self._programs))}.",
                stage=self.stage.name,
            )
        # Dense inside of the graph, where that costs nothing, and for sure: a kernel may choose strides of its own.
        return in_own_modes(_run_dense, program, *args, **keywords)


def in_own_modes(function: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """Calls a function outside of the caller's inference mode and autocast."""
    if not torch.is_inference_mode_enabled() and not torch._C._is_any_autocast_enabled():
        return function(*args, **keywords)
    with own_modes():
        return function(*args, **keywords)


def dense(value: torch.Tensor) -> torch.Tensor:
    """Returns a tensor whose elements lie in the order of its dims: itself where they do."""
    value = value if value.is_contiguous() else value.contiguous()
    # Dims of size 1 may have any stride in a tensor that counts as contiguous.
    strides = tuple(math.prod(value.shape[at + 1 :]) for at in range(value.dim()))
    return value if value.stride() == strides or not value.numel() else value.as_strided(value.shape, strides)


def _run_dense(target: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    result = target(*args, **keywords)
    if isinstance(result, torch.Tensor):
        return dense(result)
    return pytree.tree_map(lambda part: dense(part) if isinstance(part, torch.Tensor) else part, result)


def _own_function(target: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that calls another, with a code object that no other function has."""

    def program(*args: Any, **keywords: Any) -> Any:
        return _run_dense(target, *args, **keywords)

    code = program.__code__.replace()
    return types.FunctionType(code, program.__globals__, "program", None, program.__closure__)


def _signature(values: Iterable[Any]) -> Signature:
    tensors = (value for value in pytree.tree_leaves(list(values)) if isinstance(value, torch.Tensor))
    return tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors)


def _show(signature: Signature) -> str:
    return (
        "("
        + ", ".join(f"{list(shape)} {str(dtype).removeprefix('torch.')}" for shape, dtype in signature)
        + ")"
    )
