"""What a plan needs in hand to run: opened backends, loaded stages, staged constants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from orchestrator.adapter import MOVES, Adapter, apply, check_cast
from orchestrator.backend import Backend, CompilingBackend, EagerBackend
from orchestrator.errors import CompileError, OrchestratorError
from orchestrator.graph import Graph
from orchestrator.plan.count import constant_bytes
from orchestrator.plan.model import Plan
from orchestrator.plan.records import PlannedCall, PlannedProgram, PlannedValue
from orchestrator.plan.steps import HOST, AdaptStep, iter_steps
from orchestrator.program import Application, Program, ProgramState
from orchestrator.runner.compiled.region import LoadedRegion
from orchestrator.runner.exclusive import BufferLocks
from orchestrator.runner.load.compile import Job, build_applications
from orchestrator.specs import TensorSpec, combinations
from orchestrator.stage import Stage
from orchestrator.store import ArtifactStore
from orchestrator.surroundings import same_random_state

__all__ = ["CompiledApplication", "Executable", "applications_of", "compile_stages", "load_executable"]


@dataclass(frozen=True)
class Executable:
    """A loaded plan.

    Attributes:
        plan: The plan.
        stages: Stages by name.
        backends: Opened backends by device.
        functions: The callable of each stage that runs by itself, and of each program, by name.
        constants: Staged constants by value index.
        locks: What requests wait for one another with, where they do; a session has its own.
        regions: Compiled regions, each by its first call.
    """

    plan: Plan
    stages: Mapping[str, Stage]
    backends: Mapping[str, Backend]
    functions: Mapping[str, Callable[..., Any]]
    constants: Mapping[int, Any]
    locks: BufferLocks | None = None
    regions: Mapping[str, LoadedRegion] = field(default_factory=dict)

    def adapt(self, step: AdaptStep) -> Callable[..., Any]:
        """Returns the function of an adapter step: of one value for a move, else of a value and sizes."""
        adapter = step.adapter
        source, target = (self.plan.values[index] for index in (step.inputs[0], step.outputs[0]))
        if adapter.kind == "upload":
            return self.backends[adapter.device].upload
        if adapter.kind == "download":
            return self.backend_of(source.memory).download
        if adapter.kind == "gather":
            return self._gather(adapter, source)
        if adapter.kind == "copy":
            backend = self.backends[adapter.device]
            return lambda handle: backend.copy(handle, backend.device)
        return self._op(adapter, target.memory)

    def _gather(self, adapter: Adapter, source: PlannedValue) -> Callable[..., Any]:
        backend = self.backend_of(source.memory)
        assert isinstance(source.spec, TensorSpec)
        assert isinstance(backend, CompilingBackend)
        pairs = zip(source.spec.dims, adapter.dims, strict=True)
        axis = next((at for at, (before, after) in enumerate(pairs) if before != after), 0)
        return lambda handle: backend.gather(handle, axis)

    def _op(self, adapter: Adapter, memory: str) -> Callable[..., Any]:
        if memory != HOST:
            return self.backend_of(memory).adapt(adapter)
        return _checked_cast(adapter) if adapter.dtype else lambda value, sizes: apply(adapter, value, sizes)

    def backend_of(self, memory: str) -> Backend:
        """Returns the backend whose values live in a memory other than the host's."""
        return next(self.backends[group.device] for group in self.plan.groups if group.memory == memory)

    def eager_backend_of(self, memory: str) -> EagerBackend:
        """Returns the backend of a memory that values are cut and stacked in, which takes eager compute."""
        backend = self.backend_of(memory)
        assert isinstance(backend, EagerBackend)
        return backend

    def free(self, value: PlannedValue, handle: Any) -> None:
        """Frees a handle of a value, where that is not done by reference count."""
        if value.memory != HOST:
            backend = self.backend_of(value.memory)
            if not backend.capabilities.refcounted:
                backend.free(handle)


def _checked_cast(adapter: Adapter) -> Callable[..., Any]:
    """A cast on the host that refuses numbers which an integer dtype does not hold, in place of wrapping them."""
    assert adapter.dtype is not None
    dtype = adapter.dtype

    def cast(value: torch.Tensor, sizes: Mapping[str, int]) -> torch.Tensor:
        check_cast(value, dtype)
        return apply(adapter, value, sizes)

    return cast


@dataclass(frozen=True)
class CompiledApplication:
    """An application of a device without eager compute.

    Attributes:
        device: The device.
        application: The application.
        folder: Where its artifact is.
    """

    device: str
    application: Application
    folder: Path


def compile_stages(
    plan: Plan, graph: Graph, backends: Mapping[str, Backend], store: ArtifactStore
) -> tuple[CompiledApplication, ...]:
    """Compiles, in parallel, the stages of devices that compile, each for every bucket it runs in.

    The models of wrappers are built before, once: keys, programs and weights are of the same model then.

    Raises:
        CompileError: A stage cannot be built or compiled.
    """
    applications = applications_of(plan, graph)
    # In the order of the plan, as by hand: models that draw their weights get the same ones.
    with same_random_state():
        for device, application in applications:
            compiler = backends[device]
            assert isinstance(compiler, CompilingBackend)
            # Weights that go to the device by themselves are never whole on the host.
            for stage in filter(compiler.needs_model, application.stages):
                _build_model(stage)
    jobs = []
    for device, application in applications:
        compiler = backends[device]
        assert isinstance(compiler, CompilingBackend)
        jobs.append(Job(compiler, application, compiler.key(application)))
    folders = build_applications(jobs, store)
    return tuple(CompiledApplication(job.backend.device, job.application, folders[job.key]) for job in jobs)


def _build_model(stage: Stage) -> None:
    """Builds the model of a wrapper that makes one, unless it is there.

    Raises:
        CompileError: It cannot be built.
    """
    wrapper = stage.wrapper
    if wrapper is None or not wrapper.makes_model:
        return
    try:
        _ = wrapper.model
    except OrchestratorError:
        raise
    except Exception as error:
        raise CompileError(
            f"Stage {stage.name!r} cannot be built: {type(error).__name__}: {error}", stage=stage.name
        ) from error


def _uses(plan: Plan) -> dict[str, list[PlannedCall]]:
    """Stages that run on devices, each with its calls."""
    uses: dict[str, list[PlannedCall]] = {}
    for call in plan.calls:
        if call.device != HOST:
            uses.setdefault(call.stage, []).append(call)
    return uses


def _static_sizes(plan: Plan, backend: Backend, calls: list[PlannedCall]) -> list[dict[str, int]]:
    """The sizes an eager stage runs at: every combination of buckets on static shapes, else none is known."""
    if not backend.capabilities.static_shapes:
        return []
    specs = [spec for call in calls for _, spec in call.inputs if isinstance(spec, TensorSpec)]
    names = dict.fromkeys(name for spec in specs for name in spec.names)
    buckets = {dim.name: dim.buckets for dim in plan.dims if dim.name in names}
    return list(combinations(buckets, buckets))


def applications_of(plan: Plan, graph: Graph) -> list[tuple[str, Application]]:
    """Returns the device and application of all stages that are compiled, and of each weightless program."""
    buckets = {dim.name: dim.buckets for dim in plan.dims}
    stages, uses = graph.stages, _uses(plan)
    by_application: dict[tuple[str, str], list[Program]] = {}
    for record in plan.programs:
        program = _plain_program(record, graph, buckets)
        if record.stage:
            program = _of_stage(program, stages[record.stage], uses[record.stage][0])
        by_application.setdefault((record.device, plan.application(record)), []).append(program)
    applications = []
    for (device, name), programs in by_application.items():
        names = {program.stage for program in programs}
        entry_points = tuple(stage for stage in stages.values() if stage.name in names)
        names = {item.state for program in programs for item in program.outputs}
        states = tuple(ProgramState(state.name, state.spec) for state in plan.states if state.name in names)
        applications.append((device, Application(name, entry_points, tuple(programs), states)))
    return applications


def _plain_program(record: PlannedProgram, graph: Graph, buckets: Mapping[str, tuple[int, ...]]) -> Program:
    """What a program takes and gives, with the values of its constants; its one port is that of a weightless one."""
    inputs = tuple(
        replace(item, constant=graph.constants[item.constant]) if item.spec is None else item
        for item in record.inputs
    )
    return Program(
        record.name,
        inputs,
        record.outputs,
        tuple(record.combinations(buckets)),
        ports=("value",),
        route=record.route,
        to_host=record.to_host,
    )


def _of_stage(program: Program, stage: Stage, call: PlannedCall) -> Program:
    """Adds how a stage is called, as one of its calls tells."""
    ports = tuple(port for port, _ in call.outputs)
    keywords = _keywords(stage, tuple(item.port for item in program.inputs))
    updates = tuple(port for _, port in stage.aliases)
    return replace(
        program,
        returns=call.returns,
        ports=ports,
        keywords=keywords,
        stage=stage.name,
        updates=updates,
    )


def _keywords(stage: Stage, ports: tuple[str, ...]) -> tuple[str, ...]:
    """Ports that are passed by name: those that take nothing else, and all after one that is left out."""
    keywords, gap = [], False
    for port in stage.inputs:
        gap = gap or port.name not in ports
        if port.name in ports and (gap or port.keyword):
            keywords.append(port.name)
    return tuple(keywords)


def load_executable(
    plan: Plan, graph: Graph, backends: Mapping[str, Backend], applications: Iterable[CompiledApplication]
) -> Executable:
    """Opens the devices, loads every stage and stages the constants.

    Raises:
        CompileError: A device is not there, or a stage cannot be loaded; what was opened is closed again.
    """
    # A backend counts as open before it is: one whose ``open`` fails may hold something already.
    open_backends: list[Backend] = []
    try:
        for device, backend in backends.items():
            # What requests and constants take at their peak: loading must leave it free.
            reserved = plan.summary["peak_bytes"].get(device, 0) + constant_bytes(plan, device)
            open_backends.append(backend)
            backend.open(budget=dict(plan.budget).get(device, 0), reserved=reserved)
        functions = _functions(plan, graph, backends, applications)
        # Constants go through the adapters of an executable that has none yet.
        executable = Executable(plan, graph.stages, backends, functions, {})
        with torch.no_grad():
            return replace(executable, constants=_stage_constants(executable, graph))
    except BaseException:
        for backend in open_backends:
            backend.close()
        raise


def _functions(
    plan: Plan, graph: Graph, backends: Mapping[str, Backend], applications: Iterable[CompiledApplication]
) -> dict[str, Callable[..., Any]]:
    """The callable of each stage by its name, and of each program by its."""
    stages = graph.stages
    functions: dict[str, Callable[..., Any]] = {}
    for artifact in applications:
        compiler = backends[artifact.device]
        assert isinstance(compiler, CompilingBackend)
        functions.update(compiler.load_application(artifact.application, artifact.folder))
    # Calls of devices that compile run programs, which are there by now; a stage that is called twice is loaded once.
    uses = _uses(plan)
    with same_random_state():
        for call in plan.calls:
            if call.device == HOST:
                _build_model(stages[call.stage])
                functions[call.stage] = stages[call.stage].target
                continue
            backend = backends[call.device]
            if isinstance(backend, EagerBackend) and call.stage not in functions:
                sizes = _static_sizes(plan, backend, uses[call.stage])
                functions[call.stage] = backend.load(stages[call.stage], sizes)
                names = {
                    name for use in uses[call.stage] for item in use.host_operations for name in item.names
                }
                if names:
                    functions[call.stage] = backend.with_host_operations(functions[call.stage], names)
    return functions


def _stage_constants(executable: Executable, graph: Graph) -> dict[int, Any]:
    handles = {
        index: graph.constants[value.origin]
        for index, value in enumerate(executable.plan.values)
        if value.constant and value.origin in graph.constants
    }
    sizes = {dim.name: dim.buckets[-1] for dim in executable.plan.dims}
    for step in iter_steps(executable.plan.staging, AdaptStep):
        function = executable.adapt(step)
        source = handles[step.inputs[0]]
        moves = step.adapter.kind in MOVES
        handles[step.outputs[0]] = function(source) if moves else function(source, sizes)
    return handles
