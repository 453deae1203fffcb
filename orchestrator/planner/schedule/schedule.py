"""Adapt: values, adapters and steps, in the order of running.

Insertion is local: every edge asks for the route to its consumer, and each prefix of a route is made once, so that
consumers share copies, casts and pads. An adapter runs right before its first reader; what leaves the pipeline or a
loop is brought home right after it was made. Calls of a region, and what prepares their chunks, go into its body.

Steps are written in *frames*: the plan itself, the body of a region, the body of a loop. An adapter is written in the
frame in which its value was made. So what is the same in all iterations of a loop is put in place before it, once
(hoisted).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from orchestrator.adapter import CLONE, MOVES, Adapter
from orchestrator.graph import (
    CONDITION,
    BranchLoop,
    Edge,
    Loop,
    MapLoop,
    NodeKey,
    next_port,
    stacked_port,
    until_port,
)
from orchestrator.plan.records import PlannedValue
from orchestrator.plan.steps import (
    HOST,
    AdaptStep,
    BranchStep,
    CallStep,
    Carry,
    LoopLikeStep,
    LoopStep,
    MapStep,
    RegionStep,
    Slice,
    Step,
)
from orchestrator.planner.context import Location, PlanContext, RegionKey
from orchestrator.planner.infer.bodies import steps_dim
from orchestrator.planner.schedule.explain import describe_dims, describe_edge
from orchestrator.planner.schedule.routes import EdgeRoutes
from orchestrator.specs import PortSpec, TensorSpec, plain_dims

__all__ = ["adapt"]

Root = tuple[NodeKey, str]
#: What identifies a value: where it came from, and the adapters it went through.
ValueKey = tuple[Root, tuple[Adapter, ...]]


@dataclass(eq=False)
class _StepFrame:
    """A list of steps in the making, and the values made in it.

    Attributes:
        loop: The loop whose body it is, or is in.
        region: The region whose body it is.
        steps: The steps, in the order of running.
        indices: Values that were made in it, by where they came from and by which adapters.
    """

    loop: str = ""
    region: RegionKey | None = None
    steps: list[Step] = field(default_factory=list)
    indices: dict[ValueKey, int] = field(default_factory=dict)


def adapt(context: PlanContext) -> PlanContext:
    """Makes the values and steps of the plan.

    Raises:
        PlanError: A derived size must be cut back, or a born and a bucketed dim meet in one output.
    """
    return _StepBuilder(context).run()


class _StepBuilder:
    def __init__(self, context: PlanContext) -> None:
        self.context = context
        self.graph = context.graph
        self.regions = context.regions
        self.routes = EdgeRoutes(context)
        self.values: list[PlannedValue] = []
        self.frames = [_StepFrame()]
        self.staging = _StepFrame()
        self.final: dict[Edge, int] = {}

    def run(self) -> PlanContext:
        # The runner numbers the inputs of a request by their place, so they are the first values; constants come next.
        for name, spec in self.graph.inputs.items():
            self._root((NodeKey("input", name), ""), PlannedValue(name, spec, HOST, True))
        for name in self.graph.constants:
            node = NodeKey("constant", name)
            for edge in self.graph.out_of(node)[:1]:
                self._root(
                    (node, ""),
                    PlannedValue(name, self.context.producer_specs[edge], HOST, True, constant=True),
                )
        # Units in topological order: a call or a loop by itself, the calls of a region together.
        for unit in self.graph.ordered_units(self.regions):
            region = self.regions.get(unit[0])
            if region is not None:
                self._region(region, unit)
            else:
                self._unit(unit[0])
        # An output that no call gives belongs to no unit.
        for edge in self.graph.ordered_edges():
            if edge.target.kind == "output" and edge.source.kind in ("input", "constant"):
                self._realise(edge)
        # Every edge has its value now, so dims and edges can be described by what was really written.
        context, routes = self.context, self.routes
        return replace(
            context,
            dims=describe_dims(context, routes, self.values, self.frames[0].steps, self.final),
            values=tuple(self.values),
            steps=tuple(self.frames[0].steps),
            staging=tuple(self.staging.steps),
            edges=tuple(
                describe_edge(context, routes, edge, self.final[edge]) for edge in self.graph.ordered_edges()
            ),
            outputs=tuple(
                (name, self.final[self.graph.into(NodeKey("output", name))[0]]) for name in self.graph.outputs
            ),
        )

    def _root(self, root: Root, value: PlannedValue) -> int:
        self.values.append(value)
        self.frames[-1].indices[root, ()] = len(self.values) - 1
        return len(self.values) - 1

    def _unit(self, node: NodeKey) -> None:
        if node.kind == "call":
            self._call(node.name)
        else:
            self._loop(self.graph.loops[node.name])
            node = NodeKey("exit", node.name)
        if self.frames[-1].region is None:
            self._results(node)

    def _call(self, name: str) -> None:
        call = self.context.calls[name]
        node = NodeKey("call", name)
        edges = {edge.target_port: edge for edge in self.graph.into(node)}
        inputs = tuple(self._realise(edges[port]) for port, _ in call.inputs)
        outputs = tuple(
            self._give((node, port), f"{name}.{port}", spec, self.routes.output_location(name, spec))
            for port, spec in call.outputs
        )
        self.frames[-1].steps.append(CallStep(inputs, outputs, name, device=call.device))
        for edge in self.graph.out_of(node):
            route = self.routes.route(edge)
            if route and route[0].place == "producer":
                self._walk((node, edge.source_port), route, self.frames[-1])

    def _give(self, root: Root, origin: str, spec: PortSpec, end: Location) -> int:
        """Makes the value that a call or a loop's end gives."""
        no_buckets = not isinstance(spec, TensorSpec) or not self.routes.has_buckets(spec)
        return self._root(root, PlannedValue(origin, spec, end.memory, end.unpadded or no_buckets))

    def _results(self, node: NodeKey) -> None:
        """Brings home what leaves the pipeline, or the loop around a call or loop; not a loop beside it."""
        for edge in self.graph.out_of(node):
            if edge.target.kind == "output" or edge.target == NodeKey("exit", self.graph.scope(node)):
                self._realise(edge)

    def _region(self, region: RegionKey, unit: tuple[NodeKey, ...]) -> None:
        # The body: what its calls read of dims that the region does not cut is made in the frame around, once.
        frame = _StepFrame(region=region)
        self.frames.append(frame)
        for node in unit:
            self._unit(node)
        # What others read leaves by the shortest part of its route that must run for each chunk; the rest follows after
        # the chunks are put together.
        ends = [node if node.kind == "call" else NodeKey("exit", node.name) for node in unit]
        exits = []
        for edge in (edge for node in ends for edge in self.graph.out_of(node)):
            target = self.graph.ancestor_in(edge.target, "")
            if target is None or self.regions.get(target) != region:
                exits.append(self._leave(edge, frame))
        self.frames.pop()
        body = tuple(frame.steps)
        inputs, outputs = _outer(body, ()), tuple(dict.fromkeys(exits))
        self.frames[-1].steps.append(RegionStep(inputs, outputs, body, region.dims))
        # Only now: outputs of the pipeline read what all chunks gave, in the frame around.
        for node in ends:
            self._results(node)

    def _leave(self, edge: Edge, frame: _StepFrame) -> int:
        """Makes, inside the body, the part of a route that belongs there: all up to the cut, and a move home."""
        route = self.routes.route(edge)
        root = (edge.source, edge.source_port)
        end = 0
        if self.routes.leaves(edge):
            end = 1 + max((at for at, adapter in enumerate(route) if adapter.kind == "cut"), default=-1)
            while end < len(route) and route[end].kind == "download":
                end += 1
        elif (
            route
            and route[0].kind in ("download", "gather")
            and self.context.is_compiled(self.routes.source(edge).device)
        ):
            end = 1  # the buffer that the value is in is the next call's
        index = self._walk(root, route[:end], frame)
        self.frames[0].indices[root, route[:end]] = index
        return index

    def _loop(self, loop: Loop) -> None:
        """Writes a loop: what enters it, its body, and what leaves it."""
        enter, leave = NodeKey("enter", loop.name), NodeKey("exit", loop.name)
        into = {edge.target_port: edge for node in (enter, leave) for edge in self.graph.into(node)}
        entries = {port: self._realise(into[port]) for port in loop.entries}
        condition = entries.get(CONDITION)
        # The body: what a port is called in it is made first, so that its calls find it.
        frame = _StepFrame(loop=loop.name)
        self.frames.append(frame)
        arguments = {
            port: self._argument(loop, port, into[port], entries[port])
            for port in entries
            if port != CONDITION
        }
        for (node,) in self.graph.ordered_units({}, loop.name):
            self._unit(node)
        for edge in self.graph.out_of(enter):
            if edge.target == leave:
                self._realise(edge)
        yields = {edge.target_port: self._yielded_value(edge) for edge in self.graph.into(leave)}
        self.frames.pop()
        # What hangs its iterations together, then what the loop reads and gives as a whole.
        carries = tuple(Carry(entries[port], arguments[port], yields[next_port(port)]) for port in loop.carry)
        slices = tuple(Slice(entries[port], arguments[port]) for port in arguments if port not in loop.carry)
        collects = tuple(yields[stacked_port(port)] for port in loop.collect)
        body = tuple(frame.steps)
        inputs = tuple(
            sorted({*entries.values(), *_outer(body, arguments.values()), *_outside(yields, arguments, body)})
        )
        outputs = tuple(self._result(loop, leave, port) for port in loop.results)
        parts = inputs, outputs, body, loop.name, carries, slices, collects
        step: LoopLikeStep
        match loop:
            case MapLoop():
                step = MapStep(*parts, items_dim=self._count_dim(loop))
            case BranchLoop():
                step = BranchStep(*parts, condition=condition)
            case _:
                until = yields[until_port(loop.until)] if loop.until else None
                dim = self._count_dim(loop)
                step = LoopStep(*parts, until, loop.max_steps, loop.check_every, dim, condition=condition)
        self.frames[-1].steps.append(step)

    def _count_dim(self, loop: Loop) -> str:
        """The dim that says how often the body of a loop runs, or for how many items, where that is its own."""
        own = str(loop.over[0][1].dims[0]) if loop.over else steps_dim(loop.name)
        return own if own in self.context.dims else ""

    def _argument(self, loop: Loop, port: str, edge: Edge, initial: int) -> int:
        """Makes the value of a port in the body: this iteration's carry, or slice."""
        spec, end = self.values[initial].spec, self.routes.target(edge)
        if port in loop.carry:
            spec = self.context.consumer_specs[edge].spec
        if port in loop.each:
            assert isinstance(spec, TensorSpec)
            spec = TensorSpec(spec.dims[1:], spec.dtype)
        batch = dict(loop.over).get(port)
        if batch is not None:
            spec = TensorSpec(plain_dims(batch.dims), batch.dtype, pad=batch.pad)
        root = (NodeKey("enter", loop.name), port)
        return self._give(root, f"{loop.name}.{port}", spec, end)

    def _result(self, loop: Loop, leave: NodeKey, port: str) -> int:
        """Makes the value of a port outside: the last carry, or the collected values."""
        edge = next(edge for edge in self.graph.into(leave) if edge.target_port in (port, next_port(port)))
        spec = self.values[self.final[edge]].spec
        if port not in loop.carry:
            spec = self._stacked_spec(loop, spec)
        return self._give((leave, port), f"{loop.name}.{port}", spec, self.routes.target(edge))

    def _stacked_spec(self, loop: Loop, spec: PortSpec) -> PortSpec:
        count = self.context.counts[loop.name]
        if count is None or not isinstance(spec, TensorSpec):
            return list
        return TensorSpec((count, *(spec.dims[1:] if loop.over else spec.dims)), spec.dtype)

    def _yielded_value(self, edge: Edge) -> int:
        """The value that an edge hands to the end of its loop."""
        return self.final[edge] if edge in self.final else self._realise(edge)

    def _realise(self, edge: Edge) -> int:
        """Makes the value an edge's consumer reads, in the frame that it belongs to.

        What the consumer updates in place may be a copy: then it is made right before, for this consumer alone.
        """
        route = self.routes.route(edge)
        index = self._walk((edge.source, edge.source_port), route, self._frame(edge))
        is_copied = edge in self.context.clones
        self.final[edge] = self._adapt(index, CLONE, self.frames[-1]) if is_copied else index
        return self.final[edge]

    def _frame(self, edge: Edge) -> _StepFrame:
        """Where adapters of an edge are written: where its value is made, or in the region that cuts it in chunks."""
        if edge.source.kind == "constant":
            return self.staging
        scope = edge.source.name if edge.source.kind == "enter" else self.graph.scope(edge.source)
        innermost = self.frames[0]
        for frame in self.frames:
            if frame.loop == scope and (frame.region is None or self._is_of(edge, frame.region)):
                innermost = frame
        return innermost

    def _is_of(self, edge: Edge, region: RegionKey) -> bool:
        spec = self.context.producer_specs[edge]
        if isinstance(spec, TensorSpec) and set(spec.names) & set(region.dims):
            return True
        source = self.graph.ancestor_in(edge.source, "")
        return source is not None and self.regions.get(source) == region

    def _walk(self, root: Root, route: tuple[Adapter, ...], frame: _StepFrame) -> int:
        """Follows a route from the furthest point on it that exists already."""
        end = len(route)
        while (index := self._find(root, route[:end], frame)) is None:
            assert end, f"nothing made {root} before it is read"
            end -= 1
        for stop in range(end + 1, len(route) + 1):
            index = self._adapt(index, route[stop - 1], frame)
            frame.indices[root, route[:stop]] = index
        return index

    def _find(self, root: Root, route: tuple[Adapter, ...], frame: _StepFrame) -> int | None:
        around = (
            self.frames[: self.frames.index(frame) + 1] if frame in self.frames else [*self.frames[:1], frame]
        )
        return next(
            (other.indices[root, route] for other in reversed(around) if (root, route) in other.indices), None
        )

    def _adapt(self, source: int, adapter: Adapter, frame: _StepFrame) -> int:
        value = self.values[source]
        assert isinstance(value.spec, TensorSpec)
        memory = self._memory(adapter.device) if adapter.kind in MOVES else value.memory
        unpadded = adapter.kind == "cut" or (value.unpadded and not adapter.to_bucket)
        device = adapter.device if adapter.kind in ("upload", "copy") else value.memory
        constant, spec = value.constant and adapter is not CLONE, adapter.result(value.spec)
        self.values.append(PlannedValue(value.origin, spec, memory, unpadded, constant))
        target = len(self.values) - 1
        frame.steps.append(AdaptStep((source,), (target,), value.origin, adapter, device=device))
        return target

    def _memory(self, device: str) -> str:
        if device == HOST or self.context.groups[device].capabilities.host_memory:
            return HOST
        return device


def _outer(body: tuple[Step, ...], arguments: Collection[int]) -> tuple[int, ...]:
    """Values that the steps of a body read and do not make."""
    own = {index for step in body for index in step.outputs} | set(arguments)
    return tuple(sorted({index for step in body for index in step.inputs} - own))


def _outside(yields: Mapping[str, int], arguments: Mapping[str, int], body: tuple[Step, ...]) -> set[int]:
    """Values handed to the next iteration, or collected, that are made outside the loop."""
    own = {index for step in body for index in step.outputs} | set(arguments.values())
    return set(yields.values()) - own
