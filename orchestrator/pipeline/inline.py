"""Inlining: the calls and loops of a frozen graph, added once more to another pipeline under a name.

An optional input of the graph may be fed with a value that every request has, or not at all. A branch that hangs on
such inputs alone is *resolved*: it always runs, and its body is added without it, or never, and what it gives otherwise
takes its place.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.graph import BranchLoop, Edge, Graph, Loop, NodeKey, next_port
from orchestrator.pipeline.graph_builder import GraphBuilder, Value
from orchestrator.specs import PortSpec, TensorSpec

__all__ = ["copy_calls", "with_constraint"]


def with_constraint(value: Value, spec: PortSpec) -> Value:
    """Returns a value that must meet a spec on its way."""
    constraints = (*value.constraints, spec) if isinstance(spec, TensorSpec) else value.constraints
    return Value(value.owner, value.node, value.port, value.stage, constraints)


def copy_calls(
    pipeline: GraphBuilder,
    name: str,
    graph: Graph,
    inputs: dict[str, Value],
    constants: dict[str, Value],
    loop: str = "",
) -> dict[str, Value]:
    """Adds the calls and loops of a graph once more.

    Args:
        pipeline: Where; its stages are there already, under ``name/``.
        name: What names of the graph begin with there.
        graph: The graph.
        inputs: The value of each of its inputs; optional ones may be missing.
        constants: Values of its constants that an earlier copy added; this one adds the others.
        loop: The loop that the calls are the body of; empty: none.

    Returns:
        Its outputs by name.
    """
    return _Copy(pipeline, name, graph, loop).run(inputs, constants)


class _Copy:
    def __init__(self, pipeline: GraphBuilder, name: str, graph: Graph, loop: str) -> None:
        self._pipeline = pipeline
        self._name = name
        self._graph = graph
        # What stands here for each output of a node there.
        self._values: dict[tuple[NodeKey, str], Value] = {}
        # Loops there to loops here; a resolved branch to the loop around it.
        self._loops = {"": loop}
        # Resolved branches, each with whether it always runs (True) or never does (False).
        self._resolution: dict[str, bool] = {}

    def run(self, inputs: dict[str, Value], constants: dict[str, Value]) -> dict[str, Value]:
        # Nodes are copied in their order, so that the values that one reads stand in the table before it comes.
        for port, value in inputs.items():
            self._values[NodeKey("input", port), ""] = value
        for constant, content in self._graph.constants.items():
            if constant not in constants:
                constants[constant] = self._pipeline.as_value(content, f"constant {constant!r}")
            self._values[NodeKey("constant", constant), ""] = constants[constant]
        for inner in self._graph.loops.values():
            self._loop(inner)
        for node in self._graph.nodes:
            if node.kind in ("call", "enter", "exit"):
                self._node(node)
        return {name: self._find(NodeKey("output", name)) for name in self._graph.outputs}

    def _loop(self, loop: Loop) -> None:
        """Adds a loop, unless it is a branch that is resolved, or is in one that never runs."""
        within = self._loops[loop.within]
        match loop:
            case BranchLoop():
                self._resolve(loop)
        if loop.name in self._resolution or self._is_idle(NodeKey("enter", loop.name)):
            self._loops[loop.name] = within
            return
        copy = replace(loop, name=f"{self._name}/{loop.name}", within=within)
        self._loops[loop.name] = self._pipeline.add_loop(copy)

    def _resolve(self, loop: Loop) -> None:
        """Decides whether a branch always runs or never does, where its inputs leave no choice to a request."""
        into = self._graph.into(NodeKey("enter", loop.name))
        sources = [edge.source for edge in into if edge.target_port in loop.inputs]
        maybe = [node for node in sources if node.kind == "input" and node.name in self._graph.optional]
        values = [self._values.get((node, "")) for node in maybe]
        if None in values:
            self._resolution[loop.name] = False
        elif not loop.condition and not any(value and self._pipeline.is_optional(value) for value in values):
            self._resolution[loop.name] = True

    def _is_idle(self, node: NodeKey) -> bool:
        """Tells whether a call or loop is in a branch that never runs."""
        around = self._graph.scope(node)
        while around:
            if self._resolution.get(around) is False:
                return True
            around = self._graph.loops[around].within
        return False

    def _node(self, node: NodeKey) -> None:
        # What never runs is left out; a resolved branch has no nodes of its own here: its values pass through.
        if self._is_idle(node):
            if node.kind == "call":
                self._pipeline.allow_uncalled(f"{self._name}/{self._graph.calls[node.name].stage.name}")
            return
        if node.kind != "call" and node.name in self._resolution:
            self._pass(self._graph.loops[node.name], node)
            return
        # Anything else is copied with its edges; all edges out of it then start at the copy.
        arguments = {edge.target_port: self._source(edge) for edge in self._graph.into(node)}
        if node.kind == "call":
            call = self._graph.calls[node.name]
            stage = self._pipeline.stages[f"{self._name}/{call.stage.name}"]
            copy = NodeKey("call", self._pipeline.add_call(stage, arguments, self._loops[call.loop]))
        else:
            stage = None
            copy = NodeKey(node.kind, self._loops[node.name])
            for port, value in arguments.items():
                self._pipeline.add_edge(value, copy, port)
        for edge in self._graph.out_of(node):
            port = edge.source_port
            self._values.setdefault((node, port), Value(self._pipeline, copy, port, stage))

    def _pass(self, loop: Loop, node: NodeKey) -> None:
        """Hands on what goes into a branch that always runs, and what comes out of one that is resolved."""
        runs = self._resolution[loop.name]
        enter = NodeKey("enter", loop.name)
        if node != enter:
            for port in loop.carry:
                end, at = (node, next_port(port)) if runs else (enter, port)
                self._values[node, port] = self._source(self._into(end, at))
        elif runs:
            for port in loop.inputs:
                self._values[node, port] = self._source(self._into(node, port))

    def _into(self, node: NodeKey, port: str) -> Edge:
        return next(edge for edge in self._graph.into(node) if edge.target_port == port)

    def _source(self, edge: Edge) -> Value:
        value = self._values[edge.source, edge.source_port]
        return Value(
            self._pipeline, value.node, value.port, value.stage, (*value.constraints, *edge.constraints)
        )

    def _find(self, node: NodeKey) -> Value:
        return self._source(self._graph.into(node)[0])
