"""Locations: where a loop keeps what enters and leaves it.

A carry is kept where the body gives its next value, so that nothing is moved from one iteration to the next. What is
sliced is kept on the device that reads the slices, if that computes eagerly at any shape, else on the host. What is
collected stays on its device under the same condition, if the number of parts is known beforehand. What ends a loop is
read on the host.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.graph import Edge, Loop, MapLoop, NodeKey, next_port
from orchestrator.plan.steps import HOST
from orchestrator.planner.context import EdgeLocations, Location, PlanContext
from orchestrator.specs import TensorSpec

__all__ = ["call_location", "locate_edges"]


_ON_HOST = Location(HOST, HOST, True)


def locate_edges(context: PlanContext) -> PlanContext:
    """Finds the two ends of every edge; edges that are spilled end on the host."""
    locator = _Locator(context)
    locations = {
        edge: EdgeLocations(locator.source(edge), locator.target(edge)) for edge in context.graph.edges
    }
    return replace(context, locations=locations)


def call_location(context: PlanContext, call: str) -> Location:
    """Returns where a call takes and gives its values."""
    device = context.device_of(call)
    if device == HOST:
        return _ON_HOST
    host_memory = context.groups[device].capabilities.host_memory
    return Location(device, HOST if host_memory else device, False)


class _Locator:
    def __init__(self, context: PlanContext) -> None:
        self.context = context
        self.graph = context.graph
        self._carries: dict[tuple[str, str], Location | None] = {}

    def source(self, edge: Edge) -> Location:
        return self._producer(edge.source, edge.source_port)

    def target(self, edge: Edge) -> Location:
        if edge.target.kind == "call":
            return call_location(self.context, edge.target.name)
        if edge.target.kind == "output":
            return _ON_HOST
        loop = self.graph.loops[edge.target.name]
        if edge.target.kind == "enter":
            return self._inside(loop, edge.target_port)
        carry = next((name for name in loop.carry if next_port(name) == edge.target_port), None)
        return self._carry(loop, carry) if carry is not None else self._outside(loop, edge.target_port)

    def _producer(self, node: NodeKey, port: str) -> Location:
        if node.kind == "call":
            return call_location(self.context, node.name)
        if node.kind not in ("enter", "exit"):
            return _ON_HOST
        loop = self.graph.loops[node.name]
        if node.kind == "enter" or port in loop.carry:
            return self._inside(loop, port)
        return self._outside(loop, port)

    def _inside(self, loop: Loop, port: str) -> Location:
        if port in loop.carry:
            return self._carry(loop, port)
        if port in loop.inputs:
            edges = self.graph.into(NodeKey("enter", loop.name))
            edge = next(edge for edge in edges if edge.target_port == port)
            return _ON_HOST if edge in self.context.spills else self._producer(edge.source, edge.source_port)
        return self._slice(loop, port) if port in loop.each else _ON_HOST

    def _carry(self, loop: Loop, port: str) -> Location:
        key = (loop.name, port)
        if key not in self._carries:
            self._carries[key] = None  # a carry that is handed on as it is, by way of others or not
            self._carries[key] = self._find_carry(loop, port)
        location = self._carries[key]
        if location is not None:
            return location
        # It leaves the loop in the buffer that it came in, which the order of the steps does not see.
        read = self._first_reader(loop, port)
        return _ON_HOST if self._has_buffers(read) else read

    def _find_carry(self, loop: Loop, port: str) -> Location:
        edge = self._into(loop, next_port(port))
        if edge in self.context.spills:
            return _ON_HOST
        location = self._producer(edge.source, edge.source_port)
        # Volatile: not a call of this body gave it, but a loop inside, whose programs overwrite it when that loop runs
        # again; or it is another carry or of the code around, and so older than one iteration.
        fresh = edge.source.kind == "call" and self.graph.scope(edge.source) == loop.name
        same = (edge.source, edge.source_port) == (NodeKey("enter", loop.name), port)
        is_volatile = not fresh and not same and self._has_buffers(location)
        return _ON_HOST if is_volatile or self._is_python(edge) else location

    def _is_python(self, edge: Edge) -> bool:
        return not isinstance(self.context.producer_specs.get(edge), TensorSpec)

    def _into(self, loop: Loop, port: str) -> Edge:
        edges = self.graph.into(NodeKey("exit", loop.name))
        return next(edge for edge in edges if edge.target_port == port)

    def _has_buffers(self, end: Location) -> bool:
        return end.memory != HOST and bool(self.context.groups[end.device].capabilities.output_buffers)

    def _readers(self, loop: Loop, port: str) -> list[Location]:
        """Ends of the calls that read a port in the body."""
        edges = self.graph.out_of(NodeKey("enter", loop.name))
        return [
            call_location(self.context, edge.target.name)
            for edge in edges
            if edge.source_port == port and edge.target.kind == "call"
        ]

    def _first_reader(self, loop: Loop, port: str) -> Location:
        return next(iter(self._readers(loop, port)), _ON_HOST)

    def _slice(self, loop: Loop, port: str) -> Location:
        readers = self._readers(loop, port)
        if len({end.memory for end in readers}) != 1 or readers[0].memory == HOST:
            return _ON_HOST
        cuts = self._cuts_anywhere(readers[0].device)
        return Location(readers[0].device, readers[0].memory, True) if cuts else _ON_HOST

    def _outside(self, loop: Loop, port: str) -> Location:
        """Where a collected value is stacked, or an end is read."""
        edge = self._into(loop, port)
        end = self._producer(edge.source, edge.source_port)
        if port not in loop.results or end.device == HOST:
            return _ON_HOST
        match loop:
            case MapLoop():
                return _ON_HOST  # batches are joined, and cut to the items that there were, on the host
        if not isinstance(self.context.counts[loop.name], int):
            return _ON_HOST  # there are as many parts as iterations, and no more up to a bucket
        refcounted = self.context.groups[end.device].capabilities.refcounted
        keeps = refcounted and self._cuts_anywhere(end.device) and not self._is_python(edge)
        return end if keeps else _ON_HOST

    def _cuts_anywhere(self, device: str) -> bool:
        """Tells whether a device cuts and joins as it goes: one of static shapes would compile each place anew."""
        capabilities = self.context.groups[device].capabilities
        return capabilities.eager and not capabilities.static_shapes
