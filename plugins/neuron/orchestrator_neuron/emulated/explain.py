"""Why a stage cannot be exported: which operation, in which line, and the way out."""

from __future__ import annotations

import os
import re
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.utils import _pytree as pytree

import orchestrator
import orchestrator_neuron
from orchestrator.errors import CompileError

__all__ = ["check_draws", "check_static", "draws_words", "unexportable"]

#: Folders whose lines are not the user's.
_NOT_THE_USERS = tuple(
    f"{Path(file).parent}{os.sep}"
    for file in (torch.__file__, orchestrator.__file__, orchestrator_neuron.__file__)
)
_PYTHON = tuple(f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib"))
_PACKAGE_FOLDERS = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))
_DATA_DEPENDENT = ("DataDependent", "DynamicOutputShape")
_READS = ("aten.item", "aten._local_scalar_dense")
_WAY_OUT = (
    "Run it as a host stage, pipeline.add(..., device='host', outputs={...}), or write it so that all shapes follow "
    "from the shapes of its inputs"
)

#: Arguments that say whether an operation which may draw does: no dropout is none, and neither is evaluation.
_SWITCHES = ("train", "training", "dropout_p", "dropout")
#: Operations that torch marks as random, though they draw nothing themselves.
_HARMLESS = ("aten._nested_tensor_softmax_with_shape", "aten._fused_sdp_choice")


def unexportable(where: str, stage: str, error: BaseException) -> CompileError:
    """Returns the error for a stage whose export raised.

    Args:
        where: The program, for the message.
        stage: The stage's name.
        error: The error of ``torch.export.export``.
    """
    # A generator first: torch refuses it by an error of its own, which says nothing of random numbers.
    operation = _operation(error.__traceback__)
    if _generator(error.__traceback__):
        what = f"a torch.Generator of its own{_line(error.__traceback__)}"
        return CompileError(draws_words(where, what), stage=stage, operation=operation)
    depends = any(mark in type(error).__name__ for mark in _DATA_DEPENDENT)
    first = str(error).strip().partition("\n")[0]
    if depends:
        what = (
            f"{operation or 'a branch or a size in Python'} depends on data, which a compiled program cannot"
        )
    else:
        what = f"{operation or _torch_object(error.__traceback__) or 'its code'} cannot be exported"
    return CompileError(
        f"{where} cannot be compiled: {what}{_line(error.__traceback__)}. {_WAY_OUT}. "
        f"({type(error).__name__}: {first})",
        stage=stage,
        operation=operation,
    )


def check_static(where: str, stage: str, graph: torch.fx.Graph, again: Callable[[], object]) -> None:
    """Makes sure that no shape inside a program depends on data.

    Args:
        where: The program, for the message.
        stage: The stage's name.
        graph: The exported graph.
        again: Runs the program so that an operation which depends on data raises; called for the line.

    Raises:
        CompileError: One does, or a number of a tensor is read.
    """
    # Export lets such sizes through as symbols. A graph has no line for them, so the program runs once more for it.
    for node in graph.nodes:
        name = str(node.target)
        values = pytree.tree_leaves(node.meta.get("val")) if node.op == "call_function" else []
        loose = next((value for value in values if _is_loose(value)), None)
        if loose is None and not name.startswith(_READS):
            continue
        shape = (
            f"gives the shape {[str(size) for size in loose.shape]}, which"
            if loose is not None
            else "reads a number and"
        )
        raise CompileError(
            f"{where} cannot be compiled: {name} {shape.replace(chr(39), '')} depends on data; a program has static "
            f"shapes{_line_of(again)}. {_WAY_OUT}.",
            stage=stage,
            operation=name,
        )


def draws_words(where: str, what: str) -> str:
    """Returns the refusal of a program that draws.

    Args:
        where: The program.
        what: The generator or operation that draws, and its line.
    """
    return (
        f"{where} cannot be compiled: it draws random numbers with {what}. Each run of a program, on each rank, would "
        f"draw its own, whatever the seed. Draw on the host, and hand the numbers in; or run the stage on 'cpu' or as "
        f"a host stage. What is drawn once, as first weights are, belongs in __init__ or make_model."
    )


def check_draws(
    where: str, stage: str, module: torch.fx.GraphModule, again: Callable[[], torch.fx.GraphModule]
) -> None:
    """Makes sure that a program draws no random numbers.

    Args:
        where: The program, for the message.
        stage: The stage's name.
        module: The exported graph, with those of its branches.
        again: Exports it with the line of each operation; called for the line of one that draws.

    Raises:
        CompileError: It does.
    """
    node = _first_draw(module)
    if node is None:
        return
    same = _first_draw(again())
    line = "" if same is None else _line_of_node(same)
    raise CompileError(draws_words(where, f"{node.target}{line}"), stage=stage, operation=str(node.target))


def _first_draw(module: torch.fx.GraphModule) -> torch.fx.Node | None:
    """Returns the first operation that draws, in a graph or its branches."""
    graphs = [part for part in module.modules() if isinstance(part, torch.fx.GraphModule)]
    nodes = (node for part in graphs for node in part.graph.nodes)
    return next((node for node in nodes if node.op == "call_function" and _draws(node)), None)


def _draws(node: torch.fx.Node) -> bool:
    """Tells whether an operation draws with the arguments that it has: dropout in eval mode does not."""
    operation = node.target
    if not isinstance(operation, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded not in operation.tags or str(operation).startswith(_HARMLESS):
        return False
    arguments = {
        item.name: node.args[place]
        if place < len(node.args)
        else node.kwargs.get(item.name, item.default_value)
        for place, item in enumerate(operation._schema.arguments)
    }
    # An operation without a switch always draws; with one, it does where the switch is on or not known.
    switches = [arguments[name] for name in _SWITCHES if name in arguments]
    return not switches or all(value is None or bool(value) for value in switches)


def _line_of_node(node: torch.fx.Node) -> str:
    """Returns the user's line that an operation comes from."""
    lines = re.findall(r'File "([^"]+)", line (\d+)[^\n]*\n(.*)', node.stack_trace or "")
    own = [line for line in lines if _is_users(line[0])]
    return _at(*own[-1]) if own else ""


def _is_loose(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not all(isinstance(size, int) for size in value.shape)


def _operation(trace: TracebackType | None) -> str:
    """Returns the operation that was running, from the frames of torch's dispatch."""
    name = ""
    while trace is not None:
        names = trace.tb_frame.f_locals
        for value in (names.get("func"), names.get("op")):
            if isinstance(value, torch._ops.OpOverload):
                name = str(value)
        trace = trace.tb_next
    return name


def _torch_object(trace: TracebackType | None) -> str:
    """Returns the object of torch's own that stopped an export, such as packed weights of a quantized module."""
    name = ""
    while trace is not None:
        for value in trace.tb_frame.f_locals.values():
            if isinstance(value, torch.ScriptObject):
                name = f"torch's {value._type().name()!r}, as quantized modules hold,"  # type: ignore[attr-defined]
        trace = trace.tb_next
    return name


def _generator(trace: TracebackType | None) -> bool:
    """Tells whether an operation takes a generator of random numbers."""
    while trace is not None:
        names = trace.tb_frame.f_locals
        arguments = pytree.tree_leaves((names.get("args"), names.get("kwargs")))
        if any(isinstance(value, torch.Generator) for value in arguments):
            return True
        trace = trace.tb_next
    return False


def _is_users(file: str) -> bool:
    if file.startswith((*_NOT_THE_USERS, "<frozen", "<eval_with_key>")):
        return False
    return not file.startswith(_PYTHON) or any(name in file for name in _PACKAGE_FOLDERS)


def _line(trace: TracebackType | None) -> str:
    frames = [frame for frame in traceback.extract_tb(trace) if _is_users(frame.filename)]
    return _at(frames[-1].filename, frames[-1].lineno, frames[-1].line) if frames else ""


def _line_of(again: Callable[[], object]) -> str:
    try:
        again()
    except Exception as error:
        return _line(error.__traceback__)
    return ""


def _at(file: str, number: object, code: str | None) -> str:
    return f" (at {Path(file).name}:{number}: {(code or '').strip()})"
