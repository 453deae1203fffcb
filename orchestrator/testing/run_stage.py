"""Running one stage on a backend without a plan, for contracts.

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

__all__ = ["application_key", "run_stage"]


def run_stage(
    backend: Backend, store: ArtifactStore, stage: Stage, arguments: Mapping[str, Any], reference: Any
) -> Any:
    """Compiles and loads a stage, and runs it once.

    Args:
        backend: An opened backend.
        store: Where artifacts go.
        stage: The stage.
        arguments: Values by input port, in order: host tensors, which are uploaded, and Python values.
        reference: What a call by hand returns; where the stage is compiled, its program has outputs of this form.

    Returns:
        Handles, in the form in which the stage gives its outputs.
    """
    # Called as users do: the first port by position, the others by name.
    if isinstance(backend, EagerBackend):
        run = backend.load(stage, [{}])
        first, *rest = arguments.items()
        keyword_arguments = {port: _upload(backend, value) for port, value in rest}
        return run(_upload(backend, first[1]), **keyword_arguments)
    assert isinstance(backend, CompilingBackend)
    # A program has every constant compiled in, so that it takes tensors alone, and always gives a tuple.
    application = _application(stage, arguments, reference)
    folder = store.get_or_build(backend.key(application), lambda path: backend.build(application, path))
    run = backend.load_application(application, folder)[stage.name]
    outputs = run(*(backend.upload(value) for value in arguments.values() if isinstance(value, torch.Tensor)))
    if isinstance(reference, Mapping):
        return dict(zip(reference, outputs, strict=True))
    return outputs if isinstance(reference, tuple) else outputs[0]


def application_key(
    backend: CompilingBackend,
    stage: Stage,
    sizes: Mapping[str, int],
    adapters: tuple[Adapter, ...],
) -> str:
    """Returns the content key of a stage that takes ``[batch, 4]``, with adapters folded into it."""
    spec = TensorSpec((*sizes.values(), 4))
    inputs = tuple(ProgramInput(port.name, spec, adapters, spec.dtype) for port in stage.inputs)
    program = Program(stage.name, inputs, (ProgramOutput("output", spec),), (sizes,))
    return backend.key(Application(stage.name, (stage,), (program,)))


def _application(stage: Stage, arguments: Mapping[str, Any], reference: Any) -> Application:
    inputs = tuple(_input(port, value) for port, value in arguments.items())
    returns, values = _form(reference)
    program_outputs = tuple(ProgramOutput(port, _spec(value)) for port, value in values.items())
    keywords = tuple(arguments)[1:]
    program = Program(stage.name, inputs, program_outputs, ({},), returns, tuple(values), keywords)
    return Application(stage.name, (stage,), (program,))


def _form(reference: Any) -> tuple[str, dict[str, torch.Tensor]]:
    if isinstance(reference, Mapping):
        return "dict", dict(reference)
    if isinstance(reference, tuple):
        return "tuple", {f"output{number}": value for number, value in enumerate(reference)}
    return "single", {"output": reference}


def _input(port: str, value: Any) -> ProgramInput:
    if not isinstance(value, torch.Tensor):
        return ProgramInput(port, None, constant=value)
    return ProgramInput(port, _spec(value), dtype=value.dtype)


def _spec(value: torch.Tensor) -> TensorSpec:
    return TensorSpec(tuple(value.shape), value.dtype)


def _upload(backend: Backend, value: Any) -> Any:
    return backend.upload(value) if isinstance(value, torch.Tensor) else value
