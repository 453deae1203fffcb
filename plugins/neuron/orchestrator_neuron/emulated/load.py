"""Loading a compiled application: its weights are found and weighed before anything is put on the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from orchestrator.errors import CompileError
from orchestrator.program import Application
from orchestrator_neuron.checkpoint import load_weights, rank_weights
from orchestrator_neuron.emulated.compile import planned_entries, stage_on_host
from orchestrator_neuron.emulated.device import Device
from orchestrator_neuron.emulated.manifest import Form, Manifest, read
from orchestrator_neuron.emulated.runtime import LoadedEntry, LoadedProgram, Weights, stage_route
from orchestrator_neuron.emulated.tensor import EmulatedTensor, upload
from orchestrator_neuron.options import Settings

__all__ = ["load_application"]

_CONSTANTS = (
    " Constants are tensors that its code holds or makes from numbers, once for each program: a plan cannot count "
    "them, since they show when a stage is exported. Registered as buffers they are weights, which it counts."
)


def load_application(
    device: Device, application: Application, settings: Settings, folder: Path
) -> dict[str, LoadedProgram]:
    """Loads what :func:`~orchestrator_neuron.emulated.compile.compile_application` wrote.

    Args:
        device: An open device.
        application: The application.
        settings: What is in force for its stage.
        folder: Where it was compiled.

    Returns:
        Program name to callable.

    Raises:
        CompileError: The folder is damaged, the weights do not fit, or the memory does not suffice.
    """
    manifest = read(application.name, folder)
    _check_entries(application, manifest)
    _, owner = stage_on_host(application, settings)
    weights = load_weights(application.name, owner, settings)
    ranked = [rank_weights(weights, settings, rank) for rank in range(device.ranks)]
    for row in ranked:
        _check_weights(application.name, row, manifest.weights)
    _check_memory(device, application, manifest, ranked[0])
    staged = [_stage(device, rank, row, application.name) for rank, row in enumerate(ranked)]
    return _programs(device, application, manifest, folder, staged)


def _check_entries(application: Application, manifest: Manifest) -> None:
    """Makes sure that the folder holds what the plan says: files in a store are somebody's word."""
    listed = [replace(entry, constant_bytes=0) for entry in manifest.entries]
    if listed != planned_entries(application):
        raise CompileError(
            f"The compiled {application.name!r} is not what the plan says: its manifest lists other programs, files "
            f"or shapes. Compile it again.",
            stage=application.name,
        )


def _programs(
    device: Device, application: Application, manifest: Manifest, folder: Path, weights: Weights
) -> dict[str, LoadedProgram]:
    entries: dict[str, list[LoadedEntry]] = {program.name: [] for program in application.programs}
    for entry in manifest.entries:
        if entry.program in entries:
            loaded = LoadedEntry(device, application.name, entry, folder / entry.file, weights)
            entries[entry.program].append(loaded)
    return {
        program.name: LoadedProgram(
            device, application.name, program, entries[program.name], stage_route(device, program)
        )
        for program in application.programs
    }


def _stage(
    device: Device, rank: int, weights: Mapping[str, torch.Tensor], name: str
) -> dict[str, EmulatedTensor]:
    """Copies weights to a rank; a tied one once."""
    copies: dict[int, EmulatedTensor] = {}
    for tensor in weights.values():
        if id(tensor) not in copies:
            copies[id(tensor)] = upload(device, rank, tensor, f"A weight of {name!r}", held=True)
    return {key: copies[id(tensor)] for key, tensor in weights.items()}


def _check_weights(name: str, weights: Mapping[str, torch.Tensor], compiled: Mapping[str, Form]) -> None:
    found = {key: Form.of(tensor) for key, tensor in weights.items()}
    differing = [key for key in {**compiled, **found} if found.get(key) != compiled.get(key)]
    if differing:
        first = differing[0]
        raise CompileError(
            f"{len(differing)} weights of {name!r} are not as it was compiled, e.g. {first!r}: {found.get(first)}, "
            f"compiled for {compiled.get(first)}. Compile it again.",
            stage=name,
        )


def _check_memory(
    device: Device, application: Application, manifest: Manifest, weights: Mapping[str, torch.Tensor]
) -> None:
    """Makes sure that weights, constants and output buffers fit beside what is there and what requests will take.

    Constants are what a plan cannot count: they are known once a stage is exported.

    Raises:
        CompileError: They do not.
    """
    own = sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in weights.values()}.values())
    constants = sum(entry.constant_bytes for entry in manifest.entries)
    buffers = sum(form.nbytes for entry in manifest.entries for form in entry.outputs)
    routes = sum(program.route * torch.int32.itemsize for program in application.programs)
    name, taken, needed = application.name, max(device.allocated), own + constants + buffers + routes
    if device.budget and taken + needed + device.reserved > device.budget:
        raise CompileError(
            f"{name!r} takes {needed:,} bytes of each rank (weights {own:,}, constants {constants:,}, output buffers "
            f"of {len(manifest.entries)} programs {buffers:,}, routing inputs {routes:,}), but {taken:,} of "
            f"{device.budget:,} are taken and requests take {device.reserved:,}; nothing was loaded of it."
            f"{_CONSTANTS if constants else ''} Plan with smaller or fewer buckets, a larger tp_degree, or a larger "
            f"budget (memory=).",
            stage=name,
            bytes=needed,
        )
