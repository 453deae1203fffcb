"""What a plan needs in hand to run: opened backends, loaded stages, staged constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from orchestrator.adapter import Adapter, apply
from orchestrator.backend import Artifact, Backend
from orchestrator.graph import Graph
from orchestrator.plan.model import HOST, Plan, PlannedCall, Step
from orchestrator.specs import TensorSpec, combinations
from orchestrator.stage import Stage
from orchestrator.store import ArtifactStore

__all__ = ["Programs", "compile_stages", "load_programs"]


@dataclass(frozen=True)
class Programs:
    """A loaded plan.

    Attributes:
        plan: The plan.
        stages: Stages by name.
        backends: Opened backends by device.
        functions: For each stage the callable that runs it.
        constants: Staged constants by value index.
    """

    plan: Plan
    stages: Mapping[str, Stage]
    backends: Mapping[str, Backend]
    functions: Mapping[str, Callable[..., Any]]
    constants: Mapping[int, Any]

    def adapt(self, step: Step) -> Callable[..., Any]:
        """Returns the function of an adapter step: of one value for a move, else of a value and sizes."""
        adapter = step.adapter
        assert adapter is not None
        source, target = (self.plan.values[index] for index in (step.inputs[0], step.outputs[0]))
        if adapter.kind == "upload":
            return self.backends[adapter.device].upload
        if adapter.kind == "download":
            return self.backend_of(source.memory).download
        if adapter.kind == "copy":
            backend = self.backends[adapter.device]
            return lambda handle: backend.copy(handle, backend.device)
        return self._op(adapter, target.memory)

    def _op(self, adapter: Adapter, memory: str) -> Callable[..., Any]:
        if memory == HOST:
            return lambda value, sizes: apply(adapter, value, sizes)
        return self.backend_of(memory).adapt(adapter)

    def backend_of(self, memory: str) -> Backend:
        """Returns the backend whose values live in a memory other than the host's."""
        return next(self.backends[group.device] for group in self.plan.groups if group.memory == memory)


def _compile_sizes(plan: Plan, backend: Backend, calls: list[PlannedCall]) -> list[dict[str, int]]:
    """The buckets a stage is compiled for: every combination on static shapes, else the largest."""
    specs = [spec for call in calls for _, spec in call.inputs if isinstance(spec, TensorSpec)]
    names = dict.fromkeys(name for spec in specs for name in spec.names)
    buckets = {dim.name: dim.buckets for dim in plan.dims if dim.name in names}
    every = list(combinations(buckets, buckets))
    return every if backend.capabilities.static_shapes else every[-1:]


def compile_stages(
    plan: Plan, stages: Mapping[str, Stage], backends: Mapping[str, Backend], store: ArtifactStore
) -> dict[str, tuple[Artifact, ...]]:
    """Compiles every stage of a plan for every bucket it runs in.

    Returns:
        Stage to artifacts.
    """
    artifacts: dict[str, tuple[Artifact, ...]] = {}
    calls: dict[str, list[PlannedCall]] = {}
    for call in plan.calls:
        if call.device != HOST:
            calls.setdefault(call.stage, []).append(call)
    for name, uses in calls.items():
        backend = backends[uses[0].device]
        sizes = _compile_sizes(plan, backend, uses)
        artifacts[name] = tuple(backend.compile(stages[name], at, (), store) for at in sizes)
    return artifacts


def load_programs(
    plan: Plan, graph: Graph, backends: Mapping[str, Backend], artifacts: Mapping[str, tuple[Artifact, ...]]
) -> Programs:
    """Opens the devices, loads every stage and stages the constants.

    Raises:
        CompileError: A device is not there, or a stage cannot be loaded; what was opened is closed again.
    """
    stages = graph.stages
    opened: list[Backend] = []
    try:
        for backend in backends.values():
            backend.open()
            opened.append(backend)
        functions = {call.stage: stages[call.stage].target for call in plan.calls if call.device == HOST}
        for call in plan.calls:
            if call.stage not in functions:
                functions[call.stage] = backends[call.device].load(artifacts[call.stage], stages[call.stage])
        programs = Programs(plan, stages, backends, functions, {})
        with torch.no_grad():
            return Programs(plan, stages, backends, functions, _stage_constants(programs, graph))
    except BaseException:
        for backend in opened:
            backend.close()
        raise


def _stage_constants(programs: Programs, graph: Graph) -> dict[int, Any]:
    staged = {
        index: graph.constants[value.origin]
        for index, value in enumerate(programs.plan.values)
        if value.constant and value.origin in graph.constants
    }
    for step in programs.plan.staging:
        function = programs.adapt(step)
        source = staged[step.inputs[0]]
        moves = step.adapter is not None and step.adapter.kind in ("upload", "download", "copy")
        staged[step.outputs[0]] = function(source) if moves else function(source, {})
    return staged
