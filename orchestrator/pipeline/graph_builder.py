"""A graph under construction: its stages, calls and edges so far, and the values that stand for outputs in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, SupportsIndex, overload

import torch

from orchestrator.errors import GraphError, nearest
from orchestrator.graph import Call, Edge, Graph, Loop, NodeKey
from orchestrator.pipeline.sub_pipelines import (
    Body,
    FlatGraph,
    Source,
    Statement,
    SubPipeline,
    SubPipelineCall,
)
from orchestrator.specs import PortSpec, TensorSpec, check_name
from orchestrator.stage import Stage

__all__ = ["GraphBuilder", "Value", "Values"]


class Value:
    """Stands for what a call gives, in a pipeline under construction.

    ``value["port"]`` picks an output of a stage that gives a dict. What a call with several outputs gives is
    :class:`Values`: unpack it, or pick one by position or name.
    """

    def __init__(
        self,
        owner: GraphBuilder,
        node: NodeKey,
        port: str,
        stage: Stage | None = None,
        constraints: tuple[TensorSpec, ...] = (),
    ) -> None:
        self.owner = owner
        self.node = node
        self.port = port
        self.stage = stage
        self.constraints = constraints

    def __getitem__(self, port: str) -> Value:
        if not isinstance(port, str) or self.stage is None:
            raise GraphError(f"{self!r} has no port {port!r}.", port=port)
        ports = [item.name for item in self.stage.outputs]
        if ports and port not in ports:
            raise GraphError(f"{self.node.name!r} has no output {port!r}.{nearest(port, ports)}", port=port)
        return Value(self.owner, self.node, port, self.stage, self.constraints)

    def __iter__(self) -> Iterator[Value]:
        raise GraphError(
            f"{self!r} is one output. If its stage gives a tuple, name its parts: add(..., outputs=('a', 'b')).",
            call=self.node.name,
        )

    def __repr__(self) -> str:
        return f"<Value {self.node.name}.{self.port}>" if self.port else f"<Value {self.node.name}>"


def source_of(value: Value) -> Source:
    """Returns what a value stands for."""
    return Source(value.node, value.port, value.constraints, value.stage)


class Values(Value, tuple[Value, ...]):
    """The outputs of a call with several: a tuple that also takes a port's name; no port takes it whole."""

    names: tuple[str, ...]

    def __new__(cls, pairs: Mapping[str, Value]) -> Values:
        """Makes it from names and values."""
        return tuple.__new__(cls, pairs.values())

    def __init__(self, pairs: Mapping[str, Value]) -> None:
        self.names = tuple(pairs)
        super().__init__(self[0].owner, self[0].node, "")

    @staticmethod
    def or_one(pairs: Mapping[str, Value]) -> Value:
        """Returns what a call with these outputs gives: one value as it is, several as one tuple."""
        return Values(pairs) if len(pairs) > 1 else next(iter(pairs.values()))

    @overload
    def __getitem__(self, key: SupportsIndex | str) -> Value: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Value, ...]: ...
    def __getitem__(self, key: SupportsIndex | slice | str) -> Value | tuple[Value, ...]:
        if isinstance(key, str):
            if key not in self.names:
                raise GraphError(f"There is no output {key!r}.{nearest(key, self.names)}", port=key)
            return tuple.__getitem__(self, self.names.index(key))
        return tuple.__getitem__(self, key)

    def __iter__(self) -> Iterator[Value]:
        return tuple.__iter__(self)

    def __repr__(self) -> str:
        return tuple.__repr__(self)


class GraphBuilder:
    """A graph to which inputs, stages, calls, edges and loops are added.

    Args:
        name: The pipeline's name.

    Attributes:
        stages: Stages by name; those of an inlined pipeline or a body are called ``name/stage``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.stages: dict[str, Stage] = {}
        self._inputs: dict[str, PortSpec] = {}
        self._optional: list[str] = []
        # Constants by number; those of parts have numbers between.
        self._constants: dict[int, Any] = {}
        self._constant_count = 0
        # Calls, calls of parts and edges, in order; stages and parts, in order.
        self._statements: list[Statement] = []
        self._members: list[str | SubPipeline] = []
        self._loops: list[Loop] = []
        # What each output comes from; no value, which holds its builder: the two would wait for the cyclic collector.
        self._outputs: dict[str, Source] = {}
        # How often each stage is called, or loop added. A stage that is missing here was never called.
        self._counts: dict[str, int] = {}
        # Names of inlined pipelines and bodies that brought stages along: "sub" for the stage "sub/enc".
        self._prefixes: set[str] = set()
        self._inlined_stages: dict[str, Stage] = {}
        self._call_count = 0
        # The frozen graph, and what another pipeline takes for a part, until something is added.
        self._graph: Graph | None = None
        self._body: Body | None = None

    @property
    def call_count(self) -> int:
        """Number of calls so far."""
        return self._call_count

    @property
    def stage_count(self) -> int:
        """Number of stages so far."""
        return len(self.stages) + sum(part.body.stage_count for part in self._sub_pipelines)

    @property
    def _sub_pipelines(self) -> list[SubPipeline]:
        return [member for member in self._members if isinstance(member, SubPipeline)]

    def freeze(self) -> Graph:
        """Returns the graph so far, checked and frozen; the same one until something is added.

        Raises:
            GraphError: It breaks a rule.
        """
        # Whatever adds to the graph forgets the frozen one. A graph that is refused is not kept: it is checked again.
        if self._graph is None:
            idle = self._idle_stage()
            if idle:
                raise GraphError(
                    f"Stage {idle!r} is never called; call its handle, or leave it out.",
                    stage=idle,
                    pipeline=self.name,
                )
            flat = FlatGraph(self._statements, self._constants, self._inlined_stages)
            self._graph = Graph(
                self.name,
                self._inputs,
                flat.constants,
                flat.calls,
                self._outputs,
                flat.edges,
                self._loops,
                self._optional,
            )
        return self._graph

    def _idle_stage(self) -> str:
        """The first stage that is never called; empty: all are."""
        for member in self._members:
            if isinstance(member, str):
                if member not in self._counts:
                    return member
            elif not member.call_count and member.body.first_stage:
                return f"{member.name}/{member.body.first_stage}"
        return ""

    def _forget(self) -> None:
        """Forgets what was frozen, as something is added."""
        self._graph = self._body = None

    def check_free(self, kind: str, name: str) -> None:
        """Makes sure that a stage or loop may be called so.

        Raises:
            GraphError: The name is none, or taken.
        """
        check_name(kind, name)
        # A name holds no "/", so that only the first part of a stage's path can equal it.
        if name in self.stages or name in self._prefixes:
            raise GraphError(
                f"Pipeline {self.name!r} has a stage {name!r} already; names are unique.", stage=name
            )

    def add_input(self, name: str, spec: PortSpec, optional: bool) -> Value:
        """Adds an input.

        Raises:
            GraphError: The name is taken, or the spec is none.
        """
        check_name("input", name)
        if name in self._inputs:
            raise GraphError(f"Pipeline {self.name!r} has an input {name!r} already.", input=name)
        spec = object if spec is Any else spec
        if not isinstance(spec, (TensorSpec, type)):
            raise GraphError(f"Input {name!r} takes a TensorSpec or a Python type, not {spec!r}.", input=name)
        self._forget()
        self._inputs[name] = spec
        if optional:
            self._optional.append(name)
        return Value(self, NodeKey("input", name), "")

    def add_output(self, name: str, value: Value) -> None:
        """Adds an output.

        Raises:
            GraphError: The name is taken, or the value is not one of this graph.
        """
        check_name("output", name)
        if name in self._outputs:
            raise GraphError(f"Pipeline {self.name!r} has an output {name!r} already.", output=name)
        own = self._own(value, f"output {name!r}")
        self._outputs[name] = source_of(own)
        self.add_edge(own, NodeKey("output", name), "")

    def add_stage(self, stage: Stage) -> None:
        """Adds a stage that is not called yet."""
        self._forget()
        self.stages[stage.name] = stage
        self._members.append(stage.name)

    @contextlib.contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Forgets what its block has added where the block ends in an error: names are free again."""
        before = {
            name: value.copy() if isinstance(value, (dict, list, set)) else value
            for name, value in vars(self).items()
        }
        try:
            yield
        except BaseException:
            vars(self).update(before)
            raise

    def import_stages(
        self, name: str, inner: GraphBuilder, device: str | torch.device | None = None
    ) -> Graph:
        """Takes over the stages of another pipeline, under ``name/``, and returns its graph.

        Args:
            name: What their names begin with here.
            inner: The other pipeline; it is frozen now.
            device: Where those run that their author put nowhere.

        Raises:
            GraphError: It is this pipeline itself, or its graph breaks a rule.
        """
        self._check_other(inner)
        # The author of a stage has the last word on where it runs; the device here is for the others.
        graph = inner.freeze()
        for stage in graph.stages.values():
            keeps = stage.device or stage.host or device is None
            self.add_stage(
                replace(stage, name=f"{name}/{stage.name}", device=stage.device if keeps else str(device))
            )
            self._prefixes.add(name)
        return graph

    def import_sub_pipeline(
        self, name: str, inner: GraphBuilder, device: str | torch.device | None
    ) -> SubPipeline | None:
        """Takes another pipeline for a part, where it can be one; None: its stages have to be imported.

        Args:
            name: What names of its stages begin with here.
            inner: The other pipeline; it is frozen now.
            device: Where those run that their author put nowhere.

        Raises:
            GraphError: It is this pipeline itself, or its graph breaks a rule.
        """
        self._check_other(inner)
        body = inner._as_body()
        if body is None:
            return None
        self._forget()
        part = SubPipeline(name, body, None if device is None else str(device))
        self._members.append(part)
        if body.stage_count:
            self._prefixes.add(name)
        return part

    def _as_body(self) -> Body | None:
        """What another pipeline takes for a part; None where this one has loops or optional inputs.

        Raises:
            GraphError: Its graph breaks a rule.
        """
        if self._loops or self._optional:
            return None
        if self._body is None:
            # A call's ports are looked at when it is added, so two rules are left; where one is broken, the graph says
            # so itself.
            if self._idle_stage() or not self._outputs:
                self.freeze()
            self._body = Body(
                self.name,
                dict(self._inputs),
                self._output_sources(),
                dict(self._constants),
                tuple(self._statements),
                self._first_stage(),
                self.stage_count,
                self._call_count,
                self._constant_count,
            )
        return self._body

    def _check_other(self, inner: GraphBuilder) -> None:
        if inner is self:
            raise GraphError(
                f"Pipeline {self.name!r} cannot contain itself: that is a cycle.", pipeline=self.name
            )

    def _first_stage(self) -> str:
        """The path of the stage that is called first; empty: none is."""
        for statement in self._statements:
            if isinstance(statement, Call):
                return statement.stage.name
            if isinstance(statement, SubPipelineCall) and statement.body.first_stage:
                return f"{statement.name}/{statement.body.first_stage}"
        return ""

    def _output_sources(self) -> dict[str, tuple[Source, int]]:
        """Sources of outputs, each with the number of calls of the stage there."""
        sources: dict[str, tuple[Source, int]] = {}
        for name, source in self._outputs.items():
            sources[name] = (source, self._counts.get(source.node.name.partition("#")[0], 0))
        return sources

    def _own(self, value: Any, where: str) -> Value:
        """Returns a value that is one of this graph.

        Raises:
            GraphError: It is none.
        """
        if isinstance(value, Values):
            names = list(value.names)
            raise GraphError(f"The {where} takes one value; pick one of {names}.", where=where, ports=names)
        if not isinstance(value, Value):
            kind = type(value).__name__
            raise GraphError(
                f"The {where} takes a value of the pipeline, not {kind}.", where=where, value=value
            )
        # A value of another pipeline would make an edge to a node that is not here.
        if value.owner is not self:
            raise GraphError(
                f"{value!r} is of pipeline {value.owner.name!r}, but {where} is of {self.name!r}. Add the other "
                f"pipeline as a stage: add('name', pipeline).",
                where=where,
                value=value,
            )
        return value

    def is_optional(self, value: Value) -> bool:
        """Tells whether a value is an input that a request may leave out."""
        return value.node.kind == "input" and value.node.name in self._optional

    def as_value(self, value: Any, where: str) -> Value:
        """Returns a value of this graph, or a constant made of anything else."""
        if isinstance(value, Value):
            return self._own(value, where)
        self._forget()
        self._constant_count += 1
        self._constants[self._constant_count] = value
        return Value(self, NodeKey("constant", f"constant#{self._constant_count}"), "")

    def add_call(self, stage: Stage, arguments: Mapping[str, Value], loop: str = "") -> str:
        """Adds one call of a stage, in the body of a loop if in any, and returns its name."""
        call = self._unique_name(stage.name)
        self._call_count += 1
        self._statements.append(Call(call, stage, loop))
        for port, value in arguments.items():
            self.add_edge(value, NodeKey("call", call), port)
        return call

    def add_sub_pipeline_call(self, part: SubPipeline, arguments: Mapping[str, Value]) -> dict[str, Value]:
        """Adds one call of a part, and returns its outputs by name."""
        self._forget()
        is_first = part.constant_base is None
        sources = {port: source_of(value) for port, value in arguments.items()}
        call, results = part.call(sources, self._constant_count)
        self._statements.append(call)
        self._call_count += part.body.call_count
        self._constant_count += part.body.constant_count if is_first else 0
        # A pipeline around this one counts its own calls on from here.
        for source, count in part.body.outputs.values():
            if source.node.kind == "call":
                path = f"{part.name}/{source.node.name.partition('#')[0]}"
                self._counts[path] = part.call_count * count
        return {
            name: Value(self, source.node, source.port, source.stage, source.constraints)
            for name, source in results.items()
        }

    def allow_uncalled(self, stage: str) -> None:
        """Notes that a stage need not be called."""
        self._forget()
        self._counts.setdefault(stage, 0)

    def add_loop(self, loop: Loop) -> str:
        """Adds a loop, without edges, and returns its name."""
        name = self._unique_name(loop.name)
        self._loops.append(replace(loop, name=name))
        return name

    def add_edge(self, value: Value, node: NodeKey, port: str) -> None:
        """Adds an edge from a value into a port of a node."""
        self._forget()
        self._statements.append(Edge(value.node, value.port, node, port, value.constraints))

    def _unique_name(self, name: str) -> str:
        """Counts one more use of a stage or loop, and returns its name: ``enc``, then ``enc#2``."""
        self._forget()
        count = self._counts[name] = self._counts.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"
