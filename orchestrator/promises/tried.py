"""A walk that tries the promises at each call as it comes by, on the exact values that the call is fed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from orchestrator.errors import StageError
from orchestrator.graph import Edge, Graph, Loop
from orchestrator.plan.model import HOST, DimPlan, Plan, PlannedCall
from orchestrator.planner.schedule.padding import counting_dims
from orchestrator.promises.batched import BatchTrial
from orchestrator.promises.calls import CallTrial, Trials
from orchestrator.promises.measure import difference
from orchestrator.promises.padding import Versions, grown, next_bucket, overlaid, padded_dims, smaller_size
from orchestrator.promises.targets import Targets
from orchestrator.promises.walk import Walk
from orchestrator.specs import PortSpec, TensorSpec, plain_dims

__all__ = ["Trial"]

#: Iterations of a loop in which its stages are tried.
WATCHED = 2
#: Items of a map in the batch on which its stages are tried.
ITEMS = 3


class Trial(Walk):
    """One request by hand, with everything that the promises allow tried on the way.

    Args:
        graph: The graph.
        plan: Its plan, which says what named dims and pad rules there are.
        inputs: The request.
        targets: What runs the stages.
        tolerance: The largest relative difference that counts as equal; None: by dtype.

    Attributes:
        trials: What was found.
        visited: Calls that ran.
    """

    def __init__(
        self, graph: Graph, plan: Plan, inputs: Mapping[str, Any], targets: Targets, tolerance: float | None
    ) -> None:
        super().__init__(graph, inputs)
        self.plan = plan
        self.trials = Trials(graph, plan, targets, tolerance)
        self.visited: set[str] = set()
        self._targets = targets
        self._planned = {call.name: call for call in plan.calls}
        self._edges = {str(edge): edge for edge in plan.edges}
        self._dims = {dim.name: dim for dim in plan.dims}
        self._padded = padded_dims(plan, counting_dims(graph, self._source))
        self._versions = Versions()
        self._last: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
        self._unsteady: dict[str, bool] = {}
        self._mapped: list[str] = []

    def _source(self, edge: Edge) -> PortSpec | None:
        planned = self._edges.get(str(edge))
        return None if planned is None else planned.spec

    # What happens between calls: versions go where the exact values go.

    def fetch(self, edge: Edge, port: PortSpec | None) -> Any:
        """Returns the exact value at the end of an edge, with the versions that it has there."""
        source = self.values[edge.source, edge.source_port]
        value = super().fetch(edge, port)
        planned = self._edges.get(str(edge))
        if planned is None or not isinstance(value, torch.Tensor) or self._is_host(edge):
            return value
        cut = any(adapter.kind == "cut" for adapter in planned.adapters)
        versions: dict[str, torch.Tensor] = {}
        for dim in self._padded:
            before = None if cut else self._versions.of(source).get(dim.name)
            bucket = self._bucket(dim)
            if before is not None:
                versions[dim.name] = self._fitted(before, edge, port, dim.name)
            elif bucket is not None:
                version = grown(value, planned, dim.name, self.sizes, bucket)
                versions |= {} if version is None else {dim.name: version}
        return self._versions.keep(value, versions) if versions or not cut else value.detach()

    def slice(self, value: Any, at: int) -> Any:
        """Returns one slice, with the slices of its versions."""
        versions = {name: version[at] for name, version in self._versions.of(value).items()}
        return self._versions.keep(super().slice(value, at), versions)

    def stack(self, parts: list[Any], sample: Any) -> Any:
        """Stacks parts, and the versions that all of them have."""
        made = super().stack(parts, sample)
        if not isinstance(made, torch.Tensor) or not parts:
            return made
        names = set.intersection(*(set(self._versions.of(part)) for part in parts))
        versions = {
            name: torch.stack([self._versions.of(part)[name] for part in parts]) for name in sorted(names)
        }
        return self._versions.keep(made, versions)

    def map(self, loop: Loop) -> None:
        """Tries the body on one batch of items, and then runs it item by item."""
        edges = self.ports(loop)
        lists = {port: list(self.fetch(edges[port], None)) for port, _ in loop.over}
        items = list(zip(*lists.values(), strict=True))
        if items and self._is_watched(loop.within):
            before = dict(self.sizes)
            alike = [row for row in items if [one.shape for one in row] == [one.shape for one in items[0]]]
            pairs = zip(loop.over, zip(*alike[: self._items(loop)], strict=True), strict=True)
            batch = {port: self._smaller(spec, torch.stack(parts)) for (port, spec), parts in pairs}
            for port, spec in loop.over:
                self._enter(spec, batch[port])
            self._mapped.append(loop.name)
            self.iterate(loop, batch)
            self._mapped.pop()
            self.sizes = before
        super().map(loop)

    def _items(self, loop: Loop) -> int:
        """How many items are tried in one batch: so many that the batch is padded, if there are."""
        dim = self._dims[str(plain_dims(loop.over[0][1].dims)[0])]
        return ITEMS if next_bucket(dim, ITEMS) is not None else smaller_size(dim) or 1

    def _smaller(self, spec: TensorSpec, value: torch.Tensor) -> torch.Tensor:
        """Cuts what is at its largest bucket to a size that is padded."""
        for axis, name in enumerate(plain_dims(spec.dims)):
            dim = self._dims.get(name) if isinstance(name, str) else None
            if dim in self._padded and dim is not None and value.shape[axis] >= dim.buckets[-1]:
                value = value.narrow(axis, 0, smaller_size(dim) or value.shape[axis])
        return value.contiguous()

    def _enter(self, spec: TensorSpec, value: torch.Tensor) -> None:
        for dim, size in zip(plain_dims(spec.dims), value.shape, strict=True):
            if isinstance(dim, str):
                self.sizes[dim] = size

    def _is_host(self, edge: Edge) -> bool:
        if edge.target.kind == "output":
            return True
        return edge.target.kind == "call" and self._planned[edge.target.name].device == HOST

    def _bucket(self, dim: DimPlan) -> int | None:
        size = self.sizes.get(dim.name)
        return None if not size else next_bucket(dim, size)

    def _fitted(self, version: torch.Tensor, edge: Edge, port: PortSpec | None, name: str) -> torch.Tensor:
        exact, bucket = self.sizes[name], self._bucket(self._dims[name])
        self.sizes[name] = bucket or exact
        try:
            for spec in (*edge.constraints, port):
                if isinstance(spec, TensorSpec):
                    version = self.fit(version, spec)
        finally:
            self.sizes[name] = exact
        return version

    # What happens at a call.

    def call(self, name: str, fed: Mapping[str, Any]) -> dict[str, Any]:
        """Runs a call on the exact values, and tries it where it is watched."""
        self.visited.add(name)
        stage, planned = self.graph.calls[name].stage, self._planned[name]
        given = self._shortened(planned, self._exactly(name, fed))
        inner = self._loops_around(name)
        watched = self._is_watched(self.graph.calls[name].loop)
        flowing = watched or self._flows(inner)
        if not flowing:
            return {port: self._renewed(name, port, value) for port, value in given.items()}
        trial = CallTrial(
            self.trials, stage, planned, fed, given, dict(self.sizes), self._unsteady.get(name, False)
        )
        made: dict[str, dict[str, torch.Tensor]] = {}
        if not stage.host:
            made = trial.pads(self._padded, self._by_dim(fed), watched=watched)
        # A host stage sees all items of a dim that a stage decides, and a batch of those of a request or a map.
        for dim in self.plan.dims if watched else ():
            if dim.batch and (not stage.host or not dim.born or self._mapped):
                BatchTrial(trial, dim).run()
        kept = {port: self._versions.keep(value, made.get(port, {})) for port, value in given.items()}
        self._last |= {(name, port): made.get(port, {}) for port in given}
        return kept

    def _exactly(self, name: str, fed: Mapping[str, Any]) -> dict[str, Any]:
        """What a call gives for the exact values; the first time it is asked twice.

        Raises:
            StageError: It raises.
        """
        stage, device = self.graph.calls[name].stage, self._planned[name].device
        try:
            given = self._targets.run(stage, device, fed)
            if name not in self._unsteady and self._is_watched(self.graph.calls[name].loop):
                again = self._targets.run(stage, device, fed)
                self._unsteady[name] = not difference(again, given, None)[0]
        except Exception as error:
            if device != HOST and (nothing := self._nothing(name)):
                return nothing
            raise StageError(
                f"Stage {stage.name!r} (call {name!r}) raised while it was called by hand, at {_at(self.sizes)}: "
                f"{type(error).__name__}: {error}",
                stage=stage.name,
                call=name,
            ) from error
        return given

    def _nothing(self, name: str) -> dict[str, Any]:
        """What a call gives that a session would not run, since there are no items; empty: it would."""
        planned = self._planned[name]
        names = {dim for _, spec in planned.inputs if isinstance(spec, TensorSpec) for dim in spec.names}
        if all(self.sizes.get(dim, 1) for dim in names):
            return {}
        return {
            port: torch.empty(spec.shape(self.sizes), dtype=spec.dtype)
            for port, spec in planned.outputs
            if isinstance(spec, TensorSpec)
        }

    def _shortened(self, planned: PlannedCall, given: dict[str, Any]) -> dict[str, Any]:
        """Cuts what a stage decided to a size that is padded, where it is at the largest bucket or above it."""
        for port, spec in planned.outputs if planned.declared else ():
            value = given.get(port)
            if not isinstance(spec, TensorSpec) or not isinstance(value, torch.Tensor) or self._mapped:
                continue
            for axis, dim in enumerate(plain_dims(spec.dims)):
                known = self._dims.get(dim) if isinstance(dim, str) else None
                if known is None or not known.born or known not in self._padded:
                    continue
                if value.shape[axis] >= known.buckets[-1] and (size := smaller_size(known)):
                    value = value.narrow(axis, 0, size).contiguous()
            given = {**given, port: value}
        return given

    def _by_dim(self, fed: Mapping[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
        """Versions of what a call is fed with, by dim and port."""
        found: dict[str, dict[str, torch.Tensor]] = {}
        for port, value in fed.items():
            for name, version in self._versions.of(value).items():
                found.setdefault(name, {})[port] = version
        return found

    def _loops_around(self, name: str) -> list[Loop]:
        loops, around = [], self.graph.calls[name].loop
        while around:
            loops.append(self.graph.loops[around])
            around = loops[-1].within
        return loops

    def _is_watched(self, around: str) -> bool:
        """Tells whether stages directly in a loop, or in none, are tried now."""
        while around:
            loop = self.graph.loops[around]
            if loop.kind == "map" and around not in self._mapped:
                return False
            if loop.kind == "loop" and self.counts.get(around, 0) >= WATCHED:
                return False
            around = loop.within
        return True

    def _flows(self, loops: list[Loop]) -> bool:
        """Tells whether padding is followed through every iteration: it may decide when the loop ends."""
        ends = all(
            loop.until or self.counts.get(loop.name, 0) < WATCHED for loop in loops if loop.kind == "loop"
        )
        return ends and all(loop.name in self._mapped for loop in loops if loop.kind == "map")

    def _renewed(self, name: str, port: str, value: Any) -> Any:
        """A value of an iteration that is not watched, in the padding of the last one that was."""
        last = self._last.get((name, port), {})
        pairs = (
            (dim, overlaid(version, value))
            for dim, version in last.items()
            if isinstance(value, torch.Tensor)
        )
        versions = {dim: version for dim, version in pairs if version is not None}
        return self._versions.keep(value, versions) if versions else value


def _at(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items()) or "its fixed sizes"
