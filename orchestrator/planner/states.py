"""States: carries that live in an application of a device that compiles, and are updated there.

A program of such a device gives new values: a cache that a stage updates in place would be copied into the program's
output buffer at each iteration, and kept twice, since it is read from there while the next one is written. A *state* is
memory of the application itself. One of its programs writes the first value (prefill), the one in the body of a loop
reads and writes it (decode), and the value never leaves. There is one of it, and one request at a time uses it.

Loops may follow one another, each with what the one before it left: a cache that is read in buckets of its length has a
loop for each. All of them update one state, by a program each; one that does not run leaves it as it is.

A carry is a state where nothing but its loops needs it: what it begins with comes from a stage of the same application,
only the stages that update it read it, and nobody reads what it was before or what it is at the end. It is as large as
the largest request makes it; a smaller one uses a corner. Where a request is cut into chunks, all that writes it is in
one region, whose chunks come one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.backend import CompilingBackend
from orchestrator.errors import PlanError
from orchestrator.graph import Edge, Graph, Loop, NodeKey, next_port
from orchestrator.graph.loop import BranchLoop, MapLoop
from orchestrator.plan.records import PlannedState, Residency, StateUpdate
from orchestrator.planner.context import PlanContext
from orchestrator.planner.schedule.regions import runs_once
from orchestrator.specs import TensorSpec, combinations, show_spec

__all__ = ["find_states"]


@dataclass(frozen=True)
class _CarryUpdate:
    """A carry of one loop that a call in its body updates in place.

    Attributes:
        loop: The loop.
        carry: The carry.
        start: The edge that brings what it begins with.
        read: The edge from the carry into the call.
        update: The edge from the call to the next iteration.
    """

    loop: Loop
    carry: str
    start: Edge
    read: Edge
    update: Edge

    @property
    def edges(self) -> tuple[Edge, Edge, Edge]:
        """All three."""
        return self.start, self.read, self.update

    @property
    def call(self) -> str:
        """The call that updates it."""
        return self.read.target.name

    @property
    def end(self) -> tuple[NodeKey, str]:
        """The port by which its last value leaves the loop."""
        return NodeKey("exit", self.loop.name), self.carry


_Chain = tuple[_CarryUpdate, ...]


def find_states(context: PlanContext) -> PlanContext:
    """Says which carries are states; of those that a stage updates in place and that are none, a note says why."""
    graph = context.graph
    links = [
        link
        for loop in graph.loops.values()
        if not isinstance(loop, (BranchLoop, MapLoop))
        for carry in loop.carry
        if (link := _link(context, loop, carry)) is not None
    ]
    # 1. What stands in the way of a chain by itself.
    reasons: dict[_Chain, str] = {chain: _obstacle(context, chain) for chain in _chains(links)}
    # 2. What all states of a call leave over: a program hands over something besides them.
    silent_calls = _silent_calls(graph, [chain for chain, reason in reasons.items() if not reason])
    reasons |= {chain: f"{call!r} would give nothing else" for chain, call in silent_calls.items()}
    notes = [
        f"{link.read.destination!r} is updated in place, but {link.call!r} gives a new value of it in each iteration: "
        f"{reason}."
        for chain, reason in reasons.items()
        if reason
        for link in chain
    ]
    states = tuple(_state(context, chain) for chain, reason in reasons.items() if not reason)
    _check_own_states(context, states, reasons)
    return replace(context, states=states).with_notes(*notes)


def _check_own_states(
    context: PlanContext, states: Sequence[PlannedState], reasons: Mapping[_Chain, str]
) -> None:
    """Makes sure that what an application keeps by itself is a state of the plan.

    Raises:
        PlanError: Somebody needs it as a value, or nothing says that it is used in order.
    """
    ends = {state.start for state in states}
    ends |= {end for state in states for update in state.updates for end in (update.port, update.output)}
    for name, call in context.graph.calls.items():
        stage = call.stage
        backend = context.groups.get(context.devices[stage.name])
        own = backend.own_states(stage) if isinstance(backend, CompilingBackend) else ()
        end = next((end for end in (f"{name}.{port}" for port in own) if end not in ends), None)
        if end is None:
            continue
        reason = next((why for chain, why in reasons.items() if end in _ends_of(chain)), "")
        raise PlanError(
            f"{end!r} is memory that the application of stage {stage.name!r} keeps on "
            f"{context.devices[stage.name]!r} by itself, so no value of it is ever handed over"
            f"{f', but {reason}' if reason else ''}. Begin a loop with it, as a carry, from one call of the "
            f"application, and update it by one call in the loop's body; nobody else may read it.",
            stage=stage.name,
            call=name,
        )


def _ends_of(chain: _Chain) -> set[str]:
    """The ports at both ends of a chain's edges."""
    return {end for link in chain for edge in link.edges for end in (edge.origin, edge.destination)}


def _link(context: PlanContext, loop: Loop, carry: str) -> _CarryUpdate | None:
    """A carry that a call in the loop's body updates in place, on a device that keeps states; None: it is none."""
    graph, enter = context.graph, NodeKey("enter", loop.name)
    update = _into(graph, NodeKey("exit", loop.name), next_port(carry))
    if update.source.kind != "call":
        return None
    stage = graph.calls[update.source.name].stage
    port = dict(stage.aliases).get(update.source_port)
    read = next((edge for edge in graph.into(update.source) if edge.target_port == port), None)
    backend = context.groups.get(context.devices[stage.name])
    is_carry = read is not None and (read.source, read.source_port) == (enter, carry)
    if read is None or not is_carry or not isinstance(backend, CompilingBackend) or not backend.keeps_states:
        return None
    return _CarryUpdate(loop, carry, _into(graph, enter, carry), read, update)


def _into(graph: Graph, node: NodeKey, port: str) -> Edge:
    """The edge into a port."""
    return next(edge for edge in graph.into(node) if edge.target_port == port)


def _chains(links: Sequence[_CarryUpdate]) -> list[_Chain]:
    """Puts links behind those whose last value they begin with; each link is in one chain."""
    followers: Mapping[tuple[NodeKey, str], _CarryUpdate] = {
        (link.start.source, link.start.source_port): link
        for link in links
        if link.start.source.kind == "exit"
    }
    ends = {link.end for link in links}
    chains = []
    for link in links:
        if (link.start.source, link.start.source_port) in ends:
            continue
        chain = [link]
        while (follower := followers.get(chain[-1].end)) is not None:
            chain.append(follower)
        chains.append(tuple(chain))
    # Where two begin with one last value, only one of them is a follower: the other is a chain by itself.
    rest = {id(link) for link in links} - {id(link) for chain in chains for link in chain}
    return [*chains, *((link,) for link in links if id(link) in rest)]


def _silent_calls(graph: Graph, chains: Sequence[_Chain]) -> dict[_Chain, str]:
    """Chains with a call of which nothing else is read, each with that call."""
    sources = {chain: [chain[0].start, *(link.update for link in chain)] for chain in chains}
    origins = {edge.origin for edges in sources.values() for edge in edges}
    return {
        chain: edge.source.name
        for chain, edges in sources.items()
        for edge in edges
        if {other.origin for other in graph.out_of(edge.source)} <= origins
    }


def _obstacle(context: PlanContext, chain: _Chain) -> str:
    """Why a chain cannot be a state, a clause; empty: it can."""
    start = chain[0].start
    reader = _other_reader(context.graph, chain)
    if reader:
        return f"{reader!r} reads it, too"
    if start.source.kind != "call" or not _are_one(context, start.source.name, chain):
        return f"it begins with {start.origin!r}, which is no stage of the same application"
    return _repetition(context, start.source.name, chain) or _change(context, chain)


def _other_reader(graph: Graph, chain: _Chain) -> str:
    """Who else reads what a chain begins with, is, and becomes; empty: nobody does."""
    own = [edge for link in chain for edge in link.edges]
    ends = dict.fromkeys([*((edge.source, edge.source_port) for edge in own), *(link.end for link in chain)])
    edges = [edge for node, port in ends for edge in graph.out_of(node) if edge.source_port == port]
    return next((edge.destination for edge in edges if edge not in own), "")


def _repetition(context: PlanContext, start: str, chain: _Chain) -> str:
    """Why the calls that write a state may not run just so, once for a request and then once in each iteration."""
    graph, calls = context.graph, context.graph.calls
    own = {start, *(link.call for link in chain)}
    for name in own:
        if any(other.stage is calls[name].stage for other in calls.values() if other.name not in own):
            return f"stage {calls[name].stage.name!r} is called elsewhere, too"
    loops = [link.loop.name for link in chain]
    inside = [name for name in calls if any(graph.ancestor_in(NodeKey("call", name), loop) for loop in loops)]
    # Chunks of one region that all of them are in come one after the other, and each begins anew.
    shared = _common_dims(context, (NodeKey("call", start), *(NodeKey("enter", loop) for loop in loops)))
    for name in (start, *inside):
        ports = (*context.calls[name].inputs, *context.calls[name].outputs)
        dims = (dim for _, spec in ports for dim in getattr(spec, "names", ()) if dim not in shared)
        cut = next((dim for dim in dims if not runs_once(context.dims, (dim,))), None)
        if cut is not None:
            return f"a request may be cut into chunks along {cut!r}"
    for link in chain:
        size = _size_of_state(context, link)
        if size:
            return f"nothing else that {link.call!r} takes tells the size of {size!r}"
        nodes = (NodeKey("call", start), NodeKey("enter", link.loop.name))
        if link.loop.within or calls[start].loop or (not shared and _runs_again(context, nodes)):
            return f"loop {link.loop.name!r} is part of something that may run several times"
        if calls[link.call].loop != link.loop.name:
            return f"{link.call!r} is in a loop inside of {link.loop.name!r}"
    return ""


def _common_dims(context: PlanContext, nodes: Iterable[NodeKey]) -> tuple[str, ...]:
    """The dims of the region that all of these are in."""
    regions = {context.regions.get(node) for node in nodes}
    region = regions.pop() if len(regions) == 1 else None
    return () if region is None else region.dims


def _runs_again(context: PlanContext, nodes: Iterable[NodeKey]) -> bool:
    """Tells whether one of these is in a region that may run in chunks."""
    regions = (context.regions[node] for node in nodes if node in context.regions)
    return not all(runs_once(context.dims, region.dims) for region in regions)


def _size_of_state(context: PlanContext, link: _CarryUpdate) -> str:
    """A dim that only states of a call have: nobody could tell its programs for different sizes of it apart."""
    call, states = context.calls[link.call], dict(context.graph.calls[link.call].stage.aliases).values()
    names = {name for port, spec in call.inputs if port not in states for name in getattr(spec, "names", ())}
    own = getattr(context.producer_specs[link.read], "names", ())
    return next((name for name in own if len(context.dims[name].buckets) > 1 and name not in names), "")


def _change(context: PlanContext, chain: _Chain) -> str:
    """Why a value is not one and the same from end to end of its edges, at all sizes."""
    first = context.producer_specs[chain[0].start]
    for edge in (edge for link in chain for edge in link.edges):
        spec, consumer = context.producer_specs[edge], context.consumer_specs[edge]
        dims = [context.dims[name] for name in getattr(spec, "names", ())]
        if not isinstance(spec, TensorSpec) or any(dim.any for dim in dims):
            return f"its form hangs on the request ({show_spec(spec)})"
        if not isinstance(first, TensorSpec) or not spec.same_form(first):
            return f"it is {show_spec(first)} first, and {show_spec(spec)} on '{edge}'"
        is_plain = not consumer.conversions and edge not in context.fusions
        at_bucket = not any(end.unpadded for end in context.locations[edge])
        if not (is_plain and at_bucket) or context.residencies[edge][0] is not Residency.DEVICE:
            return f"something is done to it on '{edge}'"
    return ""


def _are_one(context: PlanContext, start: str, chain: _Chain) -> bool:
    """Tells whether all calls that write it run stages of one application of several."""
    stages = {context.graph.calls[name].stage.name for name in (start, *(link.call for link in chain))}
    return any(stages <= set(item.stages) for item in context.applications)


def _state(context: PlanContext, chain: _Chain) -> PlannedState:
    spec = context.producer_specs[chain[0].read]
    assert isinstance(spec, TensorSpec)
    shapes = [spec.shape(sizes) for sizes in combinations(spec.names, context.buckets)]
    return PlannedState(
        name=f"{chain[0].loop.name}.{chain[0].carry}",
        device=context.device_of(chain[0].call),
        spec=TensorSpec(tuple(map(max, zip(*shapes, strict=True))), spec.dtype),
        start=chain[0].start.origin,
        updates=tuple(
            StateUpdate(f"{link.loop.name}.{link.carry}", link.read.destination, link.update.origin)
            for link in chain
        ),
    )
