"""What finished steps say of dims and edges: which sizes can run, and what each edge does and costs."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.adapter import Adapter
from orchestrator.graph import Edge, NodeKey
from orchestrator.plan.model import DimPlan, PlannedEdge, PlannedValue, Step
from orchestrator.planner.draft import Draft
from orchestrator.planner.loops import steps_dim
from orchestrator.planner.ways import Ways
from orchestrator.specs import PortSpec, TensorSpec, dim_names, plain_dims

__all__ = ["Told"]


class Told:
    """Reads it off.

    Args:
        draft: The plan so far.
        ways: The way of every edge.
        values: All values.
        steps: All steps.
    """

    def __init__(
        self, draft: Draft, ways: Ways, values: tuple[PlannedValue, ...], steps: tuple[Step, ...]
    ) -> None:
        self.draft = draft
        self.graph = draft.graph
        self.ways = ways
        self.values = values
        self.steps = steps

    def dim(self, dim: DimPlan) -> DimPlan:
        """Tells whether a dim may be padded and cut into chunks."""
        pads = [
            adapter
            for edge in self.graph.edges
            for adapter in self.ways.way(edge)
            if adapter.kind == "pad" and dim.name in TensorSpec(adapter.dims).names
        ]
        padded = not dim.any and all(adapter.rule is not None for adapter in pads)
        if dim.born:
            carried = [
                self.values[index].spec
                for step in self.steps
                if dim.name in step.dims
                for index in step.outputs
            ]
        else:
            carried = [
                self.draft.sources[self.graph.into(NodeKey("output", name))[0]] for name in self.graph.outputs
            ]
        whole = dim.any or dim.name in self._counts()
        return replace(
            dim, padded=padded, chunked=not whole and all(self._joins(spec, dim) for spec in carried)
        )

    def _counts(self) -> set[str]:
        """Names that say how often a loop runs: no chunk of its iterations is a loop by itself."""
        slices = [
            self.draft.sources[edge]
            for loop in self.graph.loops.values()
            for edge in self.graph.into(NodeKey("enter", loop.name))
            if edge.target_port in loop.each
        ]
        names = {name for spec in slices if isinstance(spec, TensorSpec) for name in dim_names(spec.dims[0])}
        return names | {steps_dim(name) for name in self.graph.loops}

    def _joins(self, spec: PortSpec, dim: DimPlan) -> bool:
        """Tells whether chunks of a value can be joined along a dim."""
        if not isinstance(spec, TensorSpec):
            return False
        others = [name for name in spec.names if name != dim.name]
        counts = {steps_dim(name) for name in self.graph.loops}
        ragged = any(name in counts or (self.draft.dims[name].born and not dim.born) for name in others)
        return plain_dims(spec.dims).count(dim.name) == 1 and not ragged

    def edge(self, edge: Edge, value: int) -> PlannedEdge:
        """Explains an edge, given the value that its consumer reads."""
        way = self.ways.way(edge)
        spec = self.draft.sources[edge]
        residency, reason = self.draft.residencies[edge]
        size = spec.nbytes(self.draft.largest) if isinstance(spec, TensorSpec) else 0
        return PlannedEdge(
            edge.origin,
            edge.destination,
            spec,
            residency,
            size,
            way,
            reason,
            self._cost(edge, way, size),
            value,
        )

    def _cost(self, edge: Edge, way: tuple[Adapter, ...], size: int) -> float:
        """Estimated microseconds on the link, and to start a program for adapters alone."""
        total = 0.0
        for adapter in way:
            group = adapter.device if adapter.kind == "upload" else self.ways.source(edge).device
            if group not in self.draft.groups:
                continue
            capabilities = self.draft.groups[group].capabilities
            if adapter.kind in ("upload", "download", "gather"):
                copies = 1 if adapter.kind == "download" else capabilities.ranks
                total += capabilities.link.seconds(size * copies) * 1e6
            if adapter.place == "program":
                total += capabilities.link.dispatch_seconds * 1e6
        return round(total, 3)
