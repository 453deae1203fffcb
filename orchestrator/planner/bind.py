"""Binding: a finished plan, e.g. one read from a file, is proven again and compared with the graph that it is to run.

What a plan says is somebody's word. So nothing in it may switch off a proof: options that code alone may give are
refused, memory is compared with that of the devices, and loops must run as the graph says. To compare a plan is to plan
again; only a plan that this process has proven before, of the same stages, is spared that (see
:mod:`orchestrator.planner.proofs`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from orchestrator.adapter import MOVES
from orchestrator.errors import PlanError, PlanOptionError
from orchestrator.graph import Graph
from orchestrator.plan.model import Plan
from orchestrator.plan.records import PlannedEdge
from orchestrator.plan.steps import HOST, BranchStep, CallStep, LoopLikeStep, LoopStep, MapStep, iter_steps
from orchestrator.planner.applications import find_applications
from orchestrator.planner.context import PlanContext, PlanOptions
from orchestrator.planner.hazards.programs import equal_constants
from orchestrator.planner.memory import check_budget, weigh
from orchestrator.planner.place import place
from orchestrator.planner.planner import run_passes
from orchestrator.planner.proofs import is_proven, note_proof, subject_of
from orchestrator.planner.verify.steps import verify
from orchestrator.program import ProgramInput

__all__ = ["bind_plan"]


def bind_plan(plan: Plan, graph: Graph, options: PlanOptions) -> Plan:
    """Verifies a plan against a graph: what it says of ports, shapes, devices and edges must hold there.

    Args:
        plan: A plan, e.g. read from JSON.
        graph: The graph it is to run.
        options: Its ``resolve`` finds backends, its ``backend_options`` are those that the plan may have although code
            alone gives them, and its ``memory`` is what devices have; everything else is taken from the plan.

    Raises:
        PlanError: The plan is wrong, or of another pipeline.
    """
    # What the text alone may not ask for is refused before anything is built of it; then the plan is proven sound by
    # itself, and of this graph by its names. Only then are the two planned alike and compared.
    _check_options(plan, options)
    verify(plan)
    _same_names(plan, graph)
    placement = {call.stage: call.device for call in plan.calls if call.device != HOST}
    loop_dims = {
        *(step.steps_dim for step in iter_steps(plan.steps, LoopStep)),
        *(step.items_dim for step in iter_steps(plan.steps, MapStep)),
    }
    sizes = {dim.name: dim.buckets for dim in plan.dims if dim.name not in loop_dims}
    plan_options = PlanOptions(
        options.resolve,
        placement=placement,
        sizes=sizes,
        memory=options.memory,
        backend_options={name: value for group in plan.groups for name, value in group.options},
    )
    context = PlanContext(graph, plan_options)

    def subject() -> str | None:
        return subject_of(graph, plan.groups, options, context.descriptions)

    # What trials say of stages like these is known where this very plan came of it. Weights that stages share, which
    # constants are equal and how much memory there is are no part of that, so they are looked at each time.
    if is_proven(plan, subject):
        _check_weights(plan, context)
        _check_constants(plan, graph)
    else:
        _compare(plan, context)
        note_proof(plan, subject())
    return plan


def _compare(plan: Plan, context: PlanContext) -> None:
    """Plans the graph as a plan says, and compares the two.

    Raises:
        PlanError: They differ in more than the order of steps.
    """
    graph, options = context.graph, context.options
    with _as_plan_error():
        fresh = run_passes(context)
    # What the graph alone decides must be equal; from the calls on, both plans have the same names to look up.
    for what in ("inputs", "optional", "dims", "groups", "weights", "applications", "states"):
        if getattr(plan, what) != getattr(fresh, what):
            raise _mismatch(
                plan, graph, f"its {what} are {getattr(plan, what)}, the pipeline's {getattr(fresh, what)}"
            )
    mine = {call.name: call for call in fresh.calls}
    for call in plan.calls:
        if call != mine[call.name]:
            raise _mismatch(plan, graph, f"call {call.name!r} is {call} there and {mine[call.name]} here")
    _check_loops(plan, fresh, graph)
    _check_memory(plan, dict(fresh.budget))
    _check_fusions(plan, graph, options)
    _check_constants(plan, graph)
    _check_port_dtypes(plan, fresh, graph)
    # Edges may differ in where their adapters stand, which a plan may choose, but not in what these do.
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


@contextlib.contextmanager
def _as_plan_error() -> Iterator[None]:
    """The passes take for an argument of plan() what the plan's own text says: a wrong one is an error of the plan."""
    try:
        yield
    except PlanOptionError as error:
        raise PlanError(error.message, **error.objects) from error


def _check_weights(plan: Plan, context: PlanContext) -> None:
    """Weights of the graph take the memory that a plan says, shared by the stages that it says, and it is there.

    Raises:
        PlanError: They take more or less, or too much, or other stages share them.
    """
    dims = {dim.name: dim for dim in plan.dims}
    with _as_plan_error():
        memory_use = weigh(find_applications(replace(place(context), dims=dims, programs=plan.programs)))
    for what, here in (
        ("weights", tuple(memory_use.weights.items())),
        ("applications", memory_use.applications),
    ):
        if getattr(plan, what) != here:
            there = getattr(plan, what)
            raise _mismatch(plan, context.graph, f"its {what} are {there}, the pipeline's {here}")
    _check_memory(plan, memory_use.budget)


def _check_options(plan: Plan, options: PlanOptions) -> None:
    """Options that switch off a proof, or reach beyond the device, are code's to give; a plan's text is not enough."""
    # Each option of the caller must be one that the plan states: binding cannot change how the plan was made.
    there = {name: value for group in plan.groups for name, value in group.options}
    for name, value in options.backend_options.items():
        if name not in there or there[name] != value:
            raise PlanError(
                f"bind is given the option {name}={value!r}, but the plan of {plan.pipeline!r} has "
                f"{f'{there[name]!r}' if name in there else 'none'}: a plan's options are made when it is planned.",
                plan=plan,
                option=name,
            )
    # The other way round, a plan may state any option but those of code_options, unless the caller gives the same
    # value.
    for group in plan.groups:
        kind = options.resolve(group.device)[1]
        for name, value in group.options:
            if (
                name in kind.code_options
                and options.backend_options.get(name, kind.code_options[name]) != value
            ):
                raise PlanError(
                    f"The plan of {plan.pipeline!r} has the option {name}={value!r} for {group.device!r}, which a plan "
                    f"alone cannot ask for: only code may give it. If you mean it, say so where you bind: "
                    f"pipeline.bind(plan, options={{{name!r}: {value!r}}}); else plan the pipeline anew.",
                    plan=plan,
                    option=name,
                )


def _check_loops(plan: Plan, fresh: Plan, graph: Graph) -> None:
    """Loops, maps and branches count and end as the graph says; the verifier knows only that they are sound."""
    here = {loop.name: _outline(fresh, loop) for loop in iter_steps(fresh.steps, LoopLikeStep)}
    loops = list(iter_steps(plan.steps, LoopLikeStep))
    for loop in loops:
        mine = _outline(plan, loop)
        if here.get(loop.name) != mine:
            raise _mismatch(plan, graph, f"loop {loop.name!r} is {mine} there and {here.get(loop.name)} here")
    missing = here.keys() - {loop.name for loop in loops}
    if missing:
        raise _mismatch(plan, graph, f"it lacks the loop {min(missing)!r}")


def _outline(plan: Plan, loop: LoopLikeStep) -> dict[str, Any]:
    """The effect of a loop, by the origins of its values: their numbers differ from plan to plan."""

    def origin(index: int | None) -> str | None:
        return None if index is None else plan.values[index].origin

    # Origins name the port that a value comes from, so equal outlines are equal loops whatever their values' numbers.
    terms: dict[str, Any] = {
        "kind": loop.noun,
        "carries": [
            (origin(carry.initial), origin(carry.argument), origin(carry.yielded)) for carry in loop.carries
        ],
        "slices": [(origin(entry.whole), origin(entry.part)) for entry in loop.slices],
        "collects": [origin(index) for index in loop.collects],
    }
    match loop:
        case MapStep():
            terms |= {"dim": loop.items_dim}
        case BranchStep():
            terms |= {"condition": origin(loop.condition)}
        case LoopStep():
            terms |= {
                "max_steps": loop.max_steps,
                "check_every": loop.check_every,
                "dim": loop.steps_dim,
                "until": origin(loop.until),
                "condition": origin(loop.condition),
                "progress_outputs": loop.progress_outputs,
                "progress_starts": loop.progress_starts,
            }
    return terms


def _check_memory(plan: Plan, budget: Mapping[str, int]) -> None:
    """The plan fits the memory that its devices have, whatever budget it states.

    Raises:
        PlanError: It does not.
    """
    plan_budget = dict(plan.budget)
    device_budget = {device: min(size, plan_budget.get(device, size)) for device, size in budget.items()}
    check_budget(replace(plan, budget=tuple({**plan_budget, **device_budget}.items())))


def _check_fusions(plan: Plan, graph: Graph, options: PlanOptions) -> None:
    """Stages that must be compiled as their author made them have nothing fused into them, and no second program."""
    backends: dict[str, Any] = {
        group.device: options.resolve(group.device)[1](group.device, dict(group.options))
        for group in plan.groups
        if group.runs_programs
    }
    # Two things show that a stage was not left as it is: adapters in its program, and a replica of it.
    stages = graph.stages
    for program in plan.programs:
        adapters = [item.adapters for item in program.inputs] + [item.adapters for item in program.outputs]
        stage = stages.get(program.stage)
        if (
            stage is not None
            and (program.route or any(adapters))
            and not backends[program.device].foldable(stage)
        ):
            raise _mismatch(plan, graph, f"stage {stage.name!r} is compiled as its author made it")


def _check_port_dtypes(plan: Plan, fresh: Plan, graph: Graph) -> None:
    """Programs convert to the dtypes that the stages were written for."""
    dtypes = {
        call.name: [(item.port, item.dtype) for item in inputs] for call, inputs in _program_inputs(fresh)
    }
    for call, inputs in _program_inputs(plan):
        if [(item.port, item.dtype) for item in inputs] != dtypes[call.name]:
            raise _mismatch(plan, graph, f"the program {call.program!r} is written for other dtypes")


def _check_constants(plan: Plan, graph: Graph) -> None:
    """Constants that programs share must be equal in this pipeline too; the plan holds their names alone."""
    for call, inputs in _program_inputs(plan):
        for item, index in zip(inputs, call.inputs, strict=True):
            own = plan.values[index].origin
            if item.spec is None and not equal_constants(graph, item.constant, own):
                raise _mismatch(
                    plan,
                    graph,
                    f"{call.name!r} takes {own} at {item.port!r}, its program {item.constant}, which differs",
                )


def _program_inputs(plan: Plan) -> Iterator[tuple[CallStep, tuple[ProgramInput, ...]]]:
    """Yields the calls that run programs, with what their programs take."""
    programs = {program.name: program for program in plan.programs}
    for call in iter_steps(plan.steps, CallStep):
        if call.program:
            yield call, programs[call.program].inputs


def _fits(edge: PlannedEdge) -> list[str]:
    """The conversions of an edge besides moves; order and places may differ with the residency.

    So may what is copied before an update; that it is where it must be was proven by then.
    """
    conversions = (adapter for adapter in edge.adapters if adapter.kind not in (*MOVES, "clone"))
    return sorted(str(replace(adapter, place="")) for adapter in conversions)


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
