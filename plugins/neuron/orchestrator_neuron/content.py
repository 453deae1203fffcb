"""The content key of an application: a digest of all that its compiled programs depend on, weights left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch

from orchestrator.fingerprint import digest, fingerprint
from orchestrator.program import Application, Program, ProgramInput, ProgramOutput
from orchestrator.stage import Stage
from orchestrator.store import content_key
from orchestrator_neuron.options import OPTION_TYPES, NeuronSettings

__all__ = ["application_key"]

#: NeuronSettings that say where weights come from; a program does not depend on them.
WEIGHTS = ("checkpoint",)


def application_key(application: Application, settings: NeuronSettings, versions: Iterable[object]) -> str:
    """Returns the content key of an application.

    Args:
        application: The application.
        settings: What is in force for its stages.
        versions: What else its form depends on: compiler, packages, formats.
    """
    stages = map(_without_options, application.stages)
    own = fingerprint(*stages) if application.stages else None
    in_force = {
        name: repr(getattr(settings, name)) for name in settings.__dataclass_fields__ if name not in WEIGHTS
    }
    programs = [_describe(program) for program in application.programs]
    # Operations that are told no dtype were traced with this one.
    default = str(torch.get_default_dtype())
    return content_key([list(map(str, versions)), own, programs, in_force, default])


def _without_options(stage: Stage) -> Stage:
    """The stage without options of this device family: those that matter are in force, or shaped its programs."""
    config = {name: value for name, value in stage.config.items() if name not in OPTION_TYPES}
    return dataclasses.replace(stage, config=config)


def _describe(program: Program) -> list[Any]:
    """Returns a program as plain data, with each derived size as it is at the compiled sizes."""
    constants = [digest(item.constant) for item in program.inputs if item.spec is None]
    inputs = tuple(dataclasses.replace(item, constant=None) for item in program.inputs)
    parts: list[ProgramInput | ProgramOutput] = [*program.inputs, *program.outputs]
    adapters = [adapter for part in parts for adapter in part.adapters]
    shapes = [
        [part.spec.shape(sizes) for part in parts if part.spec is not None]
        + [adapter.shape((0,) * len(adapter.dims), sizes) for adapter in adapters]
        for sizes in program.sizes
    ]
    return [repr(dataclasses.replace(program, inputs=inputs)), constants, shapes]
