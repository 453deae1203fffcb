"""Drawing a map or a branch: like a loop, but for items in batches, or once or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.errors import GraphError, nearest
from orchestrator.graph import CONDITION, Graph, Loop, NodeKey, collected, following
from orchestrator.pipeline.inline import copy_calls, through
from orchestrator.pipeline.loops import check_body, check_fed, mapping, names_of
from orchestrator.pipeline.values import Value, Values
from orchestrator.specs import Dim, TensorSpec, show_spec

if TYPE_CHECKING:
    from orchestrator.pipeline.builder import Pipeline

__all__ = ["BranchPorts", "MapPorts"]


class MapPorts:
    """What a map is fed with and gives; arguments as in :meth:`Pipeline.map`.

    Raises:
        GraphError: One of them is wrong.
    """

    def __init__(self, name: str, body: Any, over: Any, inputs: Any, outputs: Any) -> None:
        check_body("map", name, body)
        self.name = name
        self.over = mapping(name, "over", over)
        self.inputs = mapping(name, "inputs", inputs)
        self._outputs = outputs

    def draw(self, pipeline: Pipeline, graph: Graph) -> Any:
        """Draws the map with its body, and returns its outputs."""
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
        pipeline.draw_loop(Loop(self.name, collect=tuple(names), kind="map", over=tuple(specs.items())))
        enter, leave = NodeKey("enter", self.name), NodeKey("leave", self.name)
        fed: dict[str, Value] = {}
        for port, given in self.over.items():
            pipeline.join(pipeline.feed(given, f"port '{self.name}.{port}'"), enter, port)
            fed[port] = Value(pipeline, enter, port)
        for port, given in self.inputs.items():
            fed[port] = through(pipeline.feed(given, f"port '{self.name}.{port}'"), graph.inputs[port])
        made = copy_calls(pipeline, self.name, graph, fed, {}, self.name)
        for port in names:
            pipeline.join(made[port], leave, collected(port))
        results = {port: Value(pipeline, leave, collected(port)) for port in names}
        return Values.of(results) if len(results) > 1 else next(iter(results.values()))

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
    """What a branch is fed with and gives; arguments as in :meth:`Pipeline.when`.

    Raises:
        GraphError: One of them is wrong.
    """

    def __init__(self, name: str, body: Any, inputs: Any, otherwise: Any, condition: Any) -> None:
        check_body("branch", name, body)
        self.name = name
        self.inputs = mapping(name, "inputs", inputs)
        self.otherwise = mapping(name, "otherwise", otherwise)
        self.condition = condition

    def draw(self, pipeline: Pipeline, graph: Graph) -> Any:
        """Draws the branch with its body, and returns its outputs."""
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
        given = {
            port: pipeline.feed(value, f"port '{self.name}.{port}'") for port, value in self.inputs.items()
        }
        if self.condition is None and not any(map(pipeline.is_optional, given.values())):
            raise GraphError(
                f"Nothing decides whether branch {self.name!r} runs: none of its inputs is optional, and there is no "
                f"condition=.",
                loop=self.name,
            )
        twice = [port for port in self.otherwise if port in given]
        if twice:
            raise GraphError(
                f"{twice[0]!r} is an input and an output of the body of branch {self.name!r}; "
                f"call one of them otherwise.",
                loop=self.name,
                port=twice[0],
            )
        enter, leave = NodeKey("enter", self.name), NodeKey("leave", self.name)
        asked = self.condition is not None
        pipeline.draw_loop(
            Loop(self.name, carry=tuple(self.otherwise), kind="when", given=tuple(given), condition=asked)
        )
        if asked:
            pipeline.join(pipeline.feed(self.condition, f"condition of {self.name!r}"), enter, CONDITION)
        for port, value in self.otherwise.items():
            pipeline.join(pipeline.feed(value, f"port '{self.name}.{port}'"), enter, port)
        fed: dict[str, Value] = {}
        for port, value in given.items():
            pipeline.join(value, enter, port)
            fed[port] = through(Value(pipeline, enter, port), graph.inputs[port])
        made = copy_calls(pipeline, self.name, graph, fed, {}, self.name)
        for port in self.otherwise:
            pipeline.join(made[port], leave, following(port))
        results = {port: Value(pipeline, leave, port) for port in self.otherwise}
        return Values.of(results) if len(results) > 1 else next(iter(results.values()))
