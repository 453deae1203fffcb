"""Runs the passes in order."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.errors import PlanError
from orchestrator.graph import Graph
from orchestrator.plan.model import HOST, DimPlan, Plan, PlannedGroup, Step
from orchestrator.plan.steps import walk
from orchestrator.planner.draft import Draft, Request
from orchestrator.planner.padding import padding_notes
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

__all__ = ["make_plan", "run_passes"]


def make_plan(graph: Graph, request: Request) -> Plan:
    """Plans a graph.

    Args:
        graph: The frozen graph.
        request: What the user asked for.

    Raises:
        PlanError: It cannot be planned as asked.
    """
    plan = run_passes(Draft(graph, request))
    try:
        return verify(plan)
    except PlanError as error:
        if "table" not in error.objects or not any(program.route for program in plan.programs):
            raise
    # Second programs take memory; without them values are copied out over the host.
    return verify(run_passes(Draft(graph, request, twins=1).noted(_SPARED)))


_SPARED = "No program is compiled a second time: its output buffers would not fit the memory budget."


def run_passes(draft: Draft) -> Plan:
    """Plans a graph without verifying the result.

    Raises:
        PlanError: It cannot be planned as asked.
    """
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
        notes=tuple(dict.fromkeys((*draft.notes, *padding_notes(draft)))),
        optional=tuple(sorted(draft.graph.optional)),
    )


def _calls(draft: Draft) -> list[Step]:
    return [step for step in walk(draft.steps) if step.op == "call"]
