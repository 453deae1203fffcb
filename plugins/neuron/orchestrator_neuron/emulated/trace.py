"""One program at one combination of buckets, exported with static shapes and without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch._subclasses import fake_tensor
from torch.export.graph_signature import InputKind

from orchestrator.errors import CompileError
from orchestrator.program import Program
from orchestrator_neuron.emulated.device import size_of
from orchestrator_neuron.emulated.explain import check_draws, check_static, unexportable
from orchestrator_neuron.emulated.graph_file import UnstorableError, dump
from orchestrator_neuron.emulated.manifest import Form
from orchestrator_neuron.isolation import default_torch_state, silenced
from orchestrator_neuron.module import ProgramModule, example_inputs

__all__ = ["Traced", "trace", "warm_up"]


@dataclass(frozen=True)
class Traced:
    """An exported program.

    Attributes:
        data: Its graph and constants, as a file holds them; of its weights only the names.
        outputs: Forms of what it gives.
        constant_bytes: What tensors take that were compiled in.
    """

    data: bytes
    outputs: tuple[Form, ...]
    constant_bytes: int


def trace(
    where: str, stage: str, module: ProgramModule, program: Program, sizes: Mapping[str, int]
) -> Traced:
    """Exports a program.

    Args:
        where: What it is, for messages.
        stage: The stage's name.
        module: What is exported.
        program: The program it is of.
        sizes: The combination of buckets.

    Raises:
        CompileError: It cannot be exported, or gives something else than the plan says.
    """
    try:
        with default_torch_state(), silenced():
            exported = torch.export.export(module, example_inputs(program, sizes), strict=False)
    except Exception as error:
        raise unexportable(where, stage, error) from error
    check_static(where, stage, exported.graph, lambda: _run_fake(module, program, sizes))
    check_draws(where, stage, exported.graph_module)
    outputs = _outputs(exported)
    _check_outputs(where, stage, outputs, program, sizes)
    try:
        data = dump(exported)
    except UnstorableError as error:
        raise CompileError(
            f"{where} cannot be compiled: {error}. A program holds operators and plain tensors; run this part as a "
            f"host stage, pipeline.add(..., device='host', outputs={{...}}).",
            stage=stage,
        ) from error
    return Traced(data, outputs, _constant_bytes(exported))


def _run_fake(module: ProgramModule, program: Program, sizes: Mapping[str, int]) -> None:
    """Runs a program on fake tensors that know no sizes of data, so that what needs them raises where it stands."""
    with default_torch_state(), silenced(), fake_tensor.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        module(*map(mode.from_tensor, example_inputs(program, sizes)))


def warm_up() -> None:
    """Exports next to nothing, so that what torch imports for it is there before a process forks for each stage."""
    with default_torch_state(), silenced():
        # A layer whose weights are drawn would move the random state of the process.
        layer = torch.nn.utils.skip_init(torch.nn.Linear, 1, 1)  # type: ignore[no-untyped-call]
        exported = torch.export.export(layer, (torch.zeros(1, 1),), strict=False)
        dump(exported)


def _outputs(exported: torch.export.ExportedProgram) -> tuple[Form, ...]:
    return tuple(Form.of(node.meta["val"]) for node in exported.graph.output_node().args[0])


def _check_outputs(
    where: str, stage: str, found: tuple[Form, ...], program: Program, sizes: Mapping[str, int]
) -> None:
    declared = tuple(Form(item.spec.shape(sizes), item.spec.dtype) for item in program.outputs)
    for item, given, wanted in zip(program.outputs, found, declared, strict=True):
        if given != wanted:
            raise CompileError(
                f"{where} gives {given} at its output {item.port!r}, but the plan says {wanted}. Plan again: the stage "
                f"has changed, or what its wrapper declares is not what it gives.",
                stage=stage,
                port=item.port,
            )


def _constant_bytes(exported: torch.export.ExportedProgram) -> int:
    """What tensors take that are compiled in, and are no weights."""
    names = [
        str(item.target)
        for item in exported.graph_signature.input_specs
        if item.kind is InputKind.CONSTANT_TENSOR
    ]
    return sum(size_of(exported.constants[name].shape, exported.constants[name].dtype) for name in names)
