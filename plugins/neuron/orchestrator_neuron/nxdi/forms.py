"""What a program is at each combination of sizes, and how NxD's router knows it.

NxD's router knows a program by the shapes of its inputs and by nothing else, not even by dtype: where two programs of
one application take the same shapes, the later one is run for both, silently. So no two do; see :func:`check_routes`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from orchestrator.adapter import Adapter
from orchestrator.errors import CompileError
from orchestrator.program import Application, Program
from orchestrator.specs import TensorSpec, dtype_name, size_of
from orchestrator_neuron.module import example_inputs

__all__ = ["check_routes", "examples", "tag_of", "versions_of"]

Sizes = Mapping[str, int]
Shapes = tuple[tuple[int, ...], ...]


def tag_of(program: Program, position: int) -> str:
    """Returns a tag that is unique in the application, and may name a folder and a module."""
    return f"p{position}_{re.sub('[^0-9a-z]+', '_', program.name.lower()).strip('_')}"


def versions_of(program: Program) -> tuple[Sizes, ...]:
    """Returns the combinations of sizes to compile: of those with one description, the first."""
    kept: dict[str, Sizes] = {}
    for sizes in program.sizes:
        kept.setdefault(repr(_at(program, sizes)), sizes)
    return tuple(kept.values())


def examples(program: Program) -> list[tuple[torch.Tensor, ...]]:
    """Returns inputs for each of :func:`versions_of`."""
    return [example_inputs(program, sizes) for sizes in versions_of(program)]


def check_routes(application: Application) -> None:
    """Makes sure that input shapes alone tell apart all that is compiled into an application.

    Raises:
        CompileError: They do not, or a program takes no tensor at all.
    """
    routes: dict[Shapes, tuple[str, Sizes]] = {}
    for program in application.programs:
        for sizes in versions_of(program):
            shapes = _shapes(program, sizes)
            if not shapes:
                raise CompileError(
                    f"The program {program.name!r} takes no tensor, and NxD Inference routes by the shapes of "
                    f"inputs; make its stage a host stage (device='host').",
                    program=program.name,
                )
            other, at = routes.setdefault(shapes, (program.name, sizes))
            if (other, at) != (program.name, sizes):
                raise CompileError(
                    f"In application {application.name!r}, the program {other!r} at {dict(at)} and {program.name!r} "
                    f"at {dict(sizes)} take inputs of the same shapes {[list(shape) for shape in shapes]}; NxD "
                    f"Inference would run the later for both. Give them another shape, or make two stages of them.",
                    application=application.name,
                    programs=(other, program.name),
                )


def _shapes(program: Program, sizes: Sizes) -> Shapes:
    """What the router sees."""
    shapes = [item.spec.shape(sizes) for item in program.tensors if item.spec is not None]
    return (*shapes, (program.route,)) if program.route else tuple(shapes)


def _at(program: Program, sizes: Sizes) -> list[Any]:
    takes = [
        [item.port, _form(item.spec, sizes), str(item.dtype), [_adapter(one, sizes) for one in item.adapters]]
        for item in program.tensors
    ]
    gives = [
        [item.port, _form(item.spec, sizes), [_adapter(one, sizes) for one in item.adapters]]
        for item in program.outputs
    ]
    return [program.route, takes, gives]


def _form(spec: TensorSpec | None, sizes: Sizes) -> list[Any]:
    return [] if spec is None else [list(spec.shape(sizes)), dtype_name(spec.dtype)]


def _adapter(adapter: Adapter, sizes: Sizes) -> list[Any]:
    dims = [size_of(dim, sizes) for dim in adapter.dims]
    return [adapter.kind, dims, repr(adapter.rule), str(adapter.dtype)]
