"""Handles: what ``Pipeline.add`` gives; calling one draws edges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.errors import GraphError, nearest
from orchestrator.graph import Edge, Graph, NodeKey
from orchestrator.pipeline.values import Value, Values
from orchestrator.specs import TensorSpec
from orchestrator.stage import Stage

if TYPE_CHECKING:
    from orchestrator.pipeline.builder import Pipeline

__all__ = ["StageHandle", "SubPipelineHandle"]


def _feed(
    pipeline: Pipeline,
    name: str,
    ports: list[str],
    optional: set[str],
    args: tuple[Any, ...],
    named: dict[str, Any],
) -> dict[str, Value]:
    """Values by port, from positional and named arguments."""
    if len(args) > len(ports):
        raise GraphError(
            f"{name!r} takes {len(ports)} values ({', '.join(ports)}), but was called with {len(args)}.",
            stage=name,
            ports=tuple(ports),
        )
    fed: dict[str, Any] = dict(zip(ports, args, strict=False))
    for port, value in named.items():
        if port not in ports:
            raise GraphError(
                f"{name!r} has no input port {port!r}.{nearest(port, ports)}", stage=name, port=port
            )
        if port in fed:
            raise GraphError(
                f"The port '{name}.{port}' is fed twice: by position and by name.", stage=name, port=port
            )
        fed[port] = value
    missing = [port for port in ports if port not in fed and port not in optional]
    if missing:
        raise GraphError(
            f"The input port '{name}.{missing[0]}' is never fed; {name!r} takes ({', '.join(ports)}).",
            stage=name,
            port=missing[0],
        )
    return {port: pipeline.feed(fed[port], f"port '{name}.{port}'") for port in ports if port in fed}


class StageHandle:
    """A stage of a pipeline under construction; calling it adds a call."""

    def __init__(self, pipeline: Pipeline, stage: Stage) -> None:
        self._pipeline = pipeline
        self.stage = stage
        self.name = stage.name

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Adds a call, fed by position or port name; returns its output, or one value for each."""
        ports = [port.name for port in self.stage.inputs]
        optional = {port.name for port in self.stage.inputs if port.optional}
        call = self._pipeline.draw(self.stage, _feed(self._pipeline, self.name, ports, optional, args, named))
        names = [port.name for port in self.stage.outputs] or ["output"]
        node = NodeKey("call", call)
        values = {port: Value(self._pipeline, node, port, self.stage) for port in names}
        return Values.of(values) if len(values) > 1 else values[names[0]]

    def __repr__(self) -> str:
        return f"<Stage {self.name!r}>"


class SubPipelineHandle:
    """A pipeline used as a stage of another; calling it inlines its calls under ``name/``."""

    def __init__(self, pipeline: Pipeline, name: str, graph: Graph) -> None:
        self._pipeline = pipeline
        self.name = name
        self._graph = graph
        self._constants: dict[str, Value] = {}

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Inlines the pipeline once, fed by position or input name; returns its output, or one value for each."""
        fed = _feed(self._pipeline, self.name, list(self._graph.inputs), set(), args, named)
        values: dict[tuple[NodeKey, str], Value] = {}
        for port, value in fed.items():
            spec = self._graph.inputs[port]
            via = (*value.via, spec) if isinstance(spec, TensorSpec) else value.via
            values[NodeKey("input", port), ""] = Value(
                self._pipeline, value.node, value.port, value.stage, via
            )
        for constant, content in self._graph.constants.items():
            if constant not in self._constants:
                self._constants[constant] = self._pipeline.feed(content, f"constant {constant!r}")
            values[NodeKey("constant", constant), ""] = self._constants[constant]
        self._copy_calls(values)
        results = {name: self._find(values, NodeKey("output", name)) for name in self._graph.outputs}
        return Values.of(results) if len(results) > 1 else next(iter(results.values()))

    def _copy_calls(self, values: dict[tuple[NodeKey, str], Value]) -> None:
        for name in self._graph.order:
            node = NodeKey("call", name)
            inputs = {edge.target_port: self._source(values, edge) for edge in self._graph.into(node)}
            stage = self._pipeline.stages[f"{self.name}/{self._graph.calls[name].stage.name}"]
            call = NodeKey("call", self._pipeline.draw(stage, inputs))
            for edge in self._graph.out_of(node):
                port = edge.source_port
                values.setdefault((node, port), Value(self._pipeline, call, port, stage))

    def _source(self, values: dict[tuple[NodeKey, str], Value], edge: Edge) -> Value:
        value = values[edge.source, edge.source_port]
        return Value(self._pipeline, value.node, value.port, value.stage, (*value.via, *edge.via))

    def _find(self, values: dict[tuple[NodeKey, str], Value], node: NodeKey) -> Value:
        return self._source(values, self._graph.into(node)[0])

    def __repr__(self) -> str:
        return f"<Pipeline {self._graph.name!r} as stage {self.name!r}>"
