"""Adding a map or a branch: like a loop, but for items in batches, or once or not at all."""

from __future__ import annotations

from typing import Any

from orchestrator.errors import GraphError, nearest
from orchestrator.graph import CONDITION, BranchLoop, Graph, MapLoop, NodeKey, next_port, stacked_port
from orchestrator.pipeline.graph_builder import GraphBuilder, Value, Values
from orchestrator.pipeline.inline import copy_calls, with_constraint
from orchestrator.pipeline.loops import check_fed, mapping, names_of
from orchestrator.specs import Dim, TensorSpec, show_spec

__all__ = ["BranchPorts", "MapPorts"]


class MapPorts:
    """The values that enter a map and the outputs it gives; arguments as in :meth:`Pipeline.map`.

    Raises:
        GraphError: One of them is wrong.
    """

    def __init__(self, name: str, over: Any, inputs: Any, outputs: Any) -> None:
        self.name = name
        self.over = mapping(name, "over", over)
        self.inputs = mapping(name, "inputs", inputs)
        self._outputs = outputs

    def add_to(self, pipeline: GraphBuilder, graph: Graph) -> Value:
        """Adds the map with its body, and returns its outputs."""
        # All is checked before anything is added; the items of one map are counted by one dim.
        check_fed(self.name, graph, {"over": self.over, "inputs": self.inputs})
        names = graph.outputs if self._outputs is None else names_of(self.name, "outputs", self._outputs)
        for port in names:
            if port not in graph.outputs:
                raise GraphError(
                    f"outputs of map {self.name!r} names {port!r}, which is no output of its body {graph.name!r}."
                    f"{nearest(port, graph.outputs)}",
                    loop=self.name,
                    port=port,
                )
        specs = {port: self._batch(graph, port) for port in self.over}
        firsts = {str(spec.dims[0]) for spec in specs.values()}
        if len(firsts) != 1:
            raise GraphError(
                f"over of map {self.name!r} names inputs that begin with {sorted(firsts)}; items of one map are "
                f"counted by one dim.",
                loop=self.name,
            )
        # Items enter, to come out in batches; what is the same for all is an edge from outside into the body.
        pipeline.add_loop(MapLoop(self.name, collect=tuple(names), over=tuple(specs.items())))
        enter, exit_ = NodeKey("enter", self.name), NodeKey("exit", self.name)
        body_inputs: dict[str, Value] = {}
        for port, argument in self.over.items():
            pipeline.add_edge(pipeline.as_value(argument, f"port '{self.name}.{port}'"), enter, port)
            body_inputs[port] = Value(pipeline, enter, port)
        for port, argument in self.inputs.items():
            body_inputs[port] = with_constraint(
                pipeline.as_value(argument, f"port '{self.name}.{port}'"), graph.inputs[port]
            )
        body_outputs = copy_calls(pipeline, self.name, graph, body_inputs, {}, self.name)
        for port in names:
            pipeline.add_edge(body_outputs[port], exit_, stacked_port(port))
        results = {port: Value(pipeline, exit_, stacked_port(port)) for port in names}
        return Values.or_one(results)

    def _batch(self, graph: Graph, port: str) -> TensorSpec:
        spec = graph.inputs[port]
        if isinstance(spec, TensorSpec) and spec.dims and isinstance(spec.dims[0], (str, Dim)):
            return spec
        raise GraphError(
            f"The input {port!r} of the body {graph.name!r} takes {show_spec(spec)}, but map {self.name!r} feeds it "
            f"batches of items: let it begin with a named dim, e.g. Dim('items', buckets=(1, 8)).",
            loop=self.name,
            port=port,
        )


class BranchPorts:
    """The values that enter a branch and the outputs it gives; arguments as in :meth:`Pipeline.when`.

    Raises:
        GraphError: One of them is wrong.
    """

    def __init__(self, name: str, inputs: Any, otherwise: Any, condition: Any) -> None:
        self.name = name
        self.inputs = mapping(name, "inputs", inputs)
        self.otherwise = mapping(name, "otherwise", otherwise)
        self.condition = condition

    def add_to(self, pipeline: GraphBuilder, graph: Graph) -> Value:
        """Adds the branch with its body, and returns its outputs."""
        # All is checked before anything is added but constants: the ports, and that something decides whether it runs.
        check_fed(self.name, graph, {"inputs": self.inputs})
        for port in self.otherwise:
            if port not in graph.outputs:
                raise GraphError(
                    f"otherwise of branch {self.name!r} names {port!r}, which is no output of its body {graph.name!r}."
                    f"{nearest(port, graph.outputs)}",
                    loop=self.name,
                    port=port,
                )
        if not self.otherwise:
            raise GraphError(
                f"Branch {self.name!r} gives nothing: otherwise names no output.", loop=self.name
            )
        arguments = {
            port: pipeline.as_value(value, f"port '{self.name}.{port}'")
            for port, value in self.inputs.items()
        }
        if self.condition is None and not any(map(pipeline.is_optional, arguments.values())):
            raise GraphError(
                f"Nothing decides whether branch {self.name!r} runs: none of its inputs is optional, and there is no "
                f"condition=.",
                loop=self.name,
            )
        twice = [port for port in self.otherwise if port in arguments]
        if twice:
            raise GraphError(
                f"{twice[0]!r} is an input and an output of the body of branch {self.name!r}; "
                f"call one of them otherwise.",
                loop=self.name,
                port=twice[0],
            )
        enter, exit_ = NodeKey("enter", self.name), NodeKey("exit", self.name)
        has_condition = self.condition is not None
        pipeline.add_loop(
            BranchLoop(
                self.name,
                carry=tuple(self.otherwise),
                inputs=tuple(arguments),
                condition=has_condition,
            )
        )
        # Into the branch: its condition, what it gives otherwise (as the start of a carry), and its inputs.
        if has_condition:
            pipeline.add_edge(
                pipeline.as_value(self.condition, f"condition of {self.name!r}"), enter, CONDITION
            )
        for port, value in self.otherwise.items():
            pipeline.add_edge(pipeline.as_value(value, f"port '{self.name}.{port}'"), enter, port)
        body_inputs: dict[str, Value] = {}
        for port, value in arguments.items():
            pipeline.add_edge(value, enter, port)
            body_inputs[port] = with_constraint(Value(pipeline, enter, port), graph.inputs[port])
        body_outputs = copy_calls(pipeline, self.name, graph, body_inputs, {}, self.name)
        for port in self.otherwise:
            pipeline.add_edge(body_outputs[port], exit_, next_port(port))
        results = {port: Value(pipeline, exit_, port) for port in self.otherwise}
        return Values.or_one(results)
