"""What finished steps say of dims and edges: which sizes can run, and what each edge does and costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from orchestrator.adapter import CLONE, Adapter
from orchestrator.graph import Edge, Graph, NodeKey
from orchestrator.plan.reach import Reach
from orchestrator.plan.records import DimPlan, PlannedEdge, PlannedValue
from orchestrator.plan.steps import RegionStep, Step, iter_steps
from orchestrator.planner.context import PlanContext
from orchestrator.planner.infer.bodies import is_of_items, steps_dim
from orchestrator.planner.schedule.routes import EdgeRoutes
from orchestrator.specs import TensorSpec, dim_names

__all__ = ["describe_dims", "describe_edge"]


def describe_dims(
    context: PlanContext,
    routes: EdgeRoutes,
    values: Sequence[PlannedValue],
    steps: Sequence[Step],
    edge_values: Mapping[Edge, int],
) -> dict[str, DimPlan]:
    """Says of each dim whether it may be padded, and cut into chunks.

    Args:
        context: The plan so far.
        routes: The route of every edge.
        values: All values.
        steps: All steps.
        edge_values: The value that each edge's consumer reads.
    """
    # Each table is filled in one walk over edges or values: a plan may have as many dims as loops.
    without_rule = _names_without_rule(context, routes)
    at_bucket = {
        name
        for value in values
        if not value.unpadded and isinstance(value.spec, TensorSpec)
        for name in value.spec.names
    }
    counted_loops, loop_dims = _counted_loops(context), {steps_dim(name) for name in context.graph.loops}
    dims: dict[str, DimPlan] = {}
    for name, dim in context.dims.items():
        can_pad = not dim.any and not dim.exact and name not in without_rule
        # The items of a map are cut into its batches by the map itself, whatever the steps around it read.
        if is_of_items(context.graph, dim):
            loop = context.graph.loops[dim.decided_by.rpartition(".")[0]]
            whole = "" if name == str(loop.over[0][1].dims[0]) else "items of a map are padded, never cut"
            dims[name] = replace(dim, can_pad=can_pad, can_chunk=not whole, whole=whole)
            continue
        # A dim is loose where every value with it is at its own size: then no stage is compiled for a bucket of it.
        loose = not dim.any and not any(name in names for names in (counted_loops, loop_dims, at_bucket))
        if name in loop_dims:
            whole = "a loop decides it"
        elif name in counted_loops:
            whole = f"it is how often loop {counted_loops[name]!r} runs"
        else:
            whole = dim.whole or _obstacle(context, dim, values, steps, edge_values)
        can_chunk = dim.batch and not dim.unbounded and not loose and not whole
        dims[name] = replace(
            dim, can_pad=can_pad, can_chunk=can_chunk, loose=loose, whole="" if loose else whole
        )
    return dims


def _names_without_rule(context: PlanContext, routes: EdgeRoutes) -> set[str]:
    """Dims that some edge would have to pad although no rule says with what."""
    return {
        name
        for edge in context.graph.edges
        for adapter in routes.route(edge)
        if adapter.kind == "pad" and adapter.rule is None
        for name in TensorSpec(adapter.dims).names
    }


def _counted_loops(context: PlanContext) -> dict[str, str]:
    """Dims that say how often a loop runs, with the loop: no chunk of its iterations is a loop by itself."""
    return {
        name: loop.name
        for loop in context.graph.loops.values()
        for edge in context.graph.into(NodeKey("enter", loop.name))
        if edge.target_port in loop.each and isinstance(spec := context.producer_specs[edge], TensorSpec)
        for name in dim_names(spec.dims[0])
    }


def _obstacle(
    context: PlanContext,
    dim: DimPlan,
    values: Sequence[PlannedValue],
    steps: Sequence[Step],
    edge_values: Mapping[Edge, int],
) -> str:
    """What stands in the way of running a dim in chunks."""
    # A chunk is a request by itself to whatever runs once for each chunk: for a dim of inputs that is the whole plan,
    # for one that a stage decides the regions with it. Each must give chunks of what it would give as a whole.
    blocks: Iterable[tuple[Sequence[int], Sequence[Step], dict[str, int]]]
    if dim.decided_by:
        regions = (step for step in iter_steps(steps, RegionStep) if dim.name in step.dims)
        blocks = [
            (step.inputs, step.body, {f"{values[index].origin!r}": index for index in step.outputs})
            for step in regions
        ]
    else:
        blocks = [(range(len(context.graph.inputs)), steps, _results(context.graph, edge_values))]
    # The first obstacle is enough: the plan names one.
    for inputs, body, outputs in blocks:
        reach = Reach(dim.name, context.dims, values, inputs)
        reach.visit(body)
        reach.check_outputs(outputs)
        if reach.obstacle:
            return reach.obstacle
    return ""


def _results(graph: Graph, edge_values: Mapping[Edge, int]) -> dict[str, int]:
    return {f"output {name!r}": edge_values[graph.into(NodeKey("output", name))[0]] for name in graph.outputs}


def describe_edge(context: PlanContext, routes: EdgeRoutes, edge: Edge, value: int) -> PlannedEdge:
    """Returns an edge as the plan lists it: what crosses, where it lives, and why.

    Args:
        context: The plan so far.
        routes: The route of every edge.
        edge: The edge.
        value: The value that its consumer reads.
    """
    route, spec = routes.route(edge), context.producer_specs[edge]
    residency, reason = context.residencies[edge]
    reason = "; ".join(filter(None, (reason, _update(context, edge))))
    size = spec.nbytes(context.largest) if isinstance(spec, TensorSpec) else 0
    cost = _cost(context, routes, edge, route, size)
    if edge in context.clones:
        route = (*route, CLONE)
    return PlannedEdge(edge.origin, edge.destination, spec, residency, size, route, reason, cost, value)


def _update(context: PlanContext, edge: Edge) -> str:
    """What is said of a value that its consumer updates in place, or gives anew where its author said so."""
    if edge in context.clones:
        return f"copied before it is updated in place: {context.clones[edge]}"
    call = context.calls.get(edge.target.name) if edge.target.kind == "call" else None
    if call is None:
        return ""
    if any(port == edge.target_port for _, port in call.aliases):
        return "updated in place"
    if any(edge.destination == update.port for state in context.states for update in state.updates):
        return "updated in place, a state of its application"
    if any(port == edge.target_port for _, port in context.graph.calls[call.name].stage.aliases):
        return f"a program of {call.device} gives its update as a new value"
    return ""


def _cost(
    context: PlanContext, routes: EdgeRoutes, edge: Edge, route: tuple[Adapter, ...], size: int
) -> float:
    """Estimated microseconds on the link, and to start a program for adapters alone."""
    total = 0.0
    for adapter in route:
        group = adapter.device if adapter.kind == "upload" else routes.source(edge).device
        if group not in context.groups:
            continue
        # An upload goes to every rank; a download comes from one, unless the ranks hold parts.
        capabilities = context.groups[group].capabilities
        if adapter.kind in ("upload", "download", "gather"):
            copies = 1 if adapter.kind == "download" else capabilities.ranks
            total += capabilities.link.seconds(size * copies) * 1e6
        if adapter.place == "program":
            total += capabilities.link.dispatch_seconds * 1e6
    return round(total, 3)
