"""Locations: where a loop keeps what enters and leaves it.

A carry is kept where the body gives its next value, so that nothing is moved from one iteration to the next. What is
sliced is kept on the device that reads the slices, if that computes eagerly, else on the host. What is collected stays
on its device under the same condition, if the number of parts is known beforehand. What ends a loop is read on the
host.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.graph import Edge, Loop, NodeKey, next_port
from orchestrator.plan.steps import HOST
from orchestrator.planner.context import PlanContext
from orchestrator.specs import TensorSpec

__all__ = ["Location", "Locations"]


@dataclass(frozen=True)
class Location:
    """One end of an edge: the device group (or host), the memory, and whether named dims are real there."""

    device: str
    memory: str
    real: bool


_ON_HOST = Location(HOST, HOST, True)


class Locations:
    """Finds the two ends of every edge.

    Args:
        context: The plan so far; edges that are spilled already end on the host.
    """

    def __init__(self, context: PlanContext) -> None:
        self.context = context
        self.graph = context.graph
        self._carries: dict[tuple[str, str], Location | None] = {}

    def source(self, edge: Edge) -> Location:
        """Returns the producing end."""
        return self._given(edge.source, edge.source_port)

    def target(self, edge: Edge) -> Location:
        """Returns the consuming end."""
        if edge.target.kind == "call":
            return self.call(edge.target.name)
        if edge.target.kind == "output":
            return _ON_HOST
        loop = self.graph.loops[edge.target.name]
        if edge.target.kind == "enter":
            return self._entered(loop, edge.target_port)
        carry = next((name for name in loop.carry if next_port(name) == edge.target_port), None)
        return self._carried(loop, carry) if carry is not None else self._left(loop, edge.target_port)

    def call(self, name: str) -> Location:
        """Returns the end that a call is."""
        device = self.context.device_of(name)
        if device == HOST:
            return _ON_HOST
        host_memory = self.context.groups[device].capabilities.host_memory
        return Location(device, HOST if host_memory else device, False)

    def _given(self, node: NodeKey, port: str) -> Location:
        if node.kind == "call":
            return self.call(node.name)
        if node.kind not in ("enter", "exit"):
            return _ON_HOST
        loop = self.graph.loops[node.name]
        if node.kind == "enter" or port in loop.carry:
            return self._entered(loop, port)
        return self._left(loop, port)

    def _entered(self, loop: Loop, port: str) -> Location:
        if port in loop.carry:
            return self._carried(loop, port)
        if port in loop.inputs:
            edges = self.graph.into(NodeKey("enter", loop.name))
            edge = next(edge for edge in edges if edge.target_port == port)
            return _ON_HOST if edge in self.context.spills else self._given(edge.source, edge.source_port)
        return self._sliced(loop, port) if port in loop.each else _ON_HOST

    def _carried(self, loop: Loop, port: str) -> Location:
        key = (loop.name, port)
        if key not in self._carries:
            self._carries[key] = None  # a carry that is handed on as it is, by way of others or not
            self._carries[key] = self._find_carried(loop, port)
        found = self._carries[key]
        if found is not None:
            return found
        # It leaves the loop in the buffer that it came in, which the order of the steps does not see.
        read = self._read(loop, port)
        return _ON_HOST if self._buffered(read) else read

    def _find_carried(self, loop: Loop, port: str) -> Location:
        edge = self._into(loop, next_port(port))
        if edge in self.context.spills:
            return _ON_HOST
        found = self._given(edge.source, edge.source_port)
        # Not a call of this body gave it, but a loop inside, whose programs overwrite it when that loop runs again; or
        # it is another carry or of the code around, and so older than one iteration.
        fresh = edge.source.kind == "call" and self.graph.scope(edge.source) == loop.name
        same = (edge.source, edge.source_port) == (NodeKey("enter", loop.name), port)
        held = not fresh and not same and self._buffered(found)
        return _ON_HOST if held or self._is_python(edge) else found

    def _is_python(self, edge: Edge) -> bool:
        return not isinstance(self.context.producer_specs.get(edge), TensorSpec)

    def _into(self, loop: Loop, port: str) -> Edge:
        edges = self.graph.into(NodeKey("exit", loop.name))
        return next(edge for edge in edges if edge.target_port == port)

    def _buffered(self, end: Location) -> bool:
        return end.memory != HOST and bool(self.context.groups[end.device].capabilities.output_buffers)

    def _readers(self, loop: Loop, port: str) -> list[Location]:
        """Ends of the calls that read a port in the body."""
        edges = self.graph.out_of(NodeKey("enter", loop.name))
        return [
            self.call(edge.target.name)
            for edge in edges
            if edge.source_port == port and edge.target.kind == "call"
        ]

    def _read(self, loop: Loop, port: str) -> Location:
        return next(iter(self._readers(loop, port)), _ON_HOST)

    def _sliced(self, loop: Loop, port: str) -> Location:
        readers = self._readers(loop, port)
        if len({end.memory for end in readers}) != 1 or readers[0].memory == HOST:
            return _ON_HOST
        eager = self.context.groups[readers[0].device].capabilities.eager
        return Location(readers[0].device, readers[0].memory, True) if eager else _ON_HOST

    def _left(self, loop: Loop, port: str) -> Location:
        """Where a collected value is stacked, or an end is read."""
        edge = self._into(loop, port)
        end = self._given(edge.source, edge.source_port)
        if port not in loop.results or end.device == HOST or loop.kind == "map":
            return _ON_HOST
        if not isinstance(self.context.counts[loop.name], int):
            return _ON_HOST  # there are as many parts as iterations, and no more up to a bucket
        capabilities = self.context.groups[end.device].capabilities
        keeps = capabilities.eager and capabilities.refcounted and not self._is_python(edge)
        return end if keeps else _ON_HOST
