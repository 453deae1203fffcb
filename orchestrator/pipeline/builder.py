"""The builder: inputs, stages and outputs, and from there to a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from orchestrator.errors import GraphError, PlanError
from orchestrator.graph import Call, Edge, Graph, Loop, NodeKey
from orchestrator.loader import PipelineLoader, resolve_backend, resolve_stage
from orchestrator.pipeline.handles import StageHandle, SubPipelineHandle
from orchestrator.pipeline.overrides import overridden
from orchestrator.pipeline.repeating import Repeating
from orchestrator.pipeline.values import Value, Values
from orchestrator.plan import Plan, Residency
from orchestrator.planner import Request, bind_plan, make_plan
from orchestrator.plugin import PluginManager, default_manager
from orchestrator.specs import PortSpec, TensorSpec, check_name
from orchestrator.stage import ModelWrapper, Stage, make_stage

__all__ = ["Pipeline"]


class Pipeline(Repeating):
    """A pipeline under construction.

    Args:
        name: Its name.
        plugins: Where registered names are looked up; by default all installed plugins.

    Attributes:
        example_inputs: What is run when nobody gives inputs, as by ``orchestrator run NAME``; its author sets it, or
            leaves it None. It is called with the largest compiled size of each named dim and returns inputs by name
            that fit them, the same ones each time.

    Raises:
        GraphError: The name is none.
    """

    def __init__(self, name: str, *, plugins: PluginManager | None = None) -> None:
        if not isinstance(name, str) or not name.strip():
            raise GraphError(f"A pipeline is named by a non-empty string, not {name!r}.", name=name)
        self.name = name
        self.example_inputs: Callable[[Mapping[str, int]], Mapping[str, Any]] | None = None
        self._plugins = plugins
        self._inputs: dict[str, PortSpec] = {}
        self._constants: dict[str, Any] = {}
        self.stages: dict[str, Stage] = {}
        self._counts: dict[str, int] = {}
        self._calls: list[Call] = []
        self._outputs: list[str] = []
        self._edges: list[Edge] = []
        self._loops: list[Loop] = []
        self._optional: list[str] = []

    def input(self, name: str, spec: PortSpec, *, optional: bool = False) -> Value:
        """Adds an input.

        Args:
            name: Unique among the inputs.
            spec: What a request gives for it: a ``TensorSpec`` or a Python type.
            optional: A request may leave it out; only branches (:meth:`when`) read it.

        Raises:
            GraphError: The name is taken, or the spec is none.
        """
        check_name("input", name)
        if name in self._inputs:
            raise GraphError(f"Pipeline {self.name!r} has an input {name!r} already.", input=name)
        spec = object if spec is Any else spec
        if not isinstance(spec, (TensorSpec, type)):
            raise GraphError(f"Input {name!r} takes a TensorSpec or a Python type, not {spec!r}.", input=name)
        self._inputs[name] = spec
        if optional:
            self._optional.append(name)
        return Value(self, NodeKey("input", name), "")

    def add(
        self,
        name: str,
        stage: Any,
        *,
        config: Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
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
        self.check_free("stage", name)
        if config is not None and not isinstance(config, Mapping):
            raise GraphError(f"config of stage {name!r} is a dict of options, not {config!r}.", stage=name)
        options = overridden(name, config)
        used: frozenset[str] = frozenset()
        accepts: tuple[str, ...] = ()
        if isinstance(stage, str):
            stage, used, accepts = resolve_stage(self._manager(), stage, options)
        if isinstance(stage, Pipeline):
            return self._inline(name, stage, options, device, inputs, outputs)
        if not isinstance(stage, ModelWrapper):
            stage = self._manager().adopt(stage)
        rest = {option: value for option, value in options.items() if option not in used}
        made = make_stage(name, stage, config=rest, device=device, inputs=inputs, outputs=outputs)
        made = replace(made, accepts=accepts)
        self.stages[name] = made
        return StageHandle(self, made)

    def check_free(self, kind: str, name: str) -> None:
        """Makes sure that a stage or loop may be called so; handles call it."""
        check_name(kind, name)
        if name in self.stages or any(path.startswith(f"{name}/") for path in self.stages):
            raise GraphError(
                f"Pipeline {self.name!r} has a stage {name!r} already; names are unique.", stage=name
            )

    def _manager(self) -> PluginManager:
        return self._plugins or default_manager()

    def _inline(
        self,
        name: str,
        inner: Pipeline,
        options: Any,
        device: str | torch.device | None,
        inputs: Any,
        outputs: Any,
    ) -> Any:
        for word, given in (("config", options), ("inputs", inputs), ("outputs", outputs)):
            if given:
                raise GraphError(
                    f"{word}= is for a stage, but {name!r} is a pipeline with its own.", stage=name
                )
        return SubPipelineHandle(self, name, self.adopt(name, inner, device))

    def adopt(self, name: str, inner: Pipeline, device: str | torch.device | None = None) -> Graph:
        """Takes over the stages of another pipeline, under ``name/``; returns its graph; handles call it."""
        if inner is self:
            raise GraphError(
                f"Pipeline {self.name!r} cannot contain itself: that is a cycle.", pipeline=self.name
            )
        graph = inner.graph
        for stage in graph.stages.values():
            path = f"{name}/{stage.name}"
            keeps = stage.device or stage.host or device is None
            self.stages[path] = replace(stage, name=path, device=stage.device if keeps else str(device))
        return graph

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
            names = list(value.names)
            raise GraphError(f"The {where} takes one value; pick one of {names}.", where=where, ports=names)
        if not isinstance(value, Value):
            kind = type(value).__name__
            raise GraphError(
                f"The {where} takes a value of the pipeline, not {kind}.", where=where, value=value
            )
        if value.owner is not self:
            raise GraphError(
                f"{value!r} is of pipeline {value.owner.name!r}, but {where} is of {self.name!r}. Add the other "
                f"pipeline as a stage: add('name', pipeline).",
                where=where,
                value=value,
            )
        return value

    def is_optional(self, value: Value) -> bool:
        """Tells whether a value is an input that a request may leave out; handles call it."""
        return value.node.kind == "input" and value.node.name in self._optional

    def feed(self, value: Any, where: str) -> Value:
        """Returns a value of this pipeline, or a constant made of anything else; handles call it."""
        if isinstance(value, (Value, Values)):
            return self._own(value, where)
        name = f"constant#{len(self._constants) + 1}"
        self._constants[name] = value
        return Value(self, NodeKey("constant", name), "")

    def draw(self, stage: Stage, fed: Mapping[str, Value], loop: str = "") -> str:
        """Adds one call of a stage, in the body of a loop if in any, and returns its name; handles call it."""
        call = self._numbered(stage.name)
        self._calls.append(Call(call, stage, loop))
        for port, value in fed.items():
            self.join(value, NodeKey("call", call), port)
        return call

    def draw_loop(self, loop: Loop) -> str:
        """Adds a loop, without edges, and returns its name; handles call it."""
        name = self._numbered(loop.name)
        self._loops.append(replace(loop, name=name))
        return name

    def join(self, value: Value, node: NodeKey, port: str) -> None:
        """Adds an edge; handles call it."""
        self._edges.append(Edge(value.node, value.port, node, port, value.via))

    def _numbered(self, name: str) -> str:
        count = self._counts[name] = self._counts.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"

    @property
    def graph(self) -> Graph:
        """The graph as drawn so far, frozen.

        Raises:
            GraphError: It breaks a rule.
        """
        idle = next((name for name in self.stages if name not in self._counts), None)
        if idle is not None:
            raise GraphError(
                f"Stage {idle!r} is never called; call its handle, or leave it out.",
                stage=idle,
                pipeline=self.name,
            )
        return Graph(
            self.name,
            self._inputs,
            self._constants,
            self._calls,
            self._outputs,
            self._edges,
            self._loops,
            self._optional,
        )

    def validate(self) -> Graph:
        """Freezes and checks the graph, without planning it.

        Raises:
            GraphError: It breaks a rule.
        """
        return self.graph

    def plan(
        self,
        device: str | torch.device = "cpu",
        placement: Mapping[str, str | torch.device] | None = None,
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
        if not isinstance(plan, Plan):
            raise PlanError(f"bind takes a Plan, not {plan!r}; Plan.from_json(text) reads one.", plan=plan)
        graph, manager = self.graph, self._manager()
        bound = bind_plan(plan, graph, Request(lambda name: resolve_backend(manager, name)))
        return replace(bound, loader=PipelineLoader(graph, manager))

    def __repr__(self) -> str:
        return f"<Pipeline {self.name!r}: {len(self.stages)} stages, {len(self._calls)} calls>"
