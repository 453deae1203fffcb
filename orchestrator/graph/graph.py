"""A graph of calls, frozen.

A *node* is a pipeline input, a constant, a call of a stage, or a pipeline output, keyed with its kind since an
input and an output may share a name. A loop is two nodes, where values enter and where they leave it, with the calls of
its body in between; so the graph stays acyclic (see :mod:`orchestrator.graph.loop`). An *edge* joins one producer port
to one consumer port. Beneath it is a ``networkx.MultiDiGraph`` (:attr:`Graph.nx`), whose lexicographical topological
order, keyed by creation, is the order of everything that follows: a branch is finished before the next one begins.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import networkx

from orchestrator.errors import GraphError
from orchestrator.graph.loop import Loop
from orchestrator.specs import PortSpec, TensorSpec
from orchestrator.stage import Stage

__all__ = ["Call", "Edge", "Graph", "NodeKey"]


class NodeKey(NamedTuple):
    """Key of a node in :attr:`Graph.nx`: its kind and its name.

    Kinds are input, constant, call, output, and for a loop enter and exit.
    """

    kind: str
    name: str


@dataclass(frozen=True)
class Call:
    """One use of a stage.

    Attributes:
        name: ``enc``, ``enc#2`` for the second call, ``sub/enc`` where it was inlined.
        stage: What is called.
        loop: The innermost loop whose body it is in; empty: none.
    """

    name: str
    stage: Stage
    loop: str = ""


@dataclass(frozen=True)
class Edge:
    """One producer output into one consumer input.

    Attributes:
        source: The producing node.
        source_port: Its port; empty for inputs and constants.
        target: The consuming node.
        target_port: Its port; empty for outputs.
        constraints: Specs the value must meet on its way: inputs of pipelines that were inlined.
    """

    source: NodeKey
    source_port: str
    target: NodeKey
    target_port: str
    constraints: tuple[TensorSpec, ...] = ()

    @property
    def origin(self) -> str:
        """``"call.port"``, or the name of an input or constant."""
        return f"{self.source.name}.{self.source_port}" if self.source_port else self.source.name

    @property
    def destination(self) -> str:
        """``"call.port"``, or the name of an output."""
        return f"{self.target.name}.{self.target_port}" if self.target_port else self.target.name

    def __str__(self) -> str:
        return f"{self.origin} -> {self.destination}"


def _by_name(calls: Iterable[Call]) -> dict[str, Call]:
    by_name: dict[str, Call] = {}
    for call in calls:
        if call.name in by_name:
            raise GraphError(f"Two calls are named {call.name!r}; names are unique.", call=call.name)
        by_name[call.name] = call
    return by_name


class Graph:
    """A frozen directed acyclic multigraph of calls.

    Args:
        name: The pipeline's name.
        inputs: Names of inputs to what they take.
        constants: Names of constants to their values.
        calls: Calls in the order of creation.
        outputs: Names of outputs, in order.
        edges: All edges.
        loops: All loops, an outer one before those in it.
        optional: Inputs that a request may leave out.

    Attributes:
        stages: Stages by name, in the order of their first call.
        nodes: All nodes, each after those it reads from; of those that may come next, that which was added first.
        order: The calls among them.

    Raises:
        GraphError: For a cycle, a port fed twice or never, or a graph without outputs.
    """

    def __init__(
        self,
        name: str,
        inputs: Mapping[str, PortSpec],
        constants: Mapping[str, Any],
        calls: Iterable[Call],
        outputs: Iterable[str],
        edges: Iterable[Edge],
        loops: Iterable[Loop] = (),
        optional: Iterable[str] = (),
    ) -> None:
        self.name = name
        self.inputs = MappingProxyType(dict(inputs))
        self.constants = MappingProxyType(dict(constants))
        self.calls = MappingProxyType(_by_name(calls))
        self.stages = MappingProxyType({call.stage.name: call.stage for call in self.calls.values()})
        self.loops = MappingProxyType({loop.name: loop for loop in loops})
        self.optional = frozenset(optional)
        self.outputs = tuple(outputs)
        self.edges = tuple(edges)
        self._into: dict[NodeKey, list[Edge]] = {}
        self._from: dict[NodeKey, list[Edge]] = {}
        for edge in self.edges:
            self._into.setdefault(edge.target, []).append(edge)
            self._from.setdefault(edge.source, []).append(edge)
        # Every end of an edge exists, every port is fed as it should be, and only then is there an order to be found.
        position_of = {node: position for position, node in enumerate(self._creation())}
        self._check_ends(position_of)
        self._check_ports()
        self.nodes = self._in_order(position_of)
        self.order = tuple(node.name for node in self.nodes if node.kind == "call")

    def into(self, node: NodeKey) -> list[Edge]:
        """Returns the edges into a node."""
        return self._into.get(node, [])

    def out_of(self, node: NodeKey) -> list[Edge]:
        """Returns the edges out of a node."""
        return self._from.get(node, [])

    def ordered_edges(self) -> list[Edge]:
        """Returns all edges in the order in which their values are read, outputs last."""
        inner = [edge for node in self.nodes if node.kind != "output" for edge in self.into(node)]
        return inner + [edge for name in self.outputs for edge in self.into(NodeKey("output", name))]

    def ordered_units(self, unit_of: Mapping[NodeKey, Hashable], loop: str = "") -> list[tuple[NodeKey, ...]]:
        """Orders the calls and loops that are directly in a loop, or in none, so that those of one unit stand together.

        Args:
            unit_of: Call, or entry of a loop, to unit; joining them must leave the graph acyclic. One that is missing
                is a unit by itself.
            loop: The loop; empty: what is in none.
        """
        # Units with the calls and loops directly in this scope that belong to them, in the order of the graph.
        members: dict[Hashable, list[NodeKey]] = {}
        for node in self._scope_nodes.get(loop, ()):
            members.setdefault(unit_of.get(node, node), []).append(node)
        position_of = {unit: position for position, unit in enumerate(members)}
        # The graph of units: an edge from anywhere inside one to anywhere inside another joins the two. It is sorted as
        # the graph itself is, by creation, so that units of one node each keep its order.
        quotient: networkx.DiGraph[Hashable] = networkx.DiGraph()
        quotient.add_nodes_from(members)
        for source, target in self._scope_edges.get(loop, ()):
            units = unit_of.get(source, source), unit_of.get(target, target)
            if units[0] != units[1]:
                quotient.add_edge(*units)
        order = networkx.lexicographical_topological_sort(quotient, key=position_of.__getitem__)
        return [tuple(members[unit]) for unit in order]

    @functools.cached_property
    def _scope_nodes(self) -> dict[str, list[NodeKey]]:
        """Loop to the calls, and the entries of loops, directly in its body; the empty name: those in no loop."""
        scopes: dict[str, list[NodeKey]] = {}
        for node in self.nodes:
            if node.kind in ("call", "enter"):
                scopes.setdefault(self.scope(node), []).append(node)
        return scopes

    @functools.cached_property
    def _scope_edges(self) -> dict[str, list[tuple[NodeKey, NodeKey]]]:
        """Loop to the pairs of calls, and of entries of loops, directly in its body that an edge leads between.

        An edge is in one scope only, the innermost around both its ends: further out, both are in one loop.
        """
        depths = {"": 0}
        for loop in self.loops.values():
            depths[loop.name] = depths[loop.within] + 1
        scopes: dict[str, list[tuple[NodeKey, NodeKey]]] = {}
        for edge in self.edges:
            ends = [edge.source, edge.target]
            if any(node.kind in ("input", "constant", "output") for node in ends):
                continue
            # Out of both is gone, the deeper one first, until they meet.
            source, target = (NodeKey("enter", node.name) if node.kind == "exit" else node for node in ends)
            while (inner := self.scope(source)) != (other := self.scope(target)):
                if depths[inner] > depths[other]:
                    source = NodeKey("enter", inner)
                else:
                    target = NodeKey("enter", other)
            if source != target:
                scopes.setdefault(inner, []).append((source, target))
        return scopes

    def scope(self, node: NodeKey) -> str:
        """Returns the innermost loop around a node; that around a loop for both its ends."""
        if node.kind == "call":
            return self.calls[node.name].loop
        return self.loops[node.name].within if node.kind in ("enter", "exit") else ""

    def ancestor_in(self, node: NodeKey, loop: str) -> NodeKey | None:
        """Returns the call, or the entry of the loop, directly in a loop that a node is or belongs to.

        None: it is no part of that loop's body.
        """
        if node.kind not in ("call", "enter", "exit"):
            return None
        ancestor = NodeKey("enter", node.name) if node.kind == "exit" else node
        while (around := self.scope(ancestor)) != loop:
            if not around:
                return None
            ancestor = NodeKey("enter", around)
        return ancestor

    @property
    def nx(self) -> networkx.MultiDiGraph[NodeKey]:
        """The graph for networkx, frozen, with specs, stages and loops as attributes of nodes; made at each access.

        It is not kept: networkx remembers views of a graph in the graph, and a cycle that holds stages would hold their
        weights until the cyclic collector runs.
        """
        graph = self._structure()
        for name, spec in self.inputs.items():
            graph.nodes[NodeKey("input", name)]["spec"] = spec
        for name, call in self.calls.items():
            graph.nodes[NodeKey("call", name)]["stage"] = call.stage
        for name, loop in self.loops.items():
            for kind in ("enter", "exit"):
                graph.nodes[NodeKey(kind, name)]["loop"] = loop
        networkx.freeze(graph)
        return graph

    def _structure(self) -> networkx.MultiDiGraph[NodeKey]:
        """Nodes and edges by name, without what they stand for."""
        graph: networkx.MultiDiGraph[NodeKey] = networkx.MultiDiGraph(name=self.name)
        graph.add_nodes_from(self._creation())
        for edge in self.edges:
            graph.add_edge(edge.source, edge.target, key=(edge.source_port, edge.target_port))
        return graph

    def _creation(self) -> list[NodeKey]:
        """Returns all nodes in the order of their creation, which breaks ties in the order of running."""
        return [
            *(NodeKey("input", name) for name in self.inputs),
            *(NodeKey("constant", name) for name in self.constants),
            *(NodeKey("call", name) for name in self.calls),
            *(NodeKey(kind, name) for name in self.loops for kind in ("enter", "exit")),
            *(NodeKey("output", name) for name in self.outputs),
        ]

    def _check_ends(self, nodes: Collection[NodeKey]) -> None:
        for edge in self.edges:
            for end in (edge.source, edge.target):
                if end not in nodes:
                    raise GraphError(
                        f"The edge {str(edge)!r} ends at {end.kind} {end.name!r}, which does not exist."
                    )

    def _in_order(self, position_of: Mapping[NodeKey, int]) -> tuple[NodeKey, ...]:
        """Returns the nodes in the lexicographical topological order, keyed by creation.

        It is that of networkx, found without a graph of networkx, which costs several times as much.

        Args:
            position_of: All nodes with their place in the order of creation.

        Raises:
            GraphError: There is a cycle.
        """
        nodes = list(position_of)
        missing = {node: len(self.into(node)) for node in nodes}
        # Places of nodes whose producers have all been put in order; of them the one that was created first is next.
        ready = [position for node, position in position_of.items() if not missing[node]]
        order: list[NodeKey] = []
        while ready:
            node = nodes[heapq.heappop(ready)]
            order.append(node)
            for edge in self.out_of(node):
                missing[edge.target] -= 1
                if not missing[edge.target]:
                    heapq.heappush(ready, position_of[edge.target])
        if len(order) < len(nodes):
            raise self._cycle_error()
        return tuple(order)

    def _cycle_error(self) -> GraphError:
        cycle = [edge[0] for edge in networkx.find_cycle(self._structure())]
        path = " -> ".join(node.name for node in [*cycle, cycle[0]])
        return GraphError(
            f"A pipeline is acyclic, but these calls feed one another: {path}. Hand state from one "
            f"iteration to the next with a loop.",
            cycle=tuple(node.name for node in cycle),
        )

    def _check_ports(self) -> None:
        for name, call in self.calls.items():
            self._check_call(name, call)
        for name in self.outputs:
            count = len(self.into(NodeKey("output", name)))
            if count != 1:
                raise GraphError(f"Output {name!r} is fed {count} times; it takes one value.", output=name)
        for name in sorted(self.optional):
            self._check_optional(name)
        if not self.outputs:
            raise GraphError(f"Pipeline {self.name!r} has no output; add pipeline.output('name', value).")

    def _check_optional(self, name: str) -> None:
        """What may be missing is read where it is known to be there."""
        for edge in self.out_of(NodeKey("input", name)):
            loop = self.loops.get(edge.target.name) if edge.target.kind == "enter" else None
            if loop is None or edge.target_port not in loop.inputs:
                raise GraphError(
                    f"Input {name!r} is optional, but {edge.destination!r} reads it in every request. Read it in a "
                    f"branch: pipeline.when('name', body, inputs={{...}}, otherwise={{...}}).",
                    input=name,
                    port=edge.destination,
                )

    def _check_call(self, name: str, call: Call) -> None:
        # No port is fed twice, and all that must be fed are.
        edge_of: dict[str, Edge] = {}
        for edge in self.into(NodeKey("call", name)):
            call.stage.input(edge.target_port)
            if edge.target_port in edge_of:
                raise GraphError(
                    f"A port is fed once, but {edge.destination!r} is fed by {edge_of[edge.target_port].origin!r} "
                    f"and by {edge.origin!r}.",
                    port=edge.destination,
                )
            edge_of[edge.target_port] = edge
        for port in call.stage.inputs:
            if not port.optional and port.name not in edge_of:
                raise GraphError(
                    f"The input port '{name}.{port.name}' is never fed; pass it when you call {call.stage.name!r}, "
                    f"or give the parameter a default.",
                    port=f"{name}.{port.name}",
                )
