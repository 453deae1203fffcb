"""A graph in the making: what was drawn so far, and the strokes that handles draw with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch

from orchestrator.errors import GraphError
from orchestrator.graph import Call, Edge, Graph, Loop, NodeKey
from orchestrator.pipeline.values import Value, Values
from orchestrator.specs import PortSpec, check_name
from orchestrator.stage import Stage

if TYPE_CHECKING:
    from orchestrator.pipeline.builder import Pipeline

__all__ = ["Drawing"]


class Drawing:
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
    def _pipeline(self) -> Pipeline:
        return cast("Pipeline", self)

    def check_free(self, kind: str, name: str) -> None:
        """Makes sure that a stage or loop may be called so."""
        check_name(kind, name)
        if name in self.stages or any(path.startswith(f"{name}/") for path in self.stages):
            raise GraphError(
                f"Pipeline {self.name!r} has a stage {name!r} already; names are unique.", stage=name
            )

    def adopt(self, name: str, inner: Pipeline, device: str | torch.device | None = None) -> Graph:
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

    def feed(self, value: Any, where: str) -> Value:
        """Returns a value of this pipeline, or a constant made of anything else."""
        if isinstance(value, (Value, Values)):
            return self._own(value, where)
        name = f"constant#{len(self._constants) + 1}"
        self._constants[name] = value
        return Value(self._pipeline, NodeKey("constant", name), "")

    def draw(self, stage: Stage, fed: Mapping[str, Value], loop: str = "") -> str:
        """Adds one call of a stage, in the body of a loop if in any, and returns its name."""
        call = self._numbered(stage.name)
        self._calls.append(Call(call, stage, loop))
        for port, value in fed.items():
            self.join(value, NodeKey("call", call), port)
        return call

    def spare(self, stage: str) -> None:
        """Notes that a stage need not be called."""
        self._counts.setdefault(stage, 0)

    def draw_loop(self, loop: Loop) -> str:
        """Adds a loop, without edges, and returns its name."""
        name = self._numbered(loop.name)
        self._loops.append(replace(loop, name=name))
        return name

    def join(self, value: Value, node: NodeKey, port: str) -> None:
        """Adds an edge."""
        self._edges.append(Edge(value.node, value.port, node, port, value.via))

    def _numbered(self, name: str) -> str:
        count = self._counts[name] = self._counts.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"
