"""The face of the project: build a pipeline, plan it, load it.

A :class:`Pipeline` is a mutable builder. ``add`` gives a handle to a stage; calling the handle draws edges and gives
:class:`Value` objects, which stand for outputs. ``plan`` freezes what was drawn and plans it.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from orchestrator.errors import GraphError, nearest
from orchestrator.graph import Call, Edge, Graph, NodeKey
from orchestrator.loader import PipelineLoader, resolve_backend, resolve_stage
from orchestrator.plan import Plan, Residency
from orchestrator.planner import Request, bind_plan, make_plan
from orchestrator.plugin import PluginManager, default_manager
from orchestrator.specs import PortSpec, TensorSpec, check_name
from orchestrator.stage import Stage, make_stage

__all__ = ["Pipeline", "StageHandle", "SubPipelineHandle", "Value", "Values", "stage_overrides"]

_overrides: contextvars.ContextVar[dict[str, dict[str, Any]] | None] = contextvars.ContextVar(
    "overrides", default=None
)


@contextlib.contextmanager
def stage_overrides(config: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Overrides the config of stages while pipelines are built, as ``orchestrator run --set stage.option=value`` does.

    Args:
        config: Stage to option to value.

    Raises:
        GraphError: (on leaving) A stage was never added.
    """
    pending = {stage: dict(options) for stage, options in config.items()}
    seen: dict[str, Any] = {}
    token = _overrides.set({"wanted": pending, "seen": seen})
    try:
        yield
    finally:
        _overrides.reset(token)
    for stage in pending:
        if stage not in seen:
            raise GraphError(
                f"There is no stage {stage!r} to set options of.{nearest(stage, seen)}", stage=stage
            )


def _overridden(name: str, config: Mapping[str, Any] | None) -> dict[str, Any]:
    state = _overrides.get()
    merged = dict(config or {})
    if state is not None:
        state["seen"][name] = True
        merged.update(state["wanted"].get(name, {}))
    return merged


class Value:
    """Stands for one output while a graph is drawn; ``value["port"]`` picks an output of a stage that gives a dict."""

    __slots__ = ("node", "owner", "port", "stage", "via")

    def __init__(
        self,
        owner: Pipeline,
        node: NodeKey,
        port: str,
        stage: Stage | None = None,
        via: tuple[TensorSpec, ...] = (),
    ) -> None:
        self.owner = owner
        self.node = node
        self.port = port
        self.stage = stage
        self.via = via

    def __getitem__(self, port: str) -> Value:
        if not isinstance(port, str) or self.stage is None:
            raise GraphError(f"{self!r} has no port {port!r}.", port=port)
        known = [item.name for item in self.stage.outputs]
        if known and port not in known:
            raise GraphError(f"{self.node.name!r} has no output {port!r}.{nearest(port, known)}", port=port)
        return Value(self.owner, self.node, port, self.stage, self.via)

    def __iter__(self) -> Iterator[Value]:
        raise GraphError(
            f"{self!r} is one output. If its stage gives a tuple, name its parts: add(..., outputs=('a', 'b')).",
            call=self.node.name,
        )

    def __repr__(self) -> str:
        return f"<Value {self.node.name}.{self.port}>" if self.port else f"<Value {self.node.name}>"


class Values(tuple["Value", ...]):
    """The outputs of a call with several: a tuple that also takes a port's name."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, pairs: Mapping[str, Value]) -> Values:
        """Makes it from names and values."""
        made = cls(pairs.values())
        made.names = tuple(pairs)
        return made

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key not in self.names:
                raise GraphError(f"There is no output {key!r}.{nearest(key, self.names)}", port=key)
            return super().__getitem__(self.names.index(key))
        return super().__getitem__(key)


class Pipeline:
    """A pipeline under construction.

    Args:
        name: Its name.
        plugins: Where registered names are looked up; by default all installed plugins.

    Raises:
        GraphError: The name is none.
    """

    def __init__(self, name: str, *, plugins: PluginManager | None = None) -> None:
        if not isinstance(name, str) or not name.strip():
            raise GraphError(f"A pipeline is named by a non-empty string, not {name!r}.", name=name)
        self.name = name
        self._plugins = plugins
        self._inputs: dict[str, PortSpec] = {}
        self._constants: dict[str, Any] = {}
        self._stages: dict[str, Stage] = {}
        self._counts: dict[str, int] = {}
        self._calls: list[Call] = []
        self._outputs: list[str] = []
        self._edges: list[Edge] = []

    def input(self, name: str, spec: PortSpec) -> Value:
        """Adds an input.

        Args:
            name: Unique among the inputs.
            spec: What a request gives for it: a ``TensorSpec`` or a Python type.

        Raises:
            GraphError: The name is taken, or the spec is none.
        """
        check_name("input", name)
        if name in self._inputs:
            raise GraphError(f"Pipeline {self.name!r} has an input {name!r} already.", input=name)
        if not isinstance(spec, (TensorSpec, type)):
            raise GraphError(f"Input {name!r} takes a TensorSpec or a Python type, not {spec!r}.", input=name)
        self._inputs[name] = spec
        return Value(self, NodeKey("input", name), "")

    def add(
        self,
        name: str,
        stage: Any,
        *,
        config: Mapping[str, Any] | None = None,
        device: str | None = None,
        inputs: Any = None,
        outputs: Any = None,
    ) -> Any:
        """Adds a stage; nothing runs it until its handle is called.

        Args:
            name: Unique among the stages.
            stage: A module, a function, a ``ModelWrapper``, a registered name, or a pipeline, which is inlined.
            config: Options: of a registered stage's factory, and of the stage's backend.
            device: Where it runs; ``"host"``: plain Python on the host, which declares ``outputs``.
            inputs: Names of its input ports, or names to specs.
            outputs: Names of its output ports, or names to specs.

        Returns:
            A handle. Calling it with values (or tensors and Python values, as constants), by position or port
            name, draws the edges and returns one :class:`Value`, or one for each declared output.

        Raises:
            GraphError: The name is taken, or the stage or a port is none.
            PluginError: A registered name is unknown, or its plugin is broken.
        """
        check_name("stage", name)
        if name in self._stages or any(path.startswith(f"{name}/") for path in self._stages):
            raise GraphError(
                f"Pipeline {self.name!r} has a stage {name!r} already; names are unique.", stage=name
            )
        options = _overridden(name, config)
        used: frozenset[str] = frozenset()
        if isinstance(stage, str):
            stage, used = resolve_stage(self._manager(), stage, options)
        if isinstance(stage, Pipeline):
            return self._inline(name, stage, options, device, inputs, outputs)
        rest = {option: value for option, value in options.items() if option not in used}
        made = make_stage(name, stage, config=rest, device=device, inputs=inputs, outputs=outputs)
        self._stages[name] = made
        return StageHandle(self, made)

    def _manager(self) -> PluginManager:
        return self._plugins or default_manager()

    def _inline(
        self, name: str, inner: Pipeline, options: Any, device: str | None, inputs: Any, outputs: Any
    ) -> Any:
        for word, given in (("config", options), ("inputs", inputs), ("outputs", outputs)):
            if given:
                raise GraphError(
                    f"{word}= is for a stage, but {name!r} is a pipeline with its own.", stage=name
                )
        if inner is self:
            raise GraphError(
                f"Pipeline {self.name!r} cannot contain itself: that is a cycle.", pipeline=self.name
            )
        graph = inner.graph
        for stage in graph.stages.values():
            path = f"{name}/{stage.name}"
            placed = stage.device if stage.device or stage.host else device
            self._stages[path] = replace(stage, name=path, device=placed)
        return SubPipelineHandle(self, name, graph)

    def output(self, name: str, value: Value) -> None:
        """Adds an output.

        Raises:
            GraphError: The name is taken, or the value is not one of this pipeline.
        """
        check_name("output", name)
        if name in self._outputs:
            raise GraphError(f"Pipeline {self.name!r} has an output {name!r} already.", output=name)
        own = self._own(value, f"output {name!r}")
        self._outputs.append(name)
        self._edges.append(Edge(own.node, own.port, NodeKey("output", name), "", own.via))

    def _own(self, value: Any, where: str) -> Value:
        if isinstance(value, Values):
            raise GraphError(f"The {where} takes one value; pick one of {list(value.names)}.")
        if not isinstance(value, Value):
            raise GraphError(f"The {where} takes a value of the pipeline, not {type(value).__name__}.")
        if value.owner is not self:
            raise GraphError(
                f"{value!r} is of pipeline {value.owner.name!r}, but {where} is of {self.name!r}. Add the other "
                f"pipeline as a stage: add('name', pipeline).",
                value=value,
            )
        return value

    def _fed(self, value: Any, where: str) -> Value:
        """A value of this pipeline, or a constant made of anything else."""
        if isinstance(value, (Value, Values)):
            return self._own(value, where)
        name = f"constant#{len(self._constants) + 1}"
        self._constants[name] = value
        return Value(self, NodeKey("constant", name), "")

    def _call(self, stage: Stage, fed: Mapping[str, Value]) -> str:
        """Adds one call of a stage, with its edges."""
        count = self._counts[stage.name] = self._counts.get(stage.name, 0) + 1
        call = stage.name if count == 1 else f"{stage.name}#{count}"
        self._calls.append(Call(call, stage))
        for port, value in fed.items():
            self._edges.append(Edge(value.node, value.port, NodeKey("call", call), port, value.via))
        return call

    @property
    def graph(self) -> Graph:
        """The graph as drawn so far, frozen.

        Raises:
            GraphError: It breaks a rule.
        """
        idle = next((name for name in self._stages if name not in self._counts), None)
        if idle is not None:
            raise GraphError(
                f"Stage {idle!r} is never called; call its handle, or leave it out.",
                stage=idle,
                pipeline=self.name,
            )
        return Graph(self.name, self._inputs, self._constants, self._calls, self._outputs, self._edges)

    def validate(self) -> Graph:
        """Freezes and checks the graph, without planning it.

        Raises:
            GraphError: It breaks a rule.
        """
        return self.graph

    def plan(
        self,
        device: str = "cpu",
        placement: Mapping[str, str] | None = None,
        sizes: Mapping[str, int | tuple[int, ...]] | None = None,
        residency: Mapping[str, Residency | str] | None = None,
        memory: int | str | Mapping[str, int | str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Plan:
        """Plans the pipeline; no device is touched and nothing is compiled.

        Args:
            device: Where stages run that nothing else places.
            placement: Stage, or inlined pipeline, to device.
            sizes: Buckets of named dims: an int or a tuple for a bare name, a subset of its buckets for a ``Dim``.
            residency: ``"vision.output -> fusion.vision"`` to a forced residency.
            memory: Budget of each device, one rank: bytes or ``"16GB"``, or by device.
            options: Options of backends.

        Raises:
            GraphError: The graph breaks a rule.
            PlanError: It cannot be planned as asked.
        """
        graph = self.graph
        manager = self._manager()
        request = Request(
            lambda name: resolve_backend(manager, name),
            device,
            placement or {},
            sizes or {},
            residency or {},
            memory,
            options or {},
        )
        plan = make_plan(graph, request)
        manager.notify("orchestrator_plan_made", plan=plan)
        return replace(plan, loader=PipelineLoader(graph, manager))

    def bind(self, plan: Plan) -> Plan:
        """Verifies a plan, e.g. one read from JSON, against this pipeline; the result can be loaded.

        Raises:
            PlanError: The plan is wrong, or of another pipeline.
        """
        graph, manager = self.graph, self._manager()
        bound = bind_plan(plan, graph, Request(lambda name: resolve_backend(manager, name)))
        return replace(bound, loader=PipelineLoader(graph, manager))

    def __repr__(self) -> str:
        return f"<Pipeline {self.name!r}: {len(self._stages)} stages, {len(self._calls)} calls>"


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
            f"{name!r} takes {len(ports)} values ({', '.join(ports)}), but was called with {len(args)}."
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
    return {port: pipeline._fed(fed[port], f"port '{name}.{port}'") for port in ports if port in fed}


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
        call = self._pipeline._call(
            self.stage, _feed(self._pipeline, self.name, ports, optional, args, named)
        )
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
                self._constants[constant] = self._pipeline._fed(content, f"constant {constant!r}")
            values[NodeKey("constant", constant), ""] = self._constants[constant]
        self._copy_calls(values)
        results = {name: self._find(values, NodeKey("output", name)) for name in self._graph.outputs}
        return Values.of(results) if len(results) > 1 else next(iter(results.values()))

    def _copy_calls(self, values: dict[tuple[NodeKey, str], Value]) -> None:
        for name in self._graph.order:
            node = NodeKey("call", name)
            inputs = {edge.target_port: self._source(values, edge) for edge in self._graph.into(node)}
            stage = self._pipeline._stages[f"{self.name}/{self._graph.calls[name].stage.name}"]
            call = NodeKey("call", self._pipeline._call(stage, inputs))
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
