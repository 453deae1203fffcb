"""Compiling an application into a folder: every program at every combination of buckets, and a manifest."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from orchestrator.errors import CompileError
from orchestrator.isolation import LeftBehindError, Leftovers
from orchestrator.program import Application, Program, ProgramInput, ProgramOutput
from orchestrator.specs import AnyDim, dim_names
from orchestrator_neuron.emulated.first_run import FirstRun
from orchestrator_neuron.emulated.manifest import Entry, Form, Manifest, show_shapes, write
from orchestrator_neuron.emulated.trace import trace
from orchestrator_neuron.module import ProgramModule, example_inputs, stage_module
from orchestrator_neuron.options import Settings
from orchestrator_neuron.state import check_state

__all__ = ["compile_application", "planned_entries", "stage_on_host"]

Compiler = Callable[[bytes], bytes]


def compile_application(
    application: Application, settings: Settings, folder: Path, compiler: Compiler
) -> None:
    """Exports the programs of an application into an empty folder.

    Args:
        application: The application.
        settings: What is in force for its stage.
        folder: Where it goes; the manifest is written last.
        compiler: What each exported program goes through.

    Raises:
        CompileError: It cannot be built or exported, it keeps state, two entries have equal shapes, or an output is not
            what the plan says.
    """
    distinct = list(_distinct(application))
    target, owner = stage_on_host(application, settings)
    caches = False
    if target is not None:
        program, sizes = distinct[0]
        module = ProgramModule(target, owner, program, sizes)
        shown = _show(application, program, sizes)
        caches = check_state(shown, application.name, module, example_inputs(program, sizes))
    entries = []
    for number, (program, sizes) in enumerate(distinct):
        shown = _show(application, program, sizes)
        module = ProgramModule(target, owner, program, sizes, guarded=True)
        # Following references takes a second; most stages put nothing away.
        forgotten = _forgotten(target, owner) if caches else contextlib.nullcontext()
        with forgotten, FirstRun(shown, application.name, owner):
            traced = contextvars.copy_context().run(trace, shown, application.name, module, program, sizes)
        (folder / _file_of(number)).write_bytes(compiler(traced.data))
        inputs = tuple(_input_forms(program, sizes))
        entries.append(Entry(program.name, _file_of(number), inputs, traced.outputs, traced.constant_bytes))
    weights = {} if owner is None else _forms(owner)
    write(Manifest(application.name, weights, tuple(entries)), folder)


@contextlib.contextmanager
def _forgotten(target: Any, owner: torch.nn.Module | None) -> Iterator[None]:
    """Takes out again what exporting has a stage cache, in itself or elsewhere: the next program would find it."""
    leftovers = Leftovers()
    leftovers.bindings.note(target)
    leftovers.bindings.note_attributes(owner)
    with contextlib.suppress(LeftBehindError), leftovers.watch(None):
        yield


def planned_entries(application: Application) -> list[Entry]:
    """Returns the entries that compiling an application gives, but for the bytes of constants: a plan says them.

    Raises:
        CompileError: Two entries have equal shapes.
    """
    return [
        Entry(
            program.name,
            _file_of(number),
            tuple(_input_forms(program, sizes)),
            tuple(Form(item.spec.shape(sizes), item.spec.dtype) for item in program.outputs),
        )
        for number, (program, sizes) in enumerate(_distinct(application))
    ]


def _file_of(number: int) -> str:
    return f"{number}.safetensors"


def stage_on_host(
    application: Application, settings: Settings
) -> tuple[Callable[..., Any] | None, torch.nn.Module | None]:
    """Returns a private copy of what runs a stage, in the dtype that is in force, and the owner of its weights.

    Raises:
        CompileError: It cannot be built.
    """
    try:
        return stage_module(application.stage, settings.torch_dtype, settings.checkpoint is not None)
    except CompileError:
        raise
    except Exception as error:
        raise CompileError(
            f"Stage {application.name!r} cannot be built: {type(error).__name__}: {error}",
            stage=application.name,
        ) from error


def _forms(owner: torch.nn.Module) -> dict[str, Form]:
    named = [*owner.named_parameters(remove_duplicate=False), *owner.named_buffers(remove_duplicate=False)]
    return {name: Form.of(tensor) for name, tensor in named}


def _input_forms(program: Program, sizes: Mapping[str, int]) -> Iterator[Form]:
    for item in program.tensors:
        assert item.spec is not None
        yield Form(item.spec.shape(sizes), item.spec.dtype)
    if program.route:
        yield Form((program.route,), torch.int32)


def _distinct(application: Application) -> Iterator[tuple[Program, Mapping[str, int]]]:
    """Yields each program with each combination of sizes that makes a program of its own.

    Raises:
        CompileError: Two of them have the same input shapes.
    """
    taken: dict[tuple[Any, ...], tuple[Program, Mapping[str, int]]] = {}
    for program in application.programs:
        names = _names(program)
        for sizes in program.sizes:
            used = {name: size for name, size in sizes.items() if name in names}
            key = tuple(form.shape for form in _input_forms(program, sizes))
            if key not in taken:
                taken[key] = (program, used)
                yield program, sizes
            elif taken[key] != (program, used):
                raise _collision(application, key, taken[key], (program, used))


def _collision(
    application: Application,
    key: tuple[Any, ...],
    first: tuple[Program, Mapping[str, int]],
    second: tuple[Program, Mapping[str, int]],
) -> CompileError:
    return CompileError(
        f"{_show(application, *first)} and {_show(application, *second)} take inputs of the same shapes, "
        f"{show_shapes(key)}. The device tells them apart by shapes alone and would run the later one for both, "
        f"silently. Put them in stages of their own, or give one an input of another shape.",
        stage=application.name,
    )


def _names(program: Program) -> set[str]:
    """Named dims that a program depends on."""
    parts: list[ProgramInput | ProgramOutput] = [*program.tensors, *program.outputs]
    dims: list[AnyDim] = [dim for part in parts if part.spec is not None for dim in part.spec.dims]
    dims += [dim for part in parts for adapter in part.adapters for dim in adapter.dims]
    return {name for dim in dims for name in dim_names(dim)}


def _show(application: Application, program: Program, sizes: Mapping[str, int]) -> str:
    at = ", ".join(f"{name}={size}" for name, size in sizes.items())
    of = f" of stage {application.name!r}" if application.stage is not None else ""
    return f"The program {program.name!r}{of}{f' at {at}' if at else ''}"
