"""Runs the passes in order."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.errors import PlanError
from orchestrator.graph import Graph
from orchestrator.plan.model import Plan, PlannedGroup, Step
from orchestrator.plan.steps import walk
from orchestrator.planner.bucket import ANY_SIZES, bucket
from orchestrator.planner.context import Draft, Request
from orchestrator.planner.fuse import fold
from orchestrator.planner.hazards.hazards import solve_hazards
from orchestrator.planner.infer.infer import infer
from orchestrator.planner.liveness import free_values
from orchestrator.planner.memory import weigh
from orchestrator.planner.place import place
from orchestrator.planner.residency import decide_residency
from orchestrator.planner.schedule.padding import padding_notes
from orchestrator.planner.schedule.schedule import adapt
from orchestrator.planner.verify.steps import verify
from orchestrator.specs import show_spec

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
    draft = _infer(bucket(place(draft)))
    _check_static(draft)
    draft = _schedule(fold(draft))
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
    """Makes sure that no dim of any size comes to a device with static shapes, by whatever way.

    Raises:
        PlanError: A stage there takes or gives one.
    """
    static = {device for device, backend in draft.groups.items() if backend.capabilities.static_shapes}
    for call in draft.calls.values():
        if call.device not in static:
            continue
        for side, ports in (("reads", call.inputs), ("gives", call.outputs)):
            for port, spec in ports:
                loose = [name for name in getattr(spec, "names", ()) if draft.dims[name].any]
                if loose:
                    raise PlanError(
                        f"Dim {loose[0]!r} has any size, but {call.device!r} compiles static shapes, and "
                        f"'{call.name}.{port}', which the stage {call.stage!r} {side} there, is {show_spec(spec)}. "
                        f"Give it buckets, Dim({loose[0]!r}, buckets=(...)), or place the stage on another device.",
                        dim=loose[0],
                        device=call.device,
                        stage=call.stage,
                        port=port,
                    )


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
