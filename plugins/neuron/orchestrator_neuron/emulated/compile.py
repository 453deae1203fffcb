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
from orchestrator.store.seals import seal, sealed_content
from orchestrator_neuron.emulated.first_run import FirstRun
from orchestrator_neuron.emulated.manifest import ApplicationManifest, CompiledVersion, TensorMeta, write
from orchestrator_neuron.emulated.trace import TracedProgram, trace
from orchestrator_neuron.module import (
    ApplicationModule,
    ProgramModule,
    application_module,
    entry_points,
)
from orchestrator_neuron.options import NeuronSettings
from orchestrator_neuron.state import check_handover, check_state
from orchestrator_neuron.versions import Sizes, distinct_versions, version_name

__all__ = ["compile_application", "module_on_host", "planned_versions"]

Compiler = Callable[[bytes], bytes]


def compile_application(
    application: Application, settings: NeuronSettings, folder: Path, compiler: Compiler
) -> None:
    """Exports the programs of an application into an empty folder.

    Args:
        application: The application.
        settings: Those in force for its stages.
        folder: Where it goes; the manifest is written last.
        compiler: A function that each exported program goes through.

    Raises:
        CompileError: It cannot be built or exported, it keeps state, two versions have equal shapes, or an output is
            not what the plan says.
    """
    versions = distinct_versions(application)
    module = module_on_host(application, settings)
    # 1. State shows in two runs, at any sizes: the first version of a stage answers for all. It also tells whether
    #    exporting leaves tensors behind, which the next export would take for constants.
    points = entry_points(application, module)
    caches = [
        check_state(f"The program {point[0].program.name!r} of stage {name!r}", name, *point)
        for name, point in points.items()
    ]
    if any(caches):
        check_handover(application.name, points)
    # 2. Each version is exported in a context of its own, and its file written and sealed at once: one is in memory at
    #    a time, and a build that was cut short goes on after the last one.
    compiled_versions = []
    for number, (program, sizes) in enumerate(versions):
        path = folder / _file_of(number)
        content = sealed_content(path)
        if content is None:
            # Following references takes a second, and most stages put nothing away.
            target = module.target(application, program)
            cleanup = _without_leftovers(target, module.owner) if any(caches) else contextlib.nullcontext()
            with cleanup:
                traced_program = _trace(application, module, program, sizes)
            path.write_bytes(compiler(traced_program.data))
            content = {"constant_bytes": traced_program.constant_bytes}
            seal(path, content)
        compiled_versions.append(_version(number, program, sizes, content["constant_bytes"]))
    # 3. The manifest comes last: a folder that lacks it is no compiled application.
    weights = {} if module.owner is None else _weight_metas(module.owner)
    write(ApplicationManifest(application.name, weights, tuple(compiled_versions)), folder)


def _trace(
    application: Application, module: ApplicationModule, program: Program, sizes: Sizes
) -> TracedProgram:
    """Exports one version in a context of its own."""
    where = f"The {version_name(application, program, sizes)}"
    stage = program.stage or application.name
    program_module = ProgramModule(
        module.target(application, program),
        module.owner,
        program,
        sizes,
        checks_overflow=True,
        states=application.states,
    )
    with FirstRun(where, stage, module.owner):
        return contextvars.copy_context().run(trace, where, stage, program_module, program, sizes)


@contextlib.contextmanager
def _without_leftovers(target: Any, owner: torch.nn.Module | None) -> Iterator[None]:
    """Empties caches that a stage fills while it is exported, in itself or elsewhere: the next would find them."""
    leftovers = Leftovers()
    leftovers.bindings.note(target)
    leftovers.bindings.note_attributes(owner)
    with contextlib.suppress(LeftBehindError), leftovers.watch(None):
        yield


def planned_versions(application: Application) -> list[CompiledVersion]:
    """Returns the versions that compiling an application gives, as its plan says, so without the bytes of constants.

    Raises:
        CompileError: Two versions have equal shapes.
    """
    versions = enumerate(distinct_versions(application))
    return [_version(number, program, sizes) for number, (program, sizes) in versions]


def _version(number: int, program: Program, sizes: Sizes, constant_bytes: int = 0) -> CompiledVersion:
    """A version of which tracing has made sure that it gives what the plan says."""
    outputs = tuple(TensorMeta(item.spec.shape(sizes), item.spec.dtype) for item in program.results)
    return CompiledVersion(
        program.name, _file_of(number), tuple(_input_metas(program, sizes)), outputs, constant_bytes
    )


def _file_of(number: int) -> str:
    return f"{number}.safetensors"


def module_on_host(application: Application, settings: NeuronSettings) -> ApplicationModule:
    """Returns private copies of what an application runs, in the dtype in force, and the module of its weights.

    Raises:
        CompileError: It cannot be built.
    """
    try:
        return application_module(application, settings.torch_dtype, settings.checkpoint is not None)
    except CompileError:
        raise
    except Exception as error:
        raise CompileError(
            f"Stage {application.name!r} cannot be built: {type(error).__name__}: {error}",
            stage=application.name,
        ) from error


def _weight_metas(owner: torch.nn.Module) -> dict[str, TensorMeta]:
    tensors = [*owner.named_parameters(remove_duplicate=False), *owner.named_buffers(remove_duplicate=False)]
    return {name: TensorMeta.of(tensor) for name, tensor in tensors}


def _input_metas(program: Program, sizes: Mapping[str, int]) -> Iterator[TensorMeta]:
    for item in program.tensors:
        assert item.spec is not None
        yield TensorMeta(item.spec.shape(sizes), item.spec.dtype)
    if program.route:
        yield TensorMeta((program.route,), torch.int32)
