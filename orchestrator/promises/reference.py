"""A pipeline's results the slow and obvious way: the reference of every plan.

A frozen graph is walked from its inputs: every call is made by calling its stage's own module with the values of its
ports, at the sizes of the request, without buckets, devices, plan or runner. Only what a port's declaration asks for
is done on the way: fixed sizes are padded or cut, dtypes cast. A loop is a Python loop over its body, and what it
collects a Python list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from orchestrator.graph import (
    CONDITION,
    BranchLoop,
    Edge,
    Graph,
    Loop,
    MapLoop,
    NodeKey,
    next_port,
    stacked_port,
    until_port,
)
from orchestrator.specs import AnyDim, Dim, Pad, PortSpec, TensorSpec
from orchestrator.stage import Stage

__all__ = ["ReferenceRun", "call_target", "named_outputs", "run_reference"]


class ReferenceRun:
    """One request on its way through a graph.

    Subclasses look at calls by overriding :meth:`call`, and at tensors on their way between calls by overriding
    :meth:`slice`, :meth:`stack` and :meth:`fit`.

    Args:
        graph: ``pipeline.freeze()``.
        inputs: Values by input name; an optional one may be missing, or None.

    Attributes:
        values: Values so far, by node and port; inside of a loop, those of the current iteration.
        sizes: Sizes of named dims.
        counts: Iterations of each loop that is running, counted from 0.
    """

    def __init__(self, graph: Graph, inputs: Mapping[str, Any]) -> None:
        self.graph = graph
        self.values: dict[tuple[NodeKey, str], Any] = {}
        self.sizes: dict[str, int] = {}
        self.counts: dict[str, int] = {}
        for name, spec in graph.inputs.items():
            value = inputs.get(name) if name in graph.optional else inputs[name]
            self.values[NodeKey("input", name), ""] = value
            self._learn(spec, value)
        for name, value in graph.constants.items():
            self.values[NodeKey("constant", name), ""] = value

    def run(self) -> dict[str, Any]:
        """Returns values by output name."""
        with torch.no_grad():
            self._body("")
        outputs = {name: self.graph.into(NodeKey("output", name))[0] for name in self.graph.outputs}
        return {name: self.fetch(edge, None) for name, edge in outputs.items()}

    def _body(self, loop: str) -> None:
        """Runs what is directly in a loop, or in none: each call and each loop as soon as all it reads is there."""
        nodes = [*(NodeKey("call", name) for name in self.graph.calls), *self._loops()]
        waiting = [node for node in nodes if self.graph.scope(node) == loop]
        while waiting:
            ready = [node for node in waiting if all(map(self._has, self.read(node, loop)))]
            assert ready, f"nothing feeds {waiting}"
            for node in ready:
                match self.graph.loops.get(node.name) if node.kind == "enter" else None:
                    case None:
                        self._call(node.name)
                    case MapLoop() as items_map:
                        self.map(items_map)
                    case BranchLoop() as branch:
                        self._branch(branch)
                    case inner_loop:
                        self.loop(inner_loop)
            waiting = [node for node in waiting if node not in ready]

    def _loops(self) -> list[NodeKey]:
        return [NodeKey("enter", name) for name in self.graph.loops]

    def read(self, node: NodeKey, loop: str) -> list[Edge]:
        """Edges into a call, or into a loop with all that is in it, from elsewhere."""
        inside = self.graph.ancestor_in
        edges = [edge for edge in self.graph.edges if inside(edge.target, loop) == node]
        return [edge for edge in edges if inside(edge.source, loop) != node]

    def _has(self, edge: Edge) -> bool:
        return (edge.source, edge.source_port) in self.values

    def ports(self, loop: Loop) -> dict[str, Edge]:
        """Edges into a loop, from outside and from its body, by port."""
        ends = NodeKey("enter", loop.name), NodeKey("exit", loop.name)
        return {edge.target_port: edge for end in ends for edge in self.graph.into(end)}

    def map(self, loop: Loop) -> None:
        """Runs a map's body for each item."""
        edges, leave = self.ports(loop), NodeKey("exit", loop.name)
        values = {port: self.fetch(edges[port], None) for port, _ in loop.over}
        lists = {port: list(value) for port, value in values.items()}
        parts_by_port: dict[str, list[Any]] = {port: [] for port in loop.collect}
        (count,) = {len(items) for items in lists.values()}
        for at in range(count):
            outputs = self._item(loop, edges, {port: items[at] for port, items in lists.items()})
            for port in loop.collect:
                parts_by_port[port].append(outputs[port])
        if all(isinstance(value, list) for value in values.values()):
            results: dict[str, Any] = dict(parts_by_port)
        else:  # one item, thrown away, shows what there would be
            blanks = {port: _blank(value) for port, value in values.items()} if not count else {}
            sample = self._item(loop, edges, blanks) if blanks else {}
            results = {port: self.stack(parts, sample.get(port)) for port, parts in parts_by_port.items()}
        for port, value in results.items():
            self.values[leave, stacked_port(port)] = value

    def _item(self, loop: Loop, edges: Mapping[str, Edge], items: Mapping[str, Any]) -> dict[str, Any]:
        """Runs a map's body for one item; names of its dims have other sizes in the next one."""
        before = dict(self.sizes)
        for port, spec in loop.over:
            for dim, size in zip(spec.dims, (1, *items[port].shape), strict=True):
                if isinstance(dim, (str, Dim)):
                    self.sizes[str(dim)] = size
        self.iterate(loop, {port: item[None] for port, item in items.items()})
        outputs = {port: self.fetch(edges[stacked_port(port)], None)[0] for port in loop.collect}
        self.sizes = before
        return outputs

    def _branch(self, loop: Loop) -> None:
        edges, leave = self.ports(loop), NodeKey("exit", loop.name)
        inputs = {port: self.fetch(edges[port], None) for port in loop.inputs}
        runs = all(value is not None for value in inputs.values())
        if loop.condition:
            runs = runs and bool(self.fetch(edges[CONDITION], None))
        if runs:
            self.iterate(loop, inputs)
        for port in loop.carry:
            self.values[leave, port] = self.fetch(edges[next_port(port) if runs else port], None)

    def loop(self, loop: Loop) -> None:
        """Runs a loop's body until it ends."""
        edges, leave = self.ports(loop), NodeKey("exit", loop.name)
        carries = {port: self.fetch(edges[port], None) for port in loop.carry}
        sequences = {port: self.fetch(edges[port], None) for port in loop.each}
        bounds = [len(value) for value in sequences.values()]
        bounds += [] if loop.max_steps is None else [loop.max_steps]
        parts: dict[str, list[Any]] = {port: [] for port in loop.collect}
        until_values: list[bool] = []
        runs = not loop.condition or bool(self.fetch(edges[CONDITION], None))
        for at in range(min(bounds) if runs else 0):
            self.counts[loop.name] = at
            self.iterate(
                loop, {**carries, **{port: self.slice(value, at) for port, value in sequences.items()}}
            )
            carries = {port: self.fetch(edges[next_port(port)], None) for port in loop.carry}
            for port, items in parts.items():
                items.append(self.fetch(edges[stacked_port(port)], None))
            until_values.append(bool(loop.until) and bool(self.fetch(edges[until_port(loop.until)], None)))
            if any(until_values) and len(until_values) % loop.check_every == 0:
                break
        count = until_values.index(True) + 1 if any(until_values) else len(until_values)
        if not until_values and parts:  # one iteration, thrown away, shows what would have been collected
            self.iterate(loop, {**carries, **{port: _blank(value) for port, value in sequences.items()}})
        for port, value in carries.items():
            self.values[leave, port] = value
        for port, items in parts.items():
            sample = None if items else self.fetch(edges[stacked_port(port)], None)
            self.values[leave, stacked_port(port)] = self.stack(items[:count], sample)

    def iterate(self, loop: Loop, arguments: Mapping[str, Any]) -> None:
        """Runs a loop's body once, from its arguments alone."""
        old = [key for key in self.values if self.graph.ancestor_in(key[0], loop.name) is not None]
        for key in old:
            del self.values[key]
        for port, value in arguments.items():
            self.values[NodeKey("enter", loop.name), port] = value
        self._body(loop.name)

    def _call(self, name: str) -> None:
        stage = self.graph.calls[name].stage
        ports = {port.name: port.spec for port in stage.inputs}
        node = NodeKey("call", name)
        arguments = {
            edge.target_port: self.fetch(edge, ports[edge.target_port]) for edge in self.graph.into(node)
        }
        for port, value in self.call(name, arguments).items():
            self.values[node, port] = value
        for item in stage.outputs:
            self._learn(item.spec, self.values[node, item.name])

    def call(self, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the outputs of a call, by port."""
        stage = self.graph.calls[name].stage
        return named_outputs(stage, call_target(stage, stage.target, arguments))

    def _learn(self, spec: PortSpec | None, value: Any) -> None:
        """Notes the sizes of names that a value brings in."""
        if isinstance(spec, TensorSpec) and value is not None:
            for dim, size in zip(spec.dims, value.shape, strict=True):
                if isinstance(dim, (str, Dim)):
                    self.sizes.setdefault(str(dim), size)

    def fetch(self, edge: Edge, port: PortSpec | None) -> Any:
        """Returns the value at the end of an edge, as the specs on its way declare it."""
        value = self.values[edge.source, edge.source_port]
        for spec in (*edge.constraints, port):
            if isinstance(spec, TensorSpec) and isinstance(value, torch.Tensor):
                value = self.fit(value, spec)
        return value

    def fit(self, value: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
        """Returns a value as a port declares it: cut, cast and filled up."""
        sizes = [self._size(dim, value.shape[axis]) for axis, dim in enumerate(spec.dims)]
        for axis, size in enumerate(sizes):
            if value.shape[axis] > size:
                value = value[(slice(None),) * axis + (slice(0, size),)]
        value = value.to(spec.dtype)
        for axis, size in enumerate(sizes):
            if value.shape[axis] < size:
                value = _grow(value, axis, size, spec.pad)
        return value

    def slice(self, value: Any, at: int) -> Any:
        """Returns the slice of a value for iteration ``at`` of a loop."""
        return value[at]

    def stack(self, parts: list[Any], sample: Any) -> Any:
        """Joins the parts that a loop collected; where there is none, a sample shows their shape and dtype."""
        if not isinstance(parts[0] if parts else sample, torch.Tensor):
            return parts
        return torch.stack(parts) if parts else sample.new_empty((0, *sample.shape))

    def _size(self, dim: AnyDim, default: int) -> int:
        return dim if isinstance(dim, int) else self.sizes.get(str(dim), default)


def _blank(value: torch.Tensor) -> torch.Tensor:
    """Returns a slice of zeros, for a value without any."""
    return value.new_zeros(value.shape[1:])


def _grow(value: torch.Tensor, axis: int, size: int, rule: Pad) -> torch.Tensor:
    """Appends slices, one by one."""
    if rule == "repeat_first":
        piece = value.select(axis, 0)
    else:
        assert isinstance(rule, (int, float)), "a value is too small for its port, which has no pad rule"
        piece = torch.full_like(value.select(axis, 0), rule)
    return torch.cat([value, torch.stack([piece] * (size - value.shape[axis]), axis)], axis)


def call_target(stage: Stage, target: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Calls a stage's target, or a copy of it, with values by port: by position up to the first port left out.

    What the stage updates in place is updated in a copy: whoever else has the value keeps it as it is.
    """
    updated = {port for _, port in stage.aliases}
    arguments = {name: value.clone() if name in updated else value for name, value in arguments.items()}
    ports = [port for port in stage.inputs if not port.keyword]
    count = next((at for at, port in enumerate(ports) if port.name not in arguments), len(ports))
    positional = [port.name for port in ports[:count]]
    by_keyword = {name: value for name, value in arguments.items() if name not in positional}
    return target(*(arguments[name] for name in positional), **by_keyword)


def named_outputs(stage: Stage, result: Any) -> dict[str, Any]:
    """Returns the result of a stage by output port."""
    names = [port.name for port in stage.outputs] or ["output"]
    if isinstance(result, Mapping):
        by_key = {str(key): value for key, value in result.items()}
        if not stage.outputs or set(names) <= set(by_key):
            return by_key
    if not stage.host and isinstance(result, (tuple, list)) and len(result) != len(names):
        result = [value for value in result if isinstance(value, torch.Tensor)]  # the others are no outputs
        return dict(zip(names, result, strict=True))
    if len(names) == 1:
        return {names[0]: result}
    return dict(zip(names, result, strict=True))


def run_reference(graph: Graph, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the outputs of a pipeline for one request.

    Args:
        graph: ``pipeline.freeze()``.
        inputs: Values by input name; an optional one may be missing, or None.

    Returns:
        Values by output name.
    """
    return ReferenceRun(graph, inputs).run()
