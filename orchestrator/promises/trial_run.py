"""A run by hand that tries the promises at each call as it comes by, on the exact inputs of the call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from orchestrator.difference import difference
from orchestrator.errors import StageError
from orchestrator.graph import BranchLoop, Edge, Graph, Loop, MapLoop
from orchestrator.plan.model import Plan
from orchestrator.plan.records import DimPlan, PlannedCall
from orchestrator.plan.steps import HOST
from orchestrator.planner.schedule.padding import counting_dims
from orchestrator.promises.batch_trial import BatchTrial
from orchestrator.promises.call_trial import CallTrial, CheckContext
from orchestrator.promises.padding import (
    Versions,
    next_bucket,
    overlay,
    pad_along_edge,
    padded_dims,
    smaller_size,
)
from orchestrator.promises.reference import ReferenceRun
from orchestrator.promises.stage_runner import StageRunner
from orchestrator.specs import PortSpec, TensorSpec, plain_dims

__all__ = ["TrialRun"]

#: Iterations of a loop in which its stages are tried.
TRIED_ITERATIONS = 2
#: Items of a map in the batch on which its stages are tried.
TRIED_ITEMS = 3


class TrialRun(ReferenceRun):
    """One request by hand, with everything that the promises allow tried on the way.

    Args:
        graph: The graph.
        plan: Its plan, which has the named dims and the pad rules.
        inputs: The request.
        stage_runner: Runs the stages.
        tolerance: The largest relative difference that counts as equal; None: by dtype.

    Attributes:
        context: The check, with its rows.
        call_names: Calls that ran.
    """

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        inputs: Mapping[str, Any],
        stage_runner: StageRunner,
        tolerance: float | None,
    ) -> None:
        super().__init__(graph, inputs)
        self.plan = plan
        self.context = CheckContext(graph, plan, stage_runner, tolerance)
        self.call_names: set[str] = set()
        self._stage_runner = stage_runner
        self._plan_calls = {call.name: call for call in plan.calls}
        self._edges = {str(edge): edge for edge in plan.edges}
        self._dims = {dim.name: dim for dim in plan.dims}
        self._padded_dims = padded_dims(plan, counting_dims(graph, self._source))
        # Versions live beside the exact values; those of outputs are kept for iterations that are not tried.
        self._versions = Versions()
        self._last: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
        self._unsteady: dict[str, bool] = {}
        self._maps_in_trial: list[str] = []

    def _source(self, edge: Edge) -> PortSpec | None:
        plan_edge = self._edges.get(str(edge))
        return None if plan_edge is None else plan_edge.spec

    # What happens between calls: versions go where the exact values go.

    def fetch(self, edge: Edge, port: PortSpec | None) -> Any:
        """Returns the exact value at the end of an edge, with the versions that it has there."""
        source = self.values[edge.source, edge.source_port]
        value = super().fetch(edge, port)
        plan_edge = self._edges.get(str(edge))
        if plan_edge is None or not isinstance(value, torch.Tensor) or self._is_host(edge):
            return value
        # A version that came along is adapted like the exact value; where none did, the plan's padding begins one. What
        # is cut loses its padding, and with it its versions.
        cut = any(adapter.kind == "cut" for adapter in plan_edge.adapters)
        versions: dict[str, torch.Tensor] = {}
        for dim in self._padded_dims:
            before = None if cut else self._versions.of(source).get(dim.name)
            bucket = self._bucket(dim)
            if before is not None:
                versions[dim.name] = self._fit_version(before, edge, port, dim.name)
            elif bucket is not None:
                version = pad_along_edge(value, plan_edge, dim.name, self.sizes, bucket)
                versions |= {} if version is None else {dim.name: version}
        return self._versions.keep(value, versions) if versions or not cut else value.detach()

    def slice(self, value: Any, at: int) -> Any:
        """Returns one slice, with the slices of its versions."""
        versions = {name: version[at] for name, version in self._versions.of(value).items()}
        return self._versions.keep(super().slice(value, at), versions)

    def stack(self, parts: list[Any], sample: Any) -> Any:
        """Stacks parts, and the versions that all of them have."""
        joint = super().stack(parts, sample)
        if not isinstance(joint, torch.Tensor) or not parts:
            return joint
        names = set.intersection(*(set(self._versions.of(part)) for part in parts))
        versions = {
            name: torch.stack([self._versions.of(part)[name] for part in parts]) for name in sorted(names)
        }
        return self._versions.keep(joint, versions)

    def map(self, loop: Loop) -> None:
        """Tries the body on one batch of items, and then runs it item by item."""
        edges = self.ports(loop)
        lists = {port: list(self.fetch(edges[port], None)) for port, _ in loop.over}
        items = list(zip(*lists.values(), strict=True))
        # The plan runs a batch of items at once, padded: one such batch, of items alike in shape, is tried. Names of
        # the body's dims have its sizes meanwhile, and are put back before the items run one by one.
        if items and self._is_tried(loop.within):
            before = dict(self.sizes)
            alike = [row for row in items if [one.shape for one in row] == [one.shape for one in items[0]]]
            pairs = zip(loop.over, zip(*alike[: self._items(loop)], strict=True), strict=True)
            batch = {port: self._smaller(spec, torch.stack(parts)) for (port, spec), parts in pairs}
            for port, spec in loop.over:
                self._enter(spec, batch[port])
            self._maps_in_trial.append(loop.name)
            self.iterate(loop, batch)
            self._maps_in_trial.pop()
            self.sizes = before
        super().map(loop)

    def _items(self, loop: Loop) -> int:
        """How many items are tried in one batch: so many that the batch is padded, if there are."""
        dim = self._dims[str(plain_dims(loop.over[0][1].dims)[0])]
        return TRIED_ITEMS if next_bucket(dim, TRIED_ITEMS) is not None else smaller_size(dim) or 1

    def _smaller(self, spec: TensorSpec, value: torch.Tensor) -> torch.Tensor:
        """Cuts a value at its largest bucket to a size that is padded."""
        for axis, name in enumerate(plain_dims(spec.dims)):
            dim = self._dims.get(name) if isinstance(name, str) else None
            if dim in self._padded_dims and dim is not None and value.shape[axis] >= dim.buckets[-1]:
                value = value.narrow(axis, 0, smaller_size(dim) or value.shape[axis])
        return value.contiguous()

    def _enter(self, spec: TensorSpec, value: torch.Tensor) -> None:
        for dim, size in zip(plain_dims(spec.dims), value.shape, strict=True):
            if isinstance(dim, str):
                self.sizes[dim] = size

    def _is_host(self, edge: Edge) -> bool:
        if edge.target.kind == "output":
            return True
        return edge.target.kind == "call" and self._plan_calls[edge.target.name].device == HOST

    def _bucket(self, dim: DimPlan) -> int | None:
        size = self.sizes.get(dim.name)
        return None if not size else next_bucket(dim, size)

    def _fit_version(
        self, version: torch.Tensor, edge: Edge, port: PortSpec | None, name: str
    ) -> torch.Tensor:
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

    def call(self, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Runs a call on the exact values, and tries it where it is watched."""
        self.call_names.add(name)
        stage, plan_call = self.graph.calls[name].stage, self._plan_calls[name]
        outputs = self._with_smaller_sizes(plan_call, self._exact_outputs(name, arguments))
        inner = self._loops_around(name)
        is_tried = self._is_tried(self.graph.calls[name].loop)
        flowing = is_tried or self._flows(inner)
        if not flowing:
            return {port: self._with_last_padding(name, port, value) for port, value in outputs.items()}
        trial = CallTrial(
            self.context,
            stage,
            plan_call,
            arguments,
            outputs,
            dict(self.sizes),
            self._unsteady.get(name, False),
        )
        versions: dict[str, dict[str, torch.Tensor]] = {}
        if not stage.host:
            versions = trial.pads(self._padded_dims, self._by_dim(arguments), is_tried=is_tried)
        # A host stage sees all items of a dim that a stage decides, and a batch of those of a request or a map.
        for dim in self.plan.dims if is_tried else ():
            if dim.batch and (not stage.host or not dim.decided_by or self._maps_in_trial):
                BatchTrial(trial, dim).run()
        results = {
            port: self._versions.keep(value, versions.get(port, {})) for port, value in outputs.items()
        }
        self._last |= {(name, port): versions.get(port, {}) for port in outputs}
        return results

    def _exact_outputs(self, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the outputs for the exact inputs; the first time the call runs twice, to see whether it is steady.

        Raises:
            StageError: It raises.
        """
        # A session runs no stage on a device without items, so what such a stage raises by hand is no fault.
        stage, device = self.graph.calls[name].stage, self._plan_calls[name].device
        try:
            outputs = self._stage_runner.run(stage, device, arguments)
            if name not in self._unsteady and self._is_tried(self.graph.calls[name].loop):
                again = self._stage_runner.run(stage, device, arguments)
                self._unsteady[name] = not difference(again, outputs, None)[0]
        except Exception as error:
            if device != HOST and (nothing := self._empty_outputs(name)):
                return nothing
            raise StageError(
                f"Stage {stage.name!r} (call {name!r}) raised while it was called by hand, at {_at(self.sizes)}: "
                f"{type(error).__name__}: {error}",
                stage=stage.name,
                call=name,
            ) from error
        return outputs

    def _empty_outputs(self, name: str) -> dict[str, Any]:
        """Returns the outputs of a call that a session would not run, for want of items; empty: it would run it."""
        plan_call = self._plan_calls[name]
        names = {dim for _, spec in plan_call.inputs if isinstance(spec, TensorSpec) for dim in spec.names}
        if all(self.sizes.get(dim, 1) for dim in names):
            return {}
        return {
            port: torch.empty(spec.shape(self.sizes), dtype=spec.dtype)
            for port, spec in plan_call.outputs
            if isinstance(spec, TensorSpec)
        }

    def _with_smaller_sizes(self, plan_call: PlannedCall, outputs: dict[str, Any]) -> dict[str, Any]:
        """Cuts outputs whose size the stage decides to a size that is padded, where they fill the largest bucket."""
        for port, spec in plan_call.outputs if plan_call.is_declared else ():
            value = outputs.get(port)
            if not isinstance(spec, TensorSpec) or not isinstance(value, torch.Tensor) or self._maps_in_trial:
                continue
            for axis, dim in enumerate(plain_dims(spec.dims)):
                plan_dim = self._dims.get(dim) if isinstance(dim, str) else None
                if plan_dim is None or not plan_dim.decided_by or plan_dim not in self._padded_dims:
                    continue
                if value.shape[axis] >= plan_dim.buckets[-1] and (size := smaller_size(plan_dim)):
                    value = value.narrow(axis, 0, size).contiguous()
            outputs = {**outputs, port: value}
        return outputs

    def _by_dim(self, arguments: Mapping[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
        """Returns the versions of a call's inputs, by dim and port."""
        versions: dict[str, dict[str, torch.Tensor]] = {}
        for port, value in arguments.items():
            for name, version in self._versions.of(value).items():
                versions.setdefault(name, {})[port] = version
        return versions

    def _loops_around(self, name: str) -> list[Loop]:
        loops, around = [], self.graph.calls[name].loop
        while around:
            loops.append(self.graph.loops[around])
            around = loops[-1].within
        return loops

    def _is_tried(self, around: str) -> bool:
        """Tells whether stages directly in a loop, or in none, are tried now."""
        while around:
            loop = self.graph.loops[around]
            match loop:
                case MapLoop():
                    goes_on = around in self._maps_in_trial
                case BranchLoop():
                    goes_on = True
                case _:
                    goes_on = self.counts.get(around, 0) < TRIED_ITERATIONS
            if not goes_on:
                return False
            around = loop.within
        return True

    def _flows(self, loops: list[Loop]) -> bool:
        """Tells whether padding is followed through every iteration: it may decide when the loop ends."""
        return all(map(self._is_followed, loops))

    def _is_followed(self, loop: Loop) -> bool:
        match loop:
            case MapLoop():
                return loop.name in self._maps_in_trial
            case BranchLoop():
                return True
        return bool(loop.until) or self.counts.get(loop.name, 0) < TRIED_ITERATIONS

    def _with_last_padding(self, name: str, port: str, value: Any) -> Any:
        """A value of an iteration that is not watched, in the padding of the last one that was."""
        last = self._last.get((name, port), {})
        pairs = (
            (dim, overlay(version, value)) for dim, version in last.items() if isinstance(value, torch.Tensor)
        )
        versions = {dim: version for dim, version in pairs if version is not None}
        return self._versions.keep(value, versions) if versions else value


def _at(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items()) or "its fixed sizes"
