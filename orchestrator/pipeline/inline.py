"""Inlining: the calls and loops of a frozen graph, drawn again in another pipeline under a name."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.graph import Edge, Graph, NodeKey
from orchestrator.pipeline.values import Value
from orchestrator.specs import PortSpec, TensorSpec

if TYPE_CHECKING:
    from orchestrator.pipeline.builder import Pipeline

__all__ = ["copy_calls", "through"]


def through(value: Value, spec: PortSpec) -> Value:
    """Returns a value that must meet a spec on its way."""
    via = (*value.via, spec) if isinstance(spec, TensorSpec) else value.via
    return Value(value.owner, value.node, value.port, value.stage, via)


def copy_calls(
    pipeline: Pipeline,
    name: str,
    graph: Graph,
    inputs: dict[str, Value],
    constants: dict[str, Value],
    loop: str = "",
) -> dict[str, Value]:
    """Draws the calls of a graph once more.

    Args:
        pipeline: Where; its stages are there already, under ``name/``.
        name: What names of the graph begin with there.
        graph: The graph.
        inputs: What its inputs are fed with.
        constants: Its constants as far as they were fed before; added to.
        loop: The loop that the calls are the body of; empty: none.

    Returns:
        Its outputs by name.
    """
    return _Copy(pipeline, name, graph, loop).run(inputs, constants)


class _Copy:
    def __init__(self, pipeline: Pipeline, name: str, graph: Graph, loop: str) -> None:
        self._pipeline = pipeline
        self._name = name
        self._graph = graph
        self._values: dict[tuple[NodeKey, str], Value] = {}
        self._loops = {"": loop}

    def run(self, inputs: dict[str, Value], constants: dict[str, Value]) -> dict[str, Value]:
        for port, value in inputs.items():
            self._values[NodeKey("input", port), ""] = value
        for constant, content in self._graph.constants.items():
            if constant not in constants:
                constants[constant] = self._pipeline.feed(content, f"constant {constant!r}")
            self._values[NodeKey("constant", constant), ""] = constants[constant]
        for inner in self._graph.loops.values():
            within = self._loops[inner.within]
            self._loops[inner.name] = self._pipeline.draw_loop(
                replace(inner, name=f"{self._name}/{inner.name}", within=within)
            )
        for node in self._graph.nodes:
            if node.kind in ("call", "enter", "leave"):
                self._node(node)
        return {name: self._find(NodeKey("output", name)) for name in self._graph.outputs}

    def _node(self, node: NodeKey) -> None:
        fed = {edge.target_port: self._source(edge) for edge in self._graph.into(node)}
        if node.kind == "call":
            call = self._graph.calls[node.name]
            stage = self._pipeline.stages[f"{self._name}/{call.stage.name}"]
            copy = NodeKey("call", self._pipeline.draw(stage, fed, self._loops[call.loop]))
        else:
            stage = None
            copy = NodeKey(node.kind, self._loops[node.name])
            for port, value in fed.items():
                self._pipeline.join(value, copy, port)
        for edge in self._graph.out_of(node):
            port = edge.source_port
            self._values.setdefault((node, port), Value(self._pipeline, copy, port, stage))

    def _source(self, edge: Edge) -> Value:
        value = self._values[edge.source, edge.source_port]
        return Value(self._pipeline, value.node, value.port, value.stage, (*value.via, *edge.via))

    def _find(self, node: NodeKey) -> Value:
        return self._source(self._graph.into(node)[0])
