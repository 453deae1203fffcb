"""One program at one combination of buckets, exported with static shapes and without its weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch._subclasses import fake_tensor
from torch.export.graph_signature import InputKind

from orchestrator.errors import CompileError
from orchestrator.program import Program
from orchestrator_neuron.emulated.device import size_of
from orchestrator_neuron.emulated.explain import check_draws, check_static, unexportable
from orchestrator_neuron.emulated.graph_file import UnstorableError, dump
from orchestrator_neuron.emulated.manifest import TensorMeta
from orchestrator_neuron.isolation import default_torch_state, silenced
from orchestrator_neuron.module import ProgramModule, example_inputs

__all__ = ["TracedProgram", "trace", "warm_up"]


@dataclass(frozen=True)
class TracedProgram:
    """An exported program.

    Attributes:
        data: Its graph and constants, as the content of a file; of its weights only the names.
        constant_bytes: Bytes of the tensors that were compiled in.
    """

    data: bytes
    constant_bytes: int


def trace(
    where: str, stage: str, module: ProgramModule, program: Program, sizes: Mapping[str, int]
) -> TracedProgram:
    """Exports a program.

    Args:
        where: The program, for messages.
        stage: The stage's name.
        module: The module to export.
        program: Its program.
        sizes: The combination of buckets.

    Raises:
        CompileError: It cannot be exported, or gives something else than the plan says.
    """
    try:
        with _without_lines():
            export = _export(module, program, sizes)
    except Exception as error:
        raise unexportable(where, stage, error) from error
    # A refusal names the user's line, so the graph is checked first: comparing outputs and writing know operators only.
    check_static(where, stage, export.graph, lambda: _run_fake(module, program, sizes))
    check_draws(where, stage, export.graph_module, lambda: _export(module, program, sizes).graph_module)
    _check_outputs(where, stage, _outputs(export), module, sizes)
    try:
        data = dump(export)
    except UnstorableError as error:
        raise CompileError(
            f"{where} cannot be compiled: {error}. A program holds operators and plain tensors; run this part as a "
            f"host stage, pipeline.add(..., device='host', outputs={{...}}).",
            stage=stage,
        ) from error
    return TracedProgram(data, _constant_bytes(export))


def _export(
    module: ProgramModule, program: Program, sizes: Mapping[str, int]
) -> torch.export.ExportedProgram:
    with default_torch_state(), silenced():
        return torch.export.export(module, example_inputs(program, sizes), strict=False)


@contextlib.contextmanager
def _without_lines() -> Iterator[None]:
    """Keeps torch from noting the line of each operation, a sixth of an export: a refusal exports again for its line.

    Versions of torch that do not know the switch note them all the same.
    """
    config = torch.fx.config
    before = getattr(config, "do_not_emit_stack_traces", False)
    config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        config.do_not_emit_stack_traces = before


def _run_fake(module: ProgramModule, program: Program, sizes: Mapping[str, int]) -> None:
    """Runs a program on fake tensors without content, so that the line which needs content raises."""
    with default_torch_state(), silenced(), fake_tensor.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        module(*map(mode.from_tensor, example_inputs(program, sizes)))


def warm_up() -> None:
    """Exports a layer of one weight, so that torch's imports for it happen before a process forks for each stage."""
    with default_torch_state(), silenced():
        # A layer whose weights are drawn would move the random state of the process.
        layer = torch.nn.utils.skip_init(torch.nn.Linear, 1, 1)  # type: ignore[no-untyped-call]
        export = torch.export.export(layer, (torch.zeros(1, 1),), strict=False)
        dump(export)


def _outputs(export: torch.export.ExportedProgram) -> tuple[TensorMeta, ...]:
    return tuple(TensorMeta.of(node.meta["val"]) for node in export.graph.output_node().args[0])


def _check_outputs(
    where: str, stage: str, outputs: tuple[TensorMeta, ...], module: ProgramModule, sizes: Mapping[str, int]
) -> None:
    plan_outputs = [
        (item.port, TensorMeta(item.spec.shape(sizes), item.spec.dtype)) for item in module.program.results
    ]
    plan_outputs += [(f"state {at}", TensorMeta.of(state)) for at, state in enumerate(module.states)]
    for (port, plan_output), output in zip(plan_outputs, outputs, strict=True):
        if output != plan_output:
            raise CompileError(
                f"{where} gives {output} at its output {port!r}, but the plan says {plan_output}. Plan again: the "
                f"stage has changed, or what its wrapper declares is not what it gives.",
                stage=stage,
                port=port,
            )


def _constant_bytes(export: torch.export.ExportedProgram) -> int:
    """Returns the bytes of tensors that are compiled in and are no weights."""
    names = [
        str(item.target)
        for item in export.graph_signature.input_specs
        if item.kind is InputKind.CONSTANT_TENSOR
    ]
    return sum(size_of(export.constants[name].shape, export.constants[name].dtype) for name in names)
