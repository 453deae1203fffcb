"""A graph under construction: its stages, calls and edges so far, and the values that stand for outputs in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from orchestrator.errors import GraphError, nearest
from orchestrator.graph import Call, Edge, Graph, Loop, NodeKey
from orchestrator.specs import PortSpec, TensorSpec, check_name
from orchestrator.stage import Stage

__all__ = ["GraphBuilder", "Value", "Values"]


class Value:
    """Stands for one output while a graph is drawn; ``value["port"]`` picks an output of a stage that gives a dict."""

    __slots__ = ("constraints", "node", "owner", "port", "stage")

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
        known = [item.name for item in self.stage.outputs]
        if known and port not in known:
            raise GraphError(f"{self.node.name!r} has no output {port!r}.{nearest(port, known)}", port=port)
        return Value(self.owner, self.node, port, self.stage, self.constraints)

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


class GraphBuilder:
    """The part of :class:`~orchestrator.pipeline.Pipeline` that holds the graph.

    Args:
        name: Its name.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._inputs: dict[str, PortSpec] = {}
        self._constants: dict[str, Any] = {}
        self.stages: dict[str, Stage] = {}
        self._counts: dict[str, int] = {}
        self._calls: list[Call] = []
        self._outputs: list[str] = []
        self._edges: list[Edge] = []
        self._loops: list[Loop] = []
        self._optional: list[str] = []

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

    def check_free(self, kind: str, name: str) -> None:
        """Makes sure that a stage or loop may be called so."""
        check_name(kind, name)
        if name in self.stages or any(path.startswith(f"{name}/") for path in self.stages):
            raise GraphError(
                f"Pipeline {self.name!r} has a stage {name!r} already; names are unique.", stage=name
            )

    def import_stages(
        self, name: str, inner: GraphBuilder, device: str | torch.device | None = None
    ) -> Graph:
        """Takes over the stages of another pipeline, under ``name/``; returns its graph."""
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
        """Tells whether a value is an input that a request may leave out."""
        return value.node.kind == "input" and value.node.name in self._optional

    def as_value(self, value: Any, where: str) -> Value:
        """Returns a value of this pipeline, or a constant made of anything else."""
        if isinstance(value, (Value, Values)):
            return self._own(value, where)
        name = f"constant#{len(self._constants) + 1}"
        self._constants[name] = value
        return Value(self, NodeKey("constant", name), "")

    def add_call(self, stage: Stage, fed: Mapping[str, Value], loop: str = "") -> str:
        """Adds one call of a stage, in the body of a loop if in any, and returns its name."""
        call = self._numbered(stage.name)
        self._calls.append(Call(call, stage, loop))
        for port, value in fed.items():
            self.add_edge(value, NodeKey("call", call), port)
        return call

    def allow_uncalled(self, stage: str) -> None:
        """Notes that a stage need not be called."""
        self._counts.setdefault(stage, 0)

    def add_loop(self, loop: Loop) -> str:
        """Adds a loop, without edges, and returns its name."""
        name = self._numbered(loop.name)
        self._loops.append(replace(loop, name=name))
        return name

    def add_edge(self, value: Value, node: NodeKey, port: str) -> None:
        """Adds an edge."""
        self._edges.append(Edge(value.node, value.port, node, port, value.constraints))

    def _numbered(self, name: str) -> str:
        count = self._counts[name] = self._counts.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"
