"""Runs the passes in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from orchestrator.errors import PlanError
from orchestrator.graph import Graph
from orchestrator.isolation import save_results
from orchestrator.plan.locks import with_locks
from orchestrator.plan.model import Plan
from orchestrator.plan.records import DimPlan, PlannedGroup
from orchestrator.plan.steps import CallStep, iter_steps
from orchestrator.planner.applications import find_applications
from orchestrator.planner.bucket import ANY_SIZES, bucket
from orchestrator.planner.compilation import choose_regions
from orchestrator.planner.context import PlanContext, PlanOptions
from orchestrator.planner.fuse import fuse
from orchestrator.planner.hazards.hazards import solve_hazards
from orchestrator.planner.infer.infer import infer
from orchestrator.planner.infer.on_host import find_host_operations
from orchestrator.planner.liveness import free_values
from orchestrator.planner.memory import weigh
from orchestrator.planner.place import place
from orchestrator.planner.proofs import note_proof, subject_of
from orchestrator.planner.residency import decide_residency
from orchestrator.planner.schedule.locations import locate_edges
from orchestrator.planner.schedule.padding import padding_notes
from orchestrator.planner.schedule.regions import group_regions
from orchestrator.planner.schedule.schedule import adapt
from orchestrator.planner.states import find_states
from orchestrator.planner.updates import find_clones
from orchestrator.planner.verify.steps import verify
from orchestrator.specs import show_spec

__all__ = ["make_plan", "run_passes"]


def make_plan(graph: Graph, options: PlanOptions) -> Plan:
    """Plans a graph.

    Args:
        graph: The frozen graph.
        options: The arguments of ``Pipeline.plan``.

    Raises:
        PlanError: It cannot be planned as asked.
    """
    context = PlanContext(graph, options)
    plan = _with_regions(run_passes(context), options)
    try:
        verify(plan)
    except PlanError as error:
        if "table" not in error.objects or not any(program.route for program in plan.programs):
            raise
        # Second programs take memory; without them values are copied out over the host.
        plan = run_passes(replace(context, replicas=1).with_notes(_SINGLE_PROGRAM_NOTE))
        plan = verify(_with_regions(plan, options))
    # What was planned and verified need not be proven again where it is bound.
    note_proof(plan, subject_of(graph, plan.groups, options, context.descriptions))
    save_results()
    return plan


def _with_regions(plan: Plan, options: PlanOptions) -> Plan:
    return choose_regions(plan, options.compile, options.tolerance)


_SINGLE_PROGRAM_NOTE = (
    "No program is compiled a second time: its output buffers would not fit the memory budget."
)


def run_passes(context: PlanContext) -> Plan:
    """Plans a graph without verifying the result.

    Raises:
        PlanError: It cannot be planned as asked.
    """
    context = _infer(bucket(place(context)))
    _check_static(context)
    context = _schedule(fuse(group_regions(find_applications(find_host_operations(context)))))
    return _finish(weigh(free_values(context)))


def _schedule(context: PlanContext) -> PlanContext:
    """Makes the steps.

    Again with more edges over the host, or copied, where no order of steps saves a value; and again once it is known
    that a dim never runs in chunks, so that what is computed of it need not be joined.
    """
    while True:
        attempt = find_clones(solve_hazards(adapt(find_states(decide_residency(locate_edges(context))))))
        dims = _with_obstacles(context, attempt)
        if (attempt.spills, attempt.clones, dims) == (context.spills, context.clones, context.dims):
            return attempt
        context = replace(context, spills=attempt.spills, clones=attempt.clones, dims=dims)


def _with_obstacles(context: PlanContext, attempt: PlanContext) -> Mapping[str, DimPlan]:
    """Dims of batches that cannot run in chunks after all, with why; only where a region or a state hangs on that."""
    matters = context.regions or any(stage.aliases for stage in context.graph.stages.values())
    return {
        name: replace(dim, whole=attempt.dims[name].whole) if matters and dim.batch else dim
        for name, dim in context.dims.items()
    }


def _infer(context: PlanContext) -> PlanContext:
    """Infers; dims of any size nobody gave a size for are tried at several."""
    open_ended = [name for name, dim in context.dims.items() if dim.any and name not in context.options.sizes]
    first: PlanError | None = None
    for size in ANY_SIZES if open_ended else ANY_SIZES[:1]:
        dims = {name: replace(context.dims[name], buckets=(size,)) for name in open_ended}
        try:
            return infer(replace(context, dims={**context.dims, **dims}))
        except PlanError as error:
            first = first or error
    assert first is not None
    raise first


def _check_static(context: PlanContext) -> None:
    """Makes sure that no dim of any size comes to a device with static shapes, by whatever way.

    Raises:
        PlanError: A stage there takes or gives one.
    """
    static = {device for device, backend in context.groups.items() if backend.capabilities.static_shapes}
    # Only after infer: such a dim may come through stages that never name it.
    for call in context.calls.values():
        if call.device not in static:
            continue
        for side, ports in (("reads", call.inputs), ("gives", call.outputs)):
            for port, spec in ports:
                loose = [name for name in getattr(spec, "names", ()) if context.dims[name].any]
                if loose:
                    raise PlanError(
                        f"Dim {loose[0]!r} has no buckets (any=True), but {call.device!r} compiles static shapes, and "
                        f"'{call.name}.{port}', which the stage {call.stage!r} {side} there, is {show_spec(spec)}. "
                        f"Give it buckets, Dim({loose[0]!r}, buckets=(...)), or place the stage on another device.",
                        dim=loose[0],
                        device=call.device,
                        stage=call.stage,
                        port=port,
                    )


def _finish(context: PlanContext) -> Plan:
    groups = tuple(
        PlannedGroup(
            device,
            context.backends[device],
            backend.capabilities.ranks,
            backend.capabilities.host_memory,
            context.is_compiled(device),
            backend.capabilities.output_buffers,
            tuple(sorted(backend.options.items())),
        )
        for device, backend in context.groups.items()
    )
    # Calls are in the order of the steps, which hazards may have changed; everything else as the passes left it.
    plan: Plan = Plan(
        pipeline=context.graph.name,
        dims=tuple(context.dims.values()),
        groups=groups,
        inputs=tuple(context.graph.inputs.items()),
        outputs=context.outputs,
        calls=tuple(context.calls[step.name] for step in iter_steps(context.steps, CallStep)),
        values=context.values,
        edges=context.edges,
        steps=context.steps,
        staging=context.staging,
        programs=context.programs,
        applications=context.applications,
        states=context.states,
        weights=tuple(context.weights.items()),
        buffers=tuple(context.buffers.items()),
        budget=tuple(context.budget.items()),
        notes=tuple(dict.fromkeys((*context.notes, *padding_notes(context)))),
        optional=tuple(sorted(context.graph.optional)),
    )
    return with_locks(plan)
