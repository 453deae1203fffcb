"""A pipeline's results the slow and obvious way, for tests to compare with.

A frozen graph is walked from its inputs: every call is made by calling its stage's own module with the values of its
ports, at the sizes of the request, without buckets, devices, plan or runner. Only what a port's declaration asks for
is done on the way: fixed sizes are padded or cut, dtypes cast.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from orchestrator.graph import Edge, Graph
from orchestrator.specs import AnyDim, Dim, Pad, PortSpec, TensorSpec
from orchestrator.stage import Stage

__all__ = ["run_by_hand"]


def run_by_hand(graph: Graph, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a pipeline gives for one request.

    Args:
        graph: ``pipeline.graph``.
        inputs: Values by input name.

    Returns:
        Values by output name.
    """
    return _Walk(graph, inputs).run()


class _Walk:
    def __init__(self, graph: Graph, inputs: Mapping[str, Any]) -> None:
        self.graph = graph
        self.values: dict[tuple[str, str, str], Any] = {}
        self.sizes: dict[str, int] = {}
        for name, spec in graph.inputs.items():
            self.values["input", name, ""] = inputs[name]
            self._learn(spec, inputs[name])
        for name, value in graph.constants.items():
            self.values["constant", name, ""] = value

    def run(self) -> dict[str, Any]:
        waiting = list(self.graph.calls)
        with torch.no_grad():
            while waiting:
                ready = [name for name in waiting if all(map(self._has, self._into("call", name)))]
                assert ready, f"nothing feeds {waiting}"
                for name in ready:
                    self._call(name)
                waiting = [name for name in waiting if name not in ready]
        return {name: self._fetch(self._into("output", name)[0], None) for name in self.graph.outputs}

    def _into(self, kind: str, name: str) -> list[Edge]:
        return [edge for edge in self.graph.edges if (edge.target.kind, edge.target.name) == (kind, name)]

    def _has(self, edge: Edge) -> bool:
        return edge.source.kind != "call" or ("done", edge.source.name, "") in self.values

    def _call(self, name: str) -> None:
        stage = self.graph.calls[name].stage
        ports = {port.name: port.spec for port in stage.inputs}
        fed = {
            edge.target_port: self._fetch(edge, ports[edge.target_port]) for edge in self._into("call", name)
        }
        for port, value in _name_outputs(stage, _call_module(stage, fed)).items():
            self.values["call", name, port] = value
        for item in stage.outputs:
            self._learn(item.spec, self.values["call", name, item.name])
        self.values["done", name, ""] = True

    def _learn(self, spec: PortSpec | None, value: Any) -> None:
        """Notes the sizes of names that a value brings in."""
        if isinstance(spec, TensorSpec):
            for dim, size in zip(spec.dims, value.shape, strict=True):
                if isinstance(dim, (str, Dim)):
                    self.sizes.setdefault(str(dim), size)

    def _fetch(self, edge: Edge, port: PortSpec | None) -> Any:
        value = self.values[edge.source.kind, edge.source.name, edge.source_port]
        for spec in (*edge.via, port):
            if isinstance(spec, TensorSpec) and isinstance(value, torch.Tensor):
                value = self._fit(value, spec)
        return value

    def _fit(self, value: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
        sizes = [self._size(dim, value.shape[axis]) for axis, dim in enumerate(spec.dims)]
        for axis, size in enumerate(sizes):
            if value.shape[axis] > size:
                value = value[(slice(None),) * axis + (slice(0, size),)]
        value = value.to(spec.dtype)
        for axis, size in enumerate(sizes):
            if value.shape[axis] < size:
                value = _grow(value, axis, size, spec.pad)
        return value

    def _size(self, dim: AnyDim, given: int) -> int:
        return dim if isinstance(dim, int) else self.sizes.get(str(dim), given)


def _grow(value: torch.Tensor, axis: int, size: int, rule: Pad) -> torch.Tensor:
    """Appends slices, one by one."""
    if rule == "repeat_first":
        piece = value.select(axis, 0)
    else:
        assert isinstance(rule, (int, float)), "a value is too small for its port, which has no pad rule"
        piece = torch.full_like(value.select(axis, 0), rule)
    return torch.cat([value, torch.stack([piece] * (size - value.shape[axis]), axis)], axis)


def _call_module(stage: Stage, fed: Mapping[str, Any]) -> Any:
    """Calls a stage's own module with values by port: by position up to the first port that is left out."""
    ports = [port for port in stage.inputs if not port.keyword]
    count = next((at for at, port in enumerate(ports) if port.name not in fed), len(ports))
    positional = [port.name for port in ports[:count]]
    named = {name: value for name, value in fed.items() if name not in positional}
    return stage.target(*(fed[name] for name in positional), **named)


def _name_outputs(stage: Stage, given: Any) -> dict[str, Any]:
    names = [port.name for port in stage.outputs] or ["output"]
    if isinstance(given, Mapping) and (not stage.outputs or set(names) <= set(given)):
        return dict(given)
    if len(names) == 1:
        return {names[0]: given}
    return dict(zip(names, given, strict=True))
