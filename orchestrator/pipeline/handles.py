"""Handles: what ``Pipeline.add`` gives; calling one adds calls and edges."""

from __future__ import annotations

from typing import Any

from orchestrator.errors import GraphError, nearest
from orchestrator.graph import Graph, NodeKey
from orchestrator.pipeline.graph_builder import GraphBuilder, Value, Values
from orchestrator.pipeline.inline import copy_calls, with_constraint
from orchestrator.pipeline.sub_pipelines import SubPipeline
from orchestrator.stage import Stage

__all__ = ["StageHandle", "SubPipelineHandle", "feed_ports"]


def feed_ports(
    pipeline: GraphBuilder,
    name: str,
    ports: list[str],
    optional: set[str],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> dict[str, Value]:
    """Returns the value that each port gets.

    Args:
        pipeline: Where the call is added.
        name: The stage or inlined pipeline that is called.
        ports: Its input ports, in order.
        optional: Those that may stay unfed.
        args: Values, or tensors and Python values as constants, by position.
        kwargs: The same by port.

    Raises:
        GraphError: A port is unknown, or is fed twice or never.
    """
    if len(args) > len(ports):
        raise GraphError(
            f"{name!r} takes {len(ports)} values ({', '.join(ports)}), but was called with {len(args)}.",
            stage=name,
            ports=tuple(ports),
        )
    # By position first, so that a name can be seen to repeat one; in the order of the ports last, so that edges are.
    values: dict[str, Any] = dict(zip(ports, args, strict=False))
    for port, value in kwargs.items():
        if port not in ports:
            raise GraphError(
                f"{name!r} has no input port {port!r}.{nearest(port, ports)}", stage=name, port=port
            )
        if port in values:
            raise GraphError(
                f"The port '{name}.{port}' is fed twice: by position and by name.", stage=name, port=port
            )
        values[port] = value
    missing = [port for port in ports if port not in values and port not in optional]
    if missing:
        raise GraphError(
            f"The input port '{name}.{missing[0]}' is never fed; {name!r} takes ({', '.join(ports)}).",
            stage=name,
            port=missing[0],
        )
    return {
        port: pipeline.as_value(values[port], f"port '{name}.{port}'") for port in ports if port in values
    }


class StageHandle:
    """A stage of a pipeline under construction; calling it adds a call."""

    def __init__(self, pipeline: GraphBuilder, stage: Stage) -> None:
        self._pipeline = pipeline
        self.stage = stage
        self.name = stage.name

    def __call__(self, /, *args: Any, **kwargs: Any) -> Value:
        """Adds a call, fed by position or port name; returns its output, or one value for each."""
        ports = [port.name for port in self.stage.inputs]
        optional = {port.name for port in self.stage.inputs if port.optional}
        call = self._pipeline.add_call(
            self.stage, feed_ports(self._pipeline, self.name, ports, optional, args, kwargs)
        )
        names = [port.name for port in self.stage.outputs] or ["output"]
        node = NodeKey("call", call)
        values = {port: Value(self._pipeline, node, port, self.stage) for port in names}
        return Values.or_one(values)

    def __repr__(self) -> str:
        return f"<Stage {self.name!r}>"


class SubPipelineHandle:
    """A pipeline used as a stage of another; calling it inlines its calls under ``name/``."""

    def __init__(self, pipeline: GraphBuilder, name: str, inner: Graph | SubPipeline) -> None:
        self._pipeline = pipeline
        self.name = name
        self._inner = inner
        self._body = inner.body if isinstance(inner, SubPipeline) else inner
        self._constants: dict[str, Value] = {}

    def __call__(self, /, *args: Any, **kwargs: Any) -> Value:
        """Inlines the pipeline once, fed by position or input name; returns its output, or one value for each."""
        inputs, optional = self._body.inputs, set(self._body.optional)
        values = feed_ports(self._pipeline, self.name, list(inputs), optional, args, kwargs)
        arguments = {port: with_constraint(value, inputs[port]) for port, value in values.items()}
        match self._inner:
            case SubPipeline() as part:
                results = self._pipeline.add_sub_pipeline_call(part, arguments)
            case Graph() as graph:
                results = copy_calls(self._pipeline, self.name, graph, arguments, self._constants)
        return Values.or_one(results)

    def __repr__(self) -> str:
        return f"<Pipeline {self._body.name!r} as stage {self.name!r}>"
