"""Runs the passes in order, and binds finished plans to graphs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from orchestrator.adapter import MOVES
from orchestrator.errors import PlanError
from orchestrator.graph import Graph
from orchestrator.plan.model import HOST, DimPlan, Plan, PlannedEdge, PlannedGroup, Step
from orchestrator.plan.steps import walk
from orchestrator.planner.draft import Draft, Request
from orchestrator.planner.passes.adapt import adapt
from orchestrator.planner.passes.bucket import ANY_SIZES, bucket
from orchestrator.planner.passes.fold import fold
from orchestrator.planner.passes.hazard import solve_hazards
from orchestrator.planner.passes.infer import infer
from orchestrator.planner.passes.liveness import free_values
from orchestrator.planner.passes.memory import weigh
from orchestrator.planner.passes.place import place
from orchestrator.planner.passes.residency import decide_residency
from orchestrator.planner.passes.verify import verify
from orchestrator.planner.programs import equal_constants

__all__ = ["bind_plan", "make_plan"]


def make_plan(graph: Graph, request: Request) -> Plan:
    """Plans a graph.

    Args:
        graph: The frozen graph.
        request: What the user asked for.

    Raises:
        PlanError: It cannot be planned as asked.
    """
    plan = _run_passes(Draft(graph, request))
    try:
        return verify(plan)
    except PlanError as error:
        if "table" not in error.objects or not any(program.route for program in plan.programs):
            raise
    # Second programs take memory; without them values are copied out over the host.
    return verify(_run_passes(Draft(graph, request, twins=1).noted(_SPARED)))


_SPARED = "No program is compiled a second time: its output buffers would not fit the memory budget."


def _run_passes(draft: Draft) -> Plan:
    draft = bucket(place(draft))
    _check_static(draft)
    draft = _schedule(fold(_infer(draft)))
    return _finish(weigh(free_values(draft)))


def _schedule(draft: Draft) -> Draft:
    """Makes the steps; again with more edges over the host where no order of steps saves a value."""
    while True:
        made = solve_hazards(adapt(decide_residency(draft)))
        if made.spilled == draft.spilled:
            return made
        draft = replace(draft, spilled=made.spilled)


def _infer(draft: Draft) -> Draft:
    """Infers; dims of any size nobody gave a size for are tried at several."""
    open_ended = [name for name, dim in draft.dims.items() if dim.any and name not in draft.request.sizes]
    first: PlanError | None = None
    for size in ANY_SIZES if open_ended else ANY_SIZES[:1]:
        dims = {name: replace(draft.dims[name], buckets=(size,)) for name in open_ended}
        try:
            return infer(replace(draft, dims={**draft.dims, **dims}))
        except PlanError as error:
            first = first or error
    assert first is not None
    raise first


def _check_static(draft: Draft) -> None:
    static = [device for device, backend in draft.groups.items() if backend.capabilities.static_shapes]
    entered: list[DimPlan] = [dim for dim in draft.dims.values() if dim.any]
    if static and entered and not all(device == HOST for device in draft.devices.values()):
        fed = _fed_devices(draft)
        for dim in entered:
            for device in static:
                if (dim.name, device) in fed:
                    raise PlanError(
                        f"Dim {dim.name!r} has any size, but {device!r} compiles static shapes; give it buckets.",
                        dim=dim.name,
                        device=device,
                    )


def _fed_devices(draft: Draft) -> set[tuple[str, str]]:
    """Pairs of dim and device where a pipeline input with that dim meets a stage on that device."""
    return {
        (name, draft.device_of(edge.target.name))
        for edge in draft.graph.edges
        if edge.source.kind == "input" and edge.target.kind == "call"
        for name in getattr(draft.graph.inputs[edge.source.name], "names", ())
    }


def _finish(draft: Draft) -> Plan:
    groups = tuple(
        PlannedGroup(
            device,
            draft.backends[device],
            backend.capabilities.ranks,
            backend.capabilities.host_memory,
            draft.compiled(device),
            backend.capabilities.output_buffers,
            tuple(sorted(backend.options.items())),
        )
        for device, backend in draft.groups.items()
    )
    return Plan(
        pipeline=draft.graph.name,
        dims=tuple(draft.dims.values()),
        groups=groups,
        inputs=tuple(draft.graph.inputs.items()),
        outputs=draft.outputs,
        calls=tuple(draft.calls[step.name] for step in _calls(draft)),
        values=draft.values,
        edges=draft.edges,
        steps=draft.steps,
        staging=draft.staging,
        programs=draft.programs,
        weights=tuple(draft.weights.items()),
        buffers=tuple(draft.buffers.items()),
        budget=tuple(draft.budget.items()),
        notes=draft.notes,
        optional=tuple(sorted(draft.graph.optional)),
    )


def _calls(draft: Draft) -> list[Step]:
    return [step for step in walk(draft.steps) if step.op == "call"]


def bind_plan(plan: Plan, graph: Graph, request: Request) -> Plan:
    """Verifies a plan against a graph: what it says of ports, shapes, devices and edges must hold there.

    Args:
        plan: A plan, e.g. read from JSON.
        graph: The graph it is to run.
        request: Its ``resolve`` finds backends; everything else is taken from the plan.

    Raises:
        PlanError: The plan is wrong, or of another pipeline.
    """
    verify(plan)
    _same_names(plan, graph)
    placement = {call.stage: call.device for call in plan.calls if call.device != HOST}
    decided = {step.loop.dim for step in walk(plan.steps) if step.loop is not None}
    sizes = {dim.name: dim.buckets for dim in plan.dims if dim.name not in decided}
    options = {name: value for group in plan.groups for name, value in group.options}
    asked = Request(request.resolve, placement=placement, sizes=sizes, options=options)
    fresh = _run_passes(Draft(graph, asked))
    for what in ("inputs", "optional", "dims", "groups", "weights"):
        if getattr(plan, what) != getattr(fresh, what):
            raise _mismatch(
                plan, graph, f"its {what} are {getattr(plan, what)}, the pipeline's {getattr(fresh, what)}"
            )
    mine = {call.name: call for call in fresh.calls}
    for call in plan.calls:
        if call != mine[call.name]:
            raise _mismatch(plan, graph, f"call {call.name!r} is {call} there and {mine[call.name]} here")
    _check_folds(plan, graph, request)
    _check_constants(plan, graph)
    _check_written(plan, fresh, graph)
    edges = {str(edge): edge for edge in fresh.edges}
    for edge in plan.edges:
        here = edges[str(edge)]
        if here.spec != edge.spec:
            raise _mismatch(plan, graph, f"the edge '{edge}' carries {edge.spec} there and {here.spec} here")
        if _fits(edge) != _fits(here):
            raise _mismatch(
                plan, graph, f"the edge '{edge}' has the adapters {_fits(edge)}, not {_fits(here)}"
            )
        if edge.adapters == here.adapters and edge.cost != here.cost:
            raise _mismatch(plan, graph, f"the edge '{edge}' costs {edge.cost} there and {here.cost} here")
    return plan


def _check_folds(plan: Plan, graph: Graph, request: Request) -> None:
    """What is compiled as its author made it has nothing folded into it, and no second program."""
    backends: dict[str, Any] = {
        group.device: request.resolve(group.device)[1](group.device, dict(group.options))
        for group in plan.groups
        if group.compiled
    }
    stages = graph.stages
    for program in plan.programs:
        folded = [item.adapters for item in program.inputs] + [item.adapters for item in program.outputs]
        stage = stages.get(program.stage)
        if (
            stage is not None
            and (program.route or any(folded))
            and not backends[program.device].foldable(stage)
        ):
            raise _mismatch(plan, graph, f"stage {stage.name!r} is compiled as its author made it")


def _check_written(plan: Plan, fresh: Plan, graph: Graph) -> None:
    """Programs convert to the dtypes that the stages were written for."""
    here = {
        step.name: fresh.program(step.program)
        for step in walk(fresh.steps)
        if step.op == "call" and step.program
    }
    for step in walk(plan.steps):
        if step.op == "call" and step.program:
            one, other = plan.program(step.program).inputs, here[step.name].inputs
            if [(item.port, item.dtype) for item in one] != [(item.port, item.dtype) for item in other]:
                raise _mismatch(plan, graph, f"the program {step.program!r} is written for other dtypes")


def _check_constants(plan: Plan, graph: Graph) -> None:
    """Constants that programs share must be equal in this pipeline too; the plan holds their names alone."""
    for step in walk(plan.steps):
        inputs = plan.program(step.program).inputs if step.program and step.op == "call" else ()
        for item, index in zip(inputs, step.inputs, strict=bool(inputs)):
            own = plan.values[index].origin
            if item.spec is None and not equal_constants(graph, item.constant, own):
                raise _mismatch(
                    plan,
                    graph,
                    f"{step.name!r} takes {own} at {item.port!r}, its program {item.constant}, which differs",
                )


def _fits(edge: PlannedEdge) -> list[str]:
    """What an edge does to its value besides moving it; order and places may differ with the residency."""
    kept = (adapter for adapter in edge.adapters if adapter.kind not in MOVES)
    return sorted(str(replace(adapter, place="")) for adapter in kept)


def _same_names(plan: Plan, graph: Graph) -> None:
    pairs = (
        ("name", {plan.pipeline}, {graph.name}),
        ("inputs", {name for name, _ in plan.inputs}, set(graph.inputs)),
        ("outputs", set(enumerate(name for name, _ in plan.outputs)), set(enumerate(graph.outputs))),
        ("calls", {call.name for call in plan.calls}, set(graph.calls)),
        ("edges", {str(edge) for edge in plan.edges}, {str(edge) for edge in graph.edges}),
    )
    for what, there, here in pairs:
        if there != here:
            odd = sorted(map(str, there ^ here))[:3]
            raise _mismatch(plan, graph, f"{what} differ in {odd}")


def _mismatch(plan: Plan, graph: Graph, what: str) -> PlanError:
    return PlanError(
        f"This plan of {plan.pipeline!r} does not fit the pipeline {graph.name!r}: {what}. Plan the pipeline anew.",
        plan=plan,
    )
