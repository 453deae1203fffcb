"""A check at load: ranks that hold parts of an output are told before a request takes one of them for the whole.

A device reads rank 0 where an output is declared as whole. Whether it is shows when a program runs: all ranks get the
same values here, and what they give is compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping

import torch

from orchestrator.backend import Handle
from orchestrator.errors import CompileError
from orchestrator.program import Application, Program
from orchestrator_neuron.family import RankedBackend
from orchestrator_neuron.module import example_inputs
from orchestrator_neuron.versions import Sizes, version_name, versions_of

__all__ = ["check_ranks"]

#: How far ranks may be apart, as a part of the largest element: each may sum what others send in an order of its own.
TOLERANCE = 0.01


def check_ranks(
    backend: RankedBackend, application: Application, programs: Mapping[str, Callable[..., Iterable[Handle]]]
) -> None:
    """Runs all versions of an application once, and compares what its ranks give for the same values.

    An application with states is left alone: nothing is to be in them before a request. So are outputs that the stage
    declares as sharded.

    Args:
        backend: The open device.
        application: The application.
        programs: Of each program its callable, from handles to handles of results.

    Raises:
        CompileError: Ranks differ in an output that passes for whole, or it has another shape than the plan says.
    """
    if application.states:
        return
    for program in application.programs:
        stage = application.stage_of(program)
        if stage is None:
            continue
        sharded = backend.sharded(stage)
        outputs = [(place, item) for place, item in enumerate(program.results) if item.port not in sharded]
        for sizes in versions_of(program) if outputs else ():
            name = version_name(application, program, sizes)
            # Ones, of which integers are made here, may be no legal input: then only a request tells.
            try:
                results = list(programs[program.name](*_values(backend, program, sizes)))
                rows = {place: backend.host_rows(results[place]) for place, _ in outputs}
            except (RuntimeError, IndexError) as error:
                warnings.warn(
                    f"Whether all ranks hold the whole of what the {name} gives could not be tried: "
                    f"{type(error).__name__}: {error}",
                    stacklevel=2,
                )
                continue
            for place, item in outputs:
                _compare(
                    f"The output {item.port!r} of the {name}", item.port, rows[place], item.spec.shape(sizes)
                )


def _values(backend: RankedBackend, program: Program, sizes: Sizes) -> list[Handle]:
    """Inputs of a version: numbers that tell parts of a weight apart, and ones, which are indices as well."""
    generator = torch.Generator().manual_seed(0)
    examples = example_inputs(program, sizes)[: len(program.tensors)]
    return [
        backend.upload(
            torch.rand(value.shape, generator=generator, device="cpu").to(value.dtype)
            if value.is_floating_point()
            else value
        )
        for value in examples
    ]


def _compare(what: str, port: str, rows: list[torch.Tensor], shape: tuple[int, ...]) -> None:
    way_out = (
        f"If each rank holds a part, declare the dim along which they join, config={{'sharded': {{{port!r}: dim}}}}, "
        f"or gather it inside the stage."
    )
    # Shapes first: parts of another size than the plan has are told as what they are.
    if any(tuple(row.shape) != tuple(shape) for row in rows):
        raise CompileError(
            f"{what} is {list(rows[0].shape)} on each rank, but the plan takes it for {list(shape)}. {way_out}",
            port=port,
        )
    for rank, row in enumerate(rows[1:], 1):
        if not _is_alike(rows[0], row):
            first, second = rows[0].double(), row.double()
            apart = f"by {float((first - second).abs().max()):.3g} where the largest is {float(first.abs().max()):.3g}"
            raise CompileError(
                f"{what}, {list(shape)}, differs between rank 0 and rank {rank} for the same inputs ({apart}): reading "
                f"rank 0 alone would lose the rest. {way_out} If the stage draws random numbers, each rank draws its "
                f"own: draw on the host, and hand them in.",
                port=port,
            )


def _is_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or not one.is_floating_point():
        return torch.equal(one, other)
    first, second = one.double(), other.double()
    finite = [value[value.isfinite()] for value in (first, second)]
    largest = max((float(value.abs().max()) for value in finite if value.numel()), default=0.0)
    return torch.allclose(first, second, rtol=0.0, atol=TOLERANCE * largest, equal_nan=True)
