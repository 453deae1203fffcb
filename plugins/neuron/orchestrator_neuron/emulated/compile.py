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
from orchestrator.program import Application, Program
from orchestrator_neuron.emulated.first_run import FirstRun
from orchestrator_neuron.emulated.manifest import Entry, Form, Manifest, write
from orchestrator_neuron.emulated.trace import trace
from orchestrator_neuron.module import ProgramModule, example_inputs, stage_module
from orchestrator_neuron.options import Settings
from orchestrator_neuron.state import check_state
from orchestrator_neuron.versions import distinct_versions, version_name

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
    versions = distinct_versions(application)
    target, owner = stage_on_host(application, settings)
    caches = False
    if target is not None:
        program, sizes = versions[0]
        module = ProgramModule(target, owner, program, sizes)
        shown = f"The {version_name(application, program, sizes)}"
        caches = check_state(shown, application.name, module, example_inputs(program, sizes))
    entries = []
    for number, (program, sizes) in enumerate(versions):
        shown = f"The {version_name(application, program, sizes)}"
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
        for number, (program, sizes) in enumerate(distinct_versions(application))
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
