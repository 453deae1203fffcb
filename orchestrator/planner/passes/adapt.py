"""Adapt: values, adapters and steps, in the order of running.

Insertion is local: every edge asks for the way to its consumer, and each prefix of a way is made once, so that
consumers share copies, casts and pads. An adapter runs right before its first reader; a result of the pipeline is
brought home right after it was made. Calls of a region, and what prepares their chunks, go into the region's body.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.adapter import MOVES, Adapter
from orchestrator.graph import Edge, NodeKey
from orchestrator.plan.model import HOST, DimPlan, PlannedEdge, PlannedValue, Step
from orchestrator.planner.draft import Draft
from orchestrator.planner.regions import Region, find_regions
from orchestrator.planner.ways import Ways
from orchestrator.specs import PortSpec, TensorSpec, plain_dims

__all__ = ["adapt"]

Root = tuple[NodeKey, str]
#: The region in whose body a value is made (None: outside all), what it came from, and the way it came.
Made = tuple["Region | None", Root, tuple[Adapter, ...]]


def adapt(draft: Draft) -> Draft:
    """Makes the values and steps of the plan.

    Raises:
        PlanError: A derived size must be cut back, or a born and a bucketed dim meet in one output.
    """
    return _Scheduler(draft).run()


class _Scheduler:
    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.graph = draft.graph
        self.regions = find_regions(draft)
        self.ways = Ways(draft, self.regions)
        self.values: list[PlannedValue] = []
        self.made: dict[Made, int] = {}
        self.steps: list[Step] = []
        self.staging: list[Step] = []
        self.final: dict[Edge, int] = {}

    def run(self) -> Draft:
        for name, spec in self.graph.inputs.items():
            self._root((NodeKey("input", name), ""), PlannedValue(name, spec, HOST, True))
        for name in self.graph.constants:
            node = NodeKey("constant", name)
            for edge in self.graph.out_of(node)[:1]:
                self._root(
                    (node, ""), PlannedValue(name, self.draft.sources[edge], HOST, True, constant=True)
                )
        for unit in self.graph.ordered_units(self.regions):
            if unit[0] in self.regions:
                self._region(self.regions[unit[0]], unit)
            else:
                self._call(unit[0], self.steps)
                self._results(unit[0])
        for edge in self.graph.ordered_edges():
            if edge.target.kind == "output" and edge.source.kind != "call":
                self._realise(edge, self.steps, None)
        dims = {name: self._judge(dim) for name, dim in self.draft.dims.items()}
        return replace(
            self.draft,
            dims=dims,
            values=tuple(self.values),
            steps=tuple(self.steps),
            staging=tuple(self.staging),
            edges=tuple(self._edge(edge) for edge in self.graph.ordered_edges()),
            outputs=tuple(
                (name, self.final[self.graph.into(NodeKey("output", name))[0]]) for name in self.graph.outputs
            ),
        )

    def _root(self, root: Root, value: PlannedValue, region: Region | None = None) -> int:
        self.values.append(value)
        self.made[region, root, ()] = len(self.values) - 1
        return len(self.values) - 1

    def _call(self, name: str, steps: list[Step], region: Region | None = None) -> None:
        call = self.draft.calls[name]
        node = NodeKey("call", name)
        edges = {edge.target_port: edge for edge in self.graph.into(node)}
        inputs = tuple(self._realise(edges[port], steps, region) for port, _ in call.inputs)
        outputs = []
        for port, spec in call.outputs:
            end = self.ways.produced(name, spec)
            settled = not isinstance(spec, TensorSpec) or not self.ways.bucketed(spec)
            value = PlannedValue(f"{name}.{port}", spec, end.memory, end.real or settled)
            outputs.append(self._root((node, port), value, region))
        steps.append(Step("call", name, inputs, tuple(outputs), device=call.device))
        for edge in self.graph.out_of(node):
            self._folded(edge, steps, region)

    def _folded(self, edge: Edge, steps: list[Step], region: Region | None) -> None:
        """Makes what a producer gives adapted right where it gives it."""
        way = self.ways.way(edge)
        if way and way[0].place == "producer":
            self._walk((edge.source, edge.source_port), way, steps, region)

    def _results(self, name: str) -> None:
        """Brings home the outputs that a call feeds."""
        for edge in self.graph.out_of(NodeKey("call", name)):
            if edge.target.kind == "output":
                self._realise(edge, self.steps, None)

    def _region(self, region: Region, calls: tuple[str, ...]) -> None:
        body: list[Step] = []
        for name in calls:
            self._call(name, body, region)
        exits = []
        for edge in (edge for name in calls for edge in self.graph.out_of(NodeKey("call", name))):
            if edge.target.kind != "call" or self.regions.get(edge.target.name) != region:
                exits.append(self._leave(edge, region, body))
        read = {index for step in body for index in step.inputs}
        born = {index for step in body for index in step.outputs}
        inputs = tuple(sorted(read - born))
        outputs = tuple(dict.fromkeys(exits))
        self.steps.append(
            Step("region", ", ".join(region.dims), inputs, outputs, dims=region.dims, body=tuple(body))
        )
        for name in calls:
            self._results(name)

    def _leave(self, edge: Edge, region: Region, body: list[Step]) -> int:
        """Makes, inside the body, the part of a way that belongs there: all up to the cut, and a move home."""
        way = self.ways.way(edge)
        root = (edge.source, edge.source_port)
        end = 0
        if self.ways.leaves(edge):
            end = 1 + max((at for at, adapter in enumerate(way) if adapter.kind == "cut"), default=-1)
            while end < len(way) and way[end].kind == "download":
                end += 1
        elif (
            way
            and way[0].kind in ("download", "gather")
            and self.draft.compiled(self.ways.source(edge).device)
        ):
            end = 1  # the buffer that the value is in is the next call's
        index = self._walk(root, way[:end], body, region)
        self.made[None, root, way[:end]] = index
        return index

    def _realise(self, edge: Edge, steps: list[Step], region: Region | None) -> int:
        """Makes the value an edge's consumer reads; what does not hang on a region's chunks is made outside it."""
        spec = self.draft.sources[edge]
        if edge.source.kind == "constant":
            steps, region = self.staging, None
        elif region and not (isinstance(spec, TensorSpec) and set(spec.names) & set(region.dims)):
            inside = edge.source.kind == "call" and self.regions.get(edge.source.name) == region
            steps, region = (steps, region) if inside else (self.steps, None)
        self.final[edge] = self._walk((edge.source, edge.source_port), self.ways.way(edge), steps, region)
        return self.final[edge]

    def _walk(self, root: Root, way: tuple[Adapter, ...], steps: list[Step], region: Region | None) -> int:
        """Follows a way from the furthest point on it that exists already."""
        end = len(way)
        while (index := self._find(root, way[:end], region)) is None:
            end -= 1
        for stop in range(end + 1, len(way) + 1):
            index = self._adapt(index, way[stop - 1], steps)
            self.made[region, root, way[:stop]] = index
        return index

    def _find(self, root: Root, way: tuple[Adapter, ...], region: Region | None) -> int | None:
        index = self.made.get((region, root, way))
        return self.made.get((None, root, way)) if index is None else index

    def _adapt(self, source: int, adapter: Adapter, steps: list[Step]) -> int:
        value = self.values[source]
        assert isinstance(value.spec, TensorSpec)
        memory = self._memory(adapter.device) if adapter.kind in MOVES else value.memory
        real = adapter.kind == "cut" or (value.real and not adapter.to_bucket)
        device = adapter.device if adapter.kind in ("upload", "copy") else value.memory
        self.values.append(
            PlannedValue(value.origin, adapter.result(value.spec), memory, real, value.constant)
        )
        steps.append(Step("adapt", value.origin, (source,), (len(self.values) - 1,), adapter, device))
        return len(self.values) - 1

    def _memory(self, device: str) -> str:
        if device == HOST or self.draft.groups[device].capabilities.host_memory:
            return HOST
        return device

    def _judge(self, dim: DimPlan) -> DimPlan:
        """Whether a dim may be padded and cut into chunks."""
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
        return replace(
            dim, padded=padded, chunked=not dim.any and all(self._joins(spec, dim) for spec in carried)
        )

    def _joins(self, spec: PortSpec, dim: DimPlan) -> bool:
        """Tells whether chunks of a value can be joined along a dim."""
        if not isinstance(spec, TensorSpec):
            return False
        others = [name for name in spec.names if name != dim.name]
        ragged = not dim.born and any(self.draft.dims[name].born for name in others)
        return plain_dims(spec.dims).count(dim.name) == 1 and not ragged

    def _edge(self, edge: Edge) -> PlannedEdge:
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
            self.final[edge],
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
