"""States: carries that live in an application of a device that compiles, and are updated there.

A program of such a device gives new values: a cache that a stage updates in place would be copied into the program's
output buffer at each iteration, and kept twice, since it is read from there while the next one is written. A *state* is
memory of the application itself. One of its programs writes the first value (prefill), the one in the body of a loop
reads and writes it (decode), and the value never leaves. There is one of it, and one loop of one request uses it.

A carry is a state where nothing but the loop needs it: what it begins with comes from a stage of the same application,
only the stage that updates it reads it, and nobody reads what it was before or what it is at the end.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.backend import CompilingBackend
from orchestrator.graph import Edge, Graph, Loop, NodeKey, next_port
from orchestrator.graph.loop import BranchLoop, MapLoop
from orchestrator.plan.records import PlannedState, Residency
from orchestrator.planner.context import PlanContext
from orchestrator.specs import TensorSpec, show_spec

__all__ = ["find_states"]


def find_states(context: PlanContext) -> PlanContext:
    """Says which carries are states; of those that a stage updates in place and that are none, a note says why."""
    states: list[PlannedState] = []
    notes: list[str] = []
    # 1. What stands in the way of a carry by itself.
    for loop in context.graph.loops.values():
        if isinstance(loop, (BranchLoop, MapLoop)):
            continue
        for carry in loop.carry:
            update = _update(context, loop, carry)
            if update is None:
                continue
            reason = _obstacle(context, loop, carry, *update)
            if reason:
                notes.append(
                    f"{update[0].destination!r} is updated in place, but {update[0].target.name!r} gives a new value "
                    f"of it in each iteration: {reason}."
                )
                continue
            states.append(_state(context, loop, carry, *update))
    # 2. What all states of a call leave over: a program hands over something besides them.
    silent = _silent_calls(context.graph, states)
    notes += [
        f"{state.port!r} is updated in place, but handed over as a new value: {call!r} would give nothing else."
        for state, call in silent.items()
    ]
    kept = tuple(state for state in states if state not in silent)
    return replace(context, states=kept).with_notes(*notes)


def _silent_calls(graph: Graph, states: list[PlannedState]) -> dict[PlannedState, str]:
    """States of a call of which nothing else is read, each with that call."""
    origins = {origin for state in states for origin in (state.start, state.output)}
    silent: dict[PlannedState, str] = {}
    for state in states:
        for origin in (state.start, state.output):
            call = origin.rpartition(".")[0]
            if {edge.origin for edge in graph.out_of(NodeKey("call", call))} <= origins:
                silent[state] = call
    return silent


def _update(context: PlanContext, loop: Loop, carry: str) -> tuple[Edge, Edge] | None:
    """The edges by which a carry comes into the call that updates it in place and out of it; None: there is none."""
    graph = context.graph
    (yielded,) = (
        edge for edge in graph.into(NodeKey("exit", loop.name)) if edge.target_port == next_port(carry)
    )
    if yielded.source.kind != "call":
        return None
    stage = graph.calls[yielded.source.name].stage
    port = dict(stage.aliases).get(yielded.source_port)
    read = next((edge for edge in graph.into(yielded.source) if edge.target_port == port), None)
    backend = context.groups.get(context.devices[stage.name])
    is_carry = read is not None and (read.source, read.source_port) == (NodeKey("enter", loop.name), carry)
    if read is None or not is_carry or not isinstance(backend, CompilingBackend) or not backend.keeps_states:
        return None
    return read, yielded


def _start(graph: Graph, loop: Loop, carry: str) -> Edge:
    """The edge that brings what a carry begins with."""
    return next(edge for edge in graph.into(NodeKey("enter", loop.name)) if edge.target_port == carry)


def _obstacle(context: PlanContext, loop: Loop, carry: str, read: Edge, yielded: Edge) -> str:
    """Why a carry cannot be a state, a clause; empty: it can."""
    start = _start(context.graph, loop, carry)
    reader = _other_reader(context.graph, loop, carry, (start, read, yielded))
    if reader:
        return f"{reader!r} reads it, too"
    if start.source.kind != "call" or not _are_one(context, start.source.name, read.target.name):
        return f"it begins with {start.origin!r}, which is no stage of the same application"
    return _repetition(context, loop, start.source.name, read.target.name) or _change(
        context, (start, read, yielded)
    )


def _other_reader(graph: Graph, loop: Loop, carry: str, own: tuple[Edge, Edge, Edge]) -> str:
    """Who else reads what a carry begins with, is, and becomes; empty: nobody does."""
    ends = [(edge.source, edge.source_port) for edge in own] + [(NodeKey("exit", loop.name), carry)]
    edges = [edge for node, port in ends for edge in graph.out_of(node) if edge.source_port == port]
    return next((edge.destination for edge in edges if edge not in own), "")


def _repetition(context: PlanContext, loop: Loop, start: str, update: str) -> str:
    """Why the calls that write a state may not run just so, once for a request and then once in each iteration."""
    graph, calls = context.graph, context.graph.calls
    for name in (start, update):
        if sum(other.stage is calls[name].stage for other in calls.values()) > 1:
            return f"stage {calls[name].stage.name!r} is called elsewhere, too"
    for name in (start, *(name for name in calls if graph.ancestor_in(NodeKey("call", name), loop.name))):
        ports = (*context.calls[name].inputs, *context.calls[name].outputs)
        dims = [context.dims[dim] for _, spec in ports for dim in getattr(spec, "names", ())]
        cut = next((dim.name for dim in dims if dim.can_chunk), None)
        if cut is not None:
            return f"a request may be cut into chunks along {cut!r}"
    nodes = (NodeKey("call", start), NodeKey("enter", loop.name), NodeKey("call", update))
    if loop.within or calls[start].loop or any(node in context.regions for node in nodes):
        return f"loop {loop.name!r} is part of something that may run several times"
    return "" if calls[update].loop == loop.name else f"{update!r} is in a loop inside of {loop.name!r}"


def _change(context: PlanContext, edges: tuple[Edge, ...]) -> str:
    """Why a value is not one and the same from end to end of its edges, at all sizes."""
    for edge in edges:
        spec, consumer = context.producer_specs[edge], context.consumer_specs[edge]
        dims = [context.dims[name] for name in getattr(spec, "names", ())]
        if not isinstance(spec, TensorSpec) or any(dim.any or len(dim.buckets) > 1 for dim in dims):
            return f"its form hangs on the request ({show_spec(spec)})"
        is_plain = not consumer.conversions and edge not in context.fusions
        at_bucket = not any(end.unpadded for end in context.locations[edge])
        if not (is_plain and at_bucket) or context.residencies[edge][0] is not Residency.DEVICE:
            return f"something is done to it on '{edge}'"
    return ""


def _are_one(context: PlanContext, one: str, other: str) -> bool:
    """Tells whether two calls run stages of one application of several."""
    stages = {context.graph.calls[name].stage.name for name in (one, other)}
    return any(stages <= set(item.stages) for item in context.applications)


def _state(context: PlanContext, loop: Loop, carry: str, read: Edge, yielded: Edge) -> PlannedState:
    spec = context.producer_specs[read]
    assert isinstance(spec, TensorSpec)
    return PlannedState(
        name=f"{loop.name}.{carry}",
        device=context.device_of(read.target.name),
        spec=TensorSpec(spec.shape(context.largest), spec.dtype),
        start=_start(context.graph, loop, carry).origin,
        port=read.destination,
        output=yielded.origin,
    )
