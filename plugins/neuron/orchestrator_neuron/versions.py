"""The versions that programs are compiled in, and the check that a router can tell all of an application apart.

A *version* is a program at one combination of sizes. NxD's router, and the emulated one, know a version by the shapes
of its inputs and by nothing else, not even by dtype: where two versions of one application take the same shapes, the
later one is run for both, silently. So no two do; see :func:`distinct_versions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from orchestrator.adapter import Adapter
from orchestrator.errors import CompileError
from orchestrator.program import Application, Program
from orchestrator.specs import TensorSpec, dtype_name, size_of

__all__ = ["Sizes", "distinct_versions", "input_shapes", "version_name", "versions_of"]

#: A size for each named dim.
Sizes: TypeAlias = Mapping[str, int]


def versions_of(program: Program) -> tuple[Sizes, ...]:
    """Returns the combinations of sizes to compile: of those that make one and the same program, the first."""
    versions: dict[str, Sizes] = {}
    for sizes in program.sizes:
        versions.setdefault(repr(_description(program, sizes)), sizes)
    return tuple(versions.values())


def distinct_versions(application: Application) -> list[tuple[Program, Sizes]]:
    """Returns all that is compiled into an application, program by program.

    Raises:
        CompileError: Input shapes alone do not tell two of them apart.
    """
    # Versions of one program are apart in something, and programs differ by name: equal shapes are always a conflict.
    versions: dict[tuple[tuple[int, ...], ...], tuple[Program, Sizes]] = {}
    for program in application.programs:
        for sizes in versions_of(program):
            shapes = input_shapes(program, sizes)
            if shapes in versions:
                first, second = (
                    version_name(application, *version) for version in (versions[shapes], (program, sizes))
                )
                raise CompileError(
                    f"The {first} and the {second} take inputs of the same shapes, "
                    f"{[list(shape) for shape in shapes]}. The device tells them apart by shapes alone and would run "
                    f"the later one for both, silently. Put them in stages of their own, or give one an input of "
                    f"another shape.",
                    stage=application.name,
                )
            versions[shapes] = (program, sizes)
    return list(versions.values())


def input_shapes(program: Program, sizes: Sizes) -> tuple[tuple[int, ...], ...]:
    """Returns the shapes by which the router knows a version: of its inputs, the route last where there is one."""
    shapes = tuple(item.spec.shape(sizes) for item in program.tensors if item.spec is not None)
    return (*shapes, (program.route,)) if program.route else shapes


def version_name(application: Application, program: Program, sizes: Sizes) -> str:
    """Returns the name of a version in messages: ``program 'enc' of stage 'enc' at n=8``."""
    at = ", ".join(f"{name}={size}" for name, size in sizes.items())
    stage = application.stage_of(program)
    of = "" if stage is None else f" of stage {stage.name!r}"
    return f"program {program.name!r}{of}{f' at {at}' if at else ''}"


def _description(program: Program, sizes: Sizes) -> list[Any]:
    """All that a program depends on at one combination of sizes."""
    inputs = [
        [item.port, _shape_and_dtype(item.spec, sizes), str(item.dtype), _resizes(item.adapters, sizes)]
        for item in program.tensors
    ]
    outputs = [
        [item.port, _shape_and_dtype(item.spec, sizes), _resizes(item.adapters, sizes)]
        for item in program.outputs
    ]
    return [program.route, inputs, outputs]


def _shape_and_dtype(spec: TensorSpec | None, sizes: Sizes) -> list[Any]:
    return [] if spec is None else [list(spec.shape(sizes)), dtype_name(spec.dtype)]


def _resizes(adapters: tuple[Adapter, ...], sizes: Sizes) -> list[Any]:
    return [
        [adapter.kind, [size_of(dim, sizes) for dim in adapter.dims], repr(adapter.rule), str(adapter.dtype)]
        for adapter in adapters
    ]
