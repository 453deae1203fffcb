"""Pipelines that are part of another: what was said to add and to call them, and the flat graph that comes of it.

A pipeline of calls alone, without loops and optional inputs, is not copied where it is added: its *body* is what was
said in it, by its own names, and a *part* refers to it. A body may have parts itself. Only a graph that is asked for is
laid out flat, from the top: each call is copied once, however deep it lies, where a copy at each level would take a
work that grows as the square of the depth.

Names are those that copying at each level would give. The calls of one part have its path in their name, so they are
counted from one call of the part to the next, whatever lies around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

from orchestrator.graph import Call, Edge, NodeKey
from orchestrator.specs import PortSpec, TensorSpec
from orchestrator.stage import Stage

__all__ = ["Body", "FlatGraph", "Source", "Statement", "SubPipeline", "SubPipelineCall"]


class Source(NamedTuple):
    """Where a value comes from: a port of a node, with the specs it meets on its way, and the stage of the node."""

    node: NodeKey
    port: str
    constraints: tuple[TensorSpec, ...] = ()
    stage: Stage | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Body:
    """What was said in a pipeline until it was added to another.

    Attributes:
        name: Its name.
        inputs: Its inputs.
        outputs: Sources of its outputs, each with the number of calls of the stage there.
        constants: Its own constants by number; those of its parts have numbers between.
        statements: Its calls, calls of its parts, and edges, in order.
        first_stage: The first stage that is called, by its path; empty: none is.
        stage_count: Stages in it and its parts.
        call_count: Calls of these.
        constant_count: Constants in it and its parts.
    """

    name: str
    inputs: Mapping[str, PortSpec]
    outputs: Mapping[str, tuple[Source, int]]
    constants: Mapping[int, Any]
    statements: tuple[Statement, ...]
    first_stage: str
    stage_count: int
    call_count: int
    constant_count: int

    @property
    def optional(self) -> frozenset[str]:
        """Inputs that may be missing: none."""
        return frozenset()


@dataclass(eq=False, repr=False)
class SubPipeline:
    """A pipeline in another, under construction.

    Attributes:
        name: What it is called there.
        body: What was said in it.
        device: Where those of its stages run that their author put nowhere.
        call_count: How often it was called so far.
        constant_base: So many constants come before its own; None: it was never called.
    """

    name: str
    body: Body
    device: str | None
    call_count: int = 0
    constant_base: int | None = None

    def call(
        self, arguments: Mapping[str, Source], constant_count: int
    ) -> tuple[SubPipelineCall, dict[str, Source]]:
        """Says that it is called.

        Args:
            arguments: What its inputs are fed with.
            constant_count: Constants so far in the pipeline around it.

        Returns:
            The statement, and the source there of each output.
        """
        # Its constants are numbered once, with the first call.
        if self.constant_base is None:
            self.constant_base = constant_count
        results = {
            name: self._result(source, count, arguments)
            for name, (source, count) in self.body.outputs.items()
        }
        call = SubPipelineCall(self.name, self.body, self.device, self.constant_base, arguments, results)
        self.call_count += 1
        return call, results

    def _result(self, source: Source, count: int, arguments: Mapping[str, Source]) -> Source:
        """What stands around the part for an output of its body, where this stage is called so often."""
        kind, name = source.node
        if kind == "input":
            argument = arguments[name]
            return argument._replace(constraints=(*argument.constraints, *source.constraints))
        if kind == "constant":
            return source._replace(node=_shifted(source.node, self.constant_base or 0))
        path, _, number = name.partition("#")
        node = NodeKey("call", _numbered(f"{self.name}/{path}", self.call_count * count + int(number or 1)))
        return source._replace(node=node)


@dataclass(frozen=True, eq=False, repr=False)
class SubPipelineCall:
    """One call of a part.

    Attributes:
        name: The part's.
        body: Its body.
        device: Its device.
        constant_base: So many constants come before its own.
        arguments: What its inputs are fed with.
        results: What stands around it for its outputs.
    """

    name: str
    body: Body
    device: str | None
    constant_base: int
    arguments: Mapping[str, Source]
    results: Mapping[str, Source]


Statement: TypeAlias = "Call | Edge | SubPipelineCall"


@dataclass(eq=False, repr=False)
class _Frame:
    """One call of a part while it is laid out.

    Attributes:
        statements: Those that are not laid out yet.
        prefix: What names of its stages begin with.
        device: Where those of its stages run that nothing within puts anywhere.
        constant_base: So many constants come before its own.
        inputs: Sources of its inputs in the flat graph.
        call: The statement that it is laid out for; None: it is the whole.
        names: Its calls, and those that give its parts' outputs, to their names in the flat graph.
    """

    statements: Iterator[Statement]
    prefix: str = ""
    device: str | None = None
    constant_base: int = 0
    inputs: Mapping[str, Source] = field(default_factory=dict)
    call: SubPipelineCall | None = None
    names: dict[str, str] = field(default_factory=dict)

    def flat(self, source: Source) -> Source:
        """Returns where in the flat graph a value comes from."""
        kind, name = source.node
        if self.call is None:
            return source
        if kind == "input":
            outer = self.inputs[name]
            return outer._replace(constraints=(*outer.constraints, *source.constraints))
        if kind == "constant":
            return source._replace(node=_shifted(source.node, self.constant_base))
        return source._replace(node=NodeKey("call", self.names[name]))


class FlatGraph:
    """The calls, edges and constants of a pipeline and its parts.

    Args:
        statements: What was said in the pipeline.
        constants: Its own constants by number.
        stages: Stages of parts by their path, from a graph before; new ones are added, so that a stage stays the same.
    """

    def __init__(
        self, statements: Iterable[Statement], constants: Mapping[int, Any], stages: dict[str, Stage]
    ) -> None:
        self.calls: list[Call] = []
        self.edges: list[Edge] = []
        self._stages = stages
        self._constants = dict(constants)
        self._counts: dict[str, int] = {}
        self._lay_out(statements)

    @property
    def constants(self) -> dict[str, Any]:
        """Constants by name, in the order of their numbers."""
        return {f"constant#{number}": self._constants[number] for number in sorted(self._constants)}

    def _lay_out(self, statements: Iterable[Statement]) -> None:
        # A stack in place of recursion: pipelines may be nested deeper than Python's calls. The frame on top is the
        # innermost part, and all that it reads stands before it.
        frames = [_Frame(iter(statements))]
        while frames:
            frame = frames[-1]
            match next(frame.statements, None):
                case Call() as call:
                    self._add_call(frame, call)
                case Edge() as edge:
                    self._add_edge(frame, edge)
                case SubPipelineCall() as part_call:
                    frames.append(self._enter(frame, part_call))
                case None:
                    frames.pop()
                    if frames:
                        self._leave(frame, frames[-1])

    def _add_call(self, frame: _Frame, call: Call) -> None:
        if frame.call is None:
            self.calls.append(call)
            return
        path = f"{frame.prefix}{call.stage.name}"
        if path not in self._stages:
            stage = call.stage
            is_placed = stage.device or stage.host or frame.device is None
            self._stages[path] = replace(stage, name=path, device=stage.device if is_placed else frame.device)
        count = self._counts[path] = self._counts.get(path, 0) + 1
        name = frame.names[call.name] = _numbered(path, count)
        self.calls.append(Call(name, self._stages[path]))

    def _add_edge(self, frame: _Frame, edge: Edge) -> None:
        if frame.call is None:
            self.edges.append(edge)
        elif edge.target.kind == "call":
            source = frame.flat(Source(edge.source, edge.source_port, edge.constraints))
            target = NodeKey("call", frame.names[edge.target.name])
            self.edges.append(Edge(source.node, source.port, target, edge.target_port, source.constraints))

    def _enter(self, frame: _Frame, call: SubPipelineCall) -> _Frame:
        """The frame of a part that is called, with its constants in the graph."""
        base = frame.constant_base + call.constant_base
        self._constants |= {base + number: value for number, value in call.body.constants.items()}
        inputs = {name: frame.flat(source) for name, source in call.arguments.items()}
        device = frame.device if call.device is None else call.device
        return _Frame(iter(call.body.statements), f"{frame.prefix}{call.name}/", device, base, inputs, call)

    def _leave(self, frame: _Frame, outer: _Frame) -> None:
        """Tells the frame around a part under which names the outputs stand."""
        assert frame.call is not None
        for name, (source, _) in frame.call.body.outputs.items():
            if source.node.kind == "call":
                outer.names[frame.call.results[name].node.name] = frame.names[source.node.name]


def _numbered(path: str, number: int) -> str:
    """The name of one of several uses of a stage: ``enc``, then ``enc#2``."""
    return path if number == 1 else f"{path}#{number}"


def _shifted(constant: NodeKey, base: int) -> NodeKey:
    """A constant with so many others before it."""
    return NodeKey("constant", f"constant#{base + int(constant.name.partition('#')[2])}")
