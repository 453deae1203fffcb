"""Loading a compiled application: its weights are read and weighed before anything is put on the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from orchestrator.errors import CompileError
from orchestrator.program import Application
from orchestrator_neuron.checkpoint import load_weights, rank_weights
from orchestrator_neuron.emulated.compile import module_on_host, planned_versions
from orchestrator_neuron.emulated.device import Device
from orchestrator_neuron.emulated.manifest import ApplicationManifest, TensorMeta, read
from orchestrator_neuron.emulated.runtime import (
    LoadedProgram,
    LoadedState,
    LoadedVersion,
    Weights,
    stage_route,
)
from orchestrator_neuron.emulated.tensor import EmulatedTensor, upload
from orchestrator_neuron.options import NeuronSettings

__all__ = ["load_application"]

_CONSTANTS = (
    " Constants are tensors that its code holds or makes from numbers, once for each program: a plan cannot count "
    "them, since they show when a stage is exported. Registered as buffers they are weights, which it counts."
)


def load_application(
    device: Device, application: Application, settings: NeuronSettings, folder: Path
) -> dict[str, LoadedProgram]:
    """Loads an application that :func:`~orchestrator_neuron.emulated.compile.compile_application` wrote.

    Args:
        device: An open device.
        application: The application.
        settings: Those in force for its stages.
        folder: The folder it was compiled into.

    Returns:
        Program name to callable.

    Raises:
        CompileError: The folder is damaged, the weights do not fit, or the memory does not suffice.
    """
    # What was on the host of the weights is free before states and buffers, which are many times as large, are there.
    manifest = read(application.name, folder)
    _check_entries(application, manifest)
    weights = _weights(device, application, settings, manifest)
    return _programs(device, application, manifest, folder, weights)


def _weights(
    device: Device, application: Application, settings: NeuronSettings, manifest: ApplicationManifest
) -> Weights:
    """Puts weights on the device."""
    weights = load_weights(application.name, module_on_host(application, settings).owner, settings)
    # All weights are compared and weighed on the host before one is on the device: a refusal leaves it as it was.
    rank_tensors = [rank_weights(weights, settings, rank) for rank in range(device.ranks)]
    for row in rank_tensors:
        _check_weights(application.name, row, manifest.weights)
    _check_memory(device, application, manifest, rank_tensors[0])
    return [_stage(device, rank, row, application.name) for rank, row in enumerate(rank_tensors)]


def _check_entries(application: Application, manifest: ApplicationManifest) -> None:
    """Makes sure that the folder holds the versions of the plan: files in a store are somebody's word."""
    versions = [replace(version, constant_bytes=0) for version in manifest.versions]
    if versions != planned_versions(application):
        raise CompileError(
            f"The compiled {application.name!r} is not what the plan says: its manifest lists other programs, files "
            f"or shapes. Compile it again.",
            stage=application.name,
        )


def _programs(
    device: Device, application: Application, manifest: ApplicationManifest, folder: Path, weights: Weights
) -> dict[str, LoadedProgram]:
    # All of a program's versions behind one callable, which finds one by the shapes of its inputs; and one memory for
    # each state, whichever program writes it.
    states = [LoadedState(device, application.name, state) for state in application.states]
    versions: dict[str, list[LoadedVersion]] = {program.name: [] for program in application.programs}
    for version in manifest.versions:
        if version.program in versions:
            versions[version.program].append(
                LoadedVersion(device, application.name, version, folder / version.file, weights, states)
            )
    return {
        program.name: LoadedProgram(
            device, application.name, program, versions[program.name], stage_route(device, program), states
        )
        for program in application.programs
    }


def _stage(
    device: Device, rank: int, weights: Mapping[str, torch.Tensor], name: str
) -> dict[str, EmulatedTensor]:
    """Copies weights to a rank; a tied one once."""
    # What was copied is not freed here: a module that cannot be copied is the user's own, as a checkpoint may be.
    copies: dict[int, EmulatedTensor] = {}
    for tensor in weights.values():
        if id(tensor) not in copies:
            copies[id(tensor)] = upload(device, rank, tensor, f"A weight of {name!r}", persistent=True)
    return {key: copies[id(tensor)] for key, tensor in weights.items()}


def _check_weights(
    name: str, weights: Mapping[str, torch.Tensor], compiled_metas: Mapping[str, TensorMeta]
) -> None:
    metas = {key: TensorMeta.of(tensor) for key, tensor in weights.items()}
    differing = [key for key in {**compiled_metas, **metas} if metas.get(key) != compiled_metas.get(key)]
    if differing:
        first = differing[0]
        raise CompileError(
            f"{len(differing)} weights of {name!r} are not as it was compiled, e.g. {first!r}: {metas.get(first)}, "
            f"compiled for {compiled_metas.get(first)}. Compile it again.",
            stage=name,
        )


def _check_memory(
    device: Device,
    application: Application,
    manifest: ApplicationManifest,
    weights: Mapping[str, torch.Tensor],
) -> None:
    """Makes sure that weights, constants and output buffers fit, with memory in use and the reserve of requests.

    A plan cannot count constants: they are known once a stage is exported.

    Raises:
        CompileError: They do not.
    """
    # A tied weight is on the device once; a route is a tensor of int32.
    weight_bytes = sum(
        tensor.nbytes for tensor in {id(tensor): tensor for tensor in weights.values()}.values()
    )
    constants = sum(version.constant_bytes for version in manifest.versions)
    buffers = sum(meta.nbytes for version in manifest.versions for meta in version.outputs)
    states = sum(state.spec.nbytes({}) for state in application.states)
    routes = sum(program.route * torch.int32.itemsize for program in application.programs)
    name, in_use, total = (
        application.name,
        max(device.allocated_bytes),
        weight_bytes + constants + buffers + states + routes,
    )
    if device.budget and in_use + total + device.reserved > device.budget:
        raise CompileError(
            f"{name!r} takes {total:,} bytes of each rank (weights {weight_bytes:,}, constants {constants:,}, output "
            f"buffers of {len(manifest.versions)} programs {buffers:,}, states {states:,}, routing inputs {routes:,}), "
            f"but {in_use:,} of {device.budget:,} are taken and requests take {device.reserved:,}; nothing was loaded "
            f"of it."
            f"{_CONSTANTS if constants else ''} Plan with smaller or fewer buckets, a larger tp_degree, or a larger "
            f"budget (memory=).",
            stage=name,
            bytes=total,
        )
