"""Starting one stage on a backend without a plan, for contracts.

Eager backends load the stage; others compile and load an application of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from orchestrator.adapter import Adapter
from orchestrator.backend import Backend, CompilingBackend, EagerBackend
from orchestrator.program import Application, Program, ProgramInput, ProgramOutput
from orchestrator.specs import TensorSpec
from orchestrator.stage import Stage
from orchestrator.store import ArtifactStore

__all__ = ["artifact_key", "start"]


def start(
    backend: Backend, store: ArtifactStore, stage: Stage, given: Mapping[str, Any], expected: Any
) -> Any:
    """Compiles and loads a stage, and runs it once.

    Args:
        backend: An opened backend.
        store: Where artifacts go.
        stage: The stage.
        given: Values by input port, in order: host tensors, which are uploaded, and Python values.
        expected: What the stage gives by hand; its form is used where a program is told what it gives.

    Returns:
        Handles, in the form in which the stage gives its outputs.
    """
    if isinstance(backend, EagerBackend):
        run = backend.load(stage, [{}])
        first, *rest = given.items()
        named = {port: _uploaded(backend, value) for port, value in rest}
        return run(_uploaded(backend, first[1]), **named)
    assert isinstance(backend, CompilingBackend)
    application = _application(stage, given, expected)
    folder = store.get_or_build(backend.key(application), lambda path: backend.build(application, path))
    run = backend.load_application(application, folder)[stage.name]
    made = run(*(backend.upload(value) for value in given.values() if isinstance(value, torch.Tensor)))
    if isinstance(expected, Mapping):
        return dict(zip(expected, made, strict=True))
    return made if isinstance(expected, tuple) else made[0]


def artifact_key(
    backend: CompilingBackend,
    stage: Stage,
    sizes: Mapping[str, int],
    adapters: tuple[Adapter, ...],
) -> str:
    """Returns the content key of a stage that takes ``[batch, 4]``, with adapters folded into it."""
    spec = TensorSpec((*sizes.values(), 4))
    inputs = tuple(ProgramInput(port.name, spec, adapters, spec.dtype) for port in stage.inputs)
    program = Program(stage.name, inputs, (ProgramOutput("output", spec),), (sizes,))
    return backend.key(Application(stage.name, stage, (program,)))


def _application(stage: Stage, given: Mapping[str, Any], expected: Any) -> Application:
    inputs = tuple(_input(port, value) for port, value in given.items())
    returns, values = _form(expected)
    outputs = tuple(ProgramOutput(port, _spec(value)) for port, value in values.items())
    keywords = tuple(given)[1:]
    program = Program(stage.name, inputs, outputs, ({},), returns, tuple(values), keywords)
    return Application(stage.name, stage, (program,))


def _form(expected: Any) -> tuple[str, dict[str, torch.Tensor]]:
    if isinstance(expected, Mapping):
        return "dict", dict(expected)
    if isinstance(expected, tuple):
        return "tuple", {f"output{number}": value for number, value in enumerate(expected)}
    return "single", {"output": expected}


def _input(port: str, value: Any) -> ProgramInput:
    if not isinstance(value, torch.Tensor):
        return ProgramInput(port, None, constant=value)
    return ProgramInput(port, _spec(value), dtype=value.dtype)


def _spec(value: torch.Tensor) -> TensorSpec:
    return TensorSpec(tuple(value.shape), value.dtype)


def _uploaded(backend: Backend, value: Any) -> Any:
    return backend.upload(value) if isinstance(value, torch.Tensor) else value
