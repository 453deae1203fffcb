"""Pipelines for devices that compile: the emulated one, and one that leaves some stages as they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import orchestrator.backends
import orchestrator.testing.plugin
import orchestrator_neuron
from orchestrator import Pipeline, Plan, hookimpl
from orchestrator.plan import CallStep, PlannedEdge, RegionStep, Step
from orchestrator.plugin import PluginManager
from orchestrator.registry import BackendRegistry
from orchestrator.stage import Stage
from orchestrator_neuron.emulated.backend import EmulatedBackend

__all__ = ["DEVICE", "STIFF", "Plus", "Stiff", "edge_of", "on", "programs_of", "ranked", "runs", "way"]

DEVICE = "neuron-emulated"
STIFF = "neuron-stiff"


class Stiff(EmulatedBackend):
    """An emulated device on which stages called ``own...`` are compiled as their author made them."""

    family = STIFF

    def foldable(self, stage: Stage) -> bool:
        return not stage.name.startswith("own")


class _Plugin:
    @hookimpl
    def orchestrator_register_backends(self, registry: BackendRegistry) -> None:
        registry.add(STIFF, Stiff, summary="an emulated device with stages that are left as they are")


_PLUGINS = PluginManager(load_entry_points=False)
for _plugin in (orchestrator.backends, orchestrator.testing.plugin, orchestrator_neuron, _Plugin()):
    _PLUGINS.register(_plugin)


class Plus(nn.Module):
    """Its input and one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def ranked(name: str = "p") -> Pipeline:
    """A pipeline that knows the Neuron devices of the checkout, and the stiff one."""
    return Pipeline(name, plugins=_PLUGINS)


def on(pipeline: Pipeline, device: str = DEVICE, **options: Any) -> Plan:
    """Plans with options; ``sizes``, ``residency``, ``memory`` and ``placement`` are no options."""
    own = {
        name: options.pop(name) for name in ("sizes", "residency", "memory", "placement") if name in options
    }
    return pipeline.plan(device, options=options, **own)


def edge_of(plan: Plan, name: str) -> PlannedEdge:
    """An edge by its name."""
    return next(edge for edge in plan.edges if str(edge) == name)


def programs_of(plan: Plan) -> list[str]:
    """Names of the programs, in order."""
    return [program.name for program in plan.programs]


def runs(plan: Plan) -> list[tuple[str, str]]:
    """What runs, in order: call and program; adapters that are programs go by their origin."""
    found: list[tuple[str, str]] = []

    def look(steps: tuple[Step, ...]) -> None:
        for step in steps:
            if isinstance(step, RegionStep):
                look(step.body)
            elif isinstance(step, CallStep) or step.program:
                found.append((step.label, step.program))

    look(plan.steps)
    return found


def way(plan: Plan, edge: str) -> list[str]:
    """The adapters of an edge, in words."""
    return [str(adapter) for adapter in edge_of(plan, edge).adapters]
