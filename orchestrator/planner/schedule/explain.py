"""What finished steps say of dims and edges: which sizes can run, and what each edge does and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from orchestrator.adapter import Adapter
from orchestrator.graph import Edge, NodeKey
from orchestrator.plan.model import DimPlan, PlannedEdge, PlannedValue, Step
from orchestrator.plan.reach import Reach
from orchestrator.planner.context import Draft
from orchestrator.planner.infer.bodies import is_of_items, steps_dim
from orchestrator.planner.schedule.routes import Ways
from orchestrator.specs import TensorSpec, dim_names

__all__ = ["Told"]


class Told:
    """Reads it off.

    Args:
        draft: The plan so far.
        ways: The way of every edge.
        values: All values.
        steps: All steps.
        final: The value that each edge's consumer reads.
    """

    def __init__(
        self,
        draft: Draft,
        ways: Ways,
        values: tuple[PlannedValue, ...],
        steps: tuple[Step, ...],
        final: Mapping[Edge, int],
    ) -> None:
        self.draft = draft
        self.graph = draft.graph
        self.ways = ways
        self.values = values
        self.steps = steps
        self.final = final

    def dim(self, dim: DimPlan) -> DimPlan:
        """Tells whether a dim may be padded, and cut into chunks."""
        pads = [
            adapter
            for edge in self.graph.edges
            for adapter in self.ways.way(edge)
            if adapter.kind == "pad" and dim.name in TensorSpec(adapter.dims).names
        ]
        padded = not dim.any and not dim.exact and all(adapter.rule is not None for adapter in pads)
        if is_of_items(self.graph, dim):
            loop = self.graph.loops[dim.born.rpartition(".")[0]]
            whole = "" if dim.name == str(loop.over[0][1].dims[0]) else "items of a map are padded, never cut"
            return replace(dim, padded=padded, chunked=not whole, whole=whole)
        whole = self._obstacle(dim)
        countless = dim.name not in self._counts and dim.name not in self._steps
        loose = not dim.any and countless and self._is_loose(dim)
        chunked = dim.batch and not dim.unbounded and not loose and not whole
        return replace(dim, padded=padded, chunked=chunked, loose=loose, whole="" if loose else whole)

    def _is_loose(self, dim: DimPlan) -> bool:
        """Tells whether every value with a dim is at its own size: then no stage is compiled for a bucket of it."""
        return all(
            value.real
            for value in self.values
            if isinstance(value.spec, TensorSpec) and dim.name in value.spec.names
        )

    def _obstacle(self, dim: DimPlan) -> str:
        """What stands in the way of running a dim in chunks: all steps for a dim of inputs, regions for a born one."""
        if dim.name in self._steps:
            return "a loop decides it"
        if dim.name in self._counts:
            return f"it is how often loop {self._counts[dim.name]!r} runs"
        if dim.born:
            regions = (step for step in self.steps if dim.name in step.dims)
            blocks = [(step.inputs, step.body, self._named(step.outputs)) for step in regions]
        else:
            ends = {
                f"output {name!r}": self.final[self.graph.into(NodeKey("output", name))[0]]
                for name in self.graph.outputs
            }
            blocks = [(tuple(range(len(self.graph.inputs))), self.steps, ends)]
        for given, steps, outputs in blocks:
            reach = Reach(dim.name, self.draft.dims, self.values, given)
            reach.follow(steps)
            reach.check_outputs(outputs)
            if reach.obstacle:
                return reach.obstacle
        return ""

    def _named(self, indices: Sequence[int]) -> dict[str, int]:
        return {f"{self.values[index].origin!r}": index for index in indices}

    @cached_property
    def _counts(self) -> dict[str, str]:
        """Dims that say how often a loop runs, with the loop: no chunk of its iterations is a loop by itself."""
        return {
            name: loop.name
            for loop in self.graph.loops.values()
            for edge in self.graph.into(NodeKey("enter", loop.name))
            if edge.target_port in loop.each and isinstance(spec := self.draft.sources[edge], TensorSpec)
            for name in dim_names(spec.dims[0])
        }

    @cached_property
    def _steps(self) -> set[str]:
        """Dims that loops decide."""
        return {steps_dim(name) for name in self.graph.loops}

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
