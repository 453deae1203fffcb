"""An interpreter of plans that computes with names: it shows which content every step reads.

A *content* stands for a tensor: what a call made of which contents. On the device a program owns one buffer for each of
its outputs; to run it again puts new contents there, whoever still holds the old handle. What runs twice, as a region
does for its chunks, is fed other contents the second time. It shares nothing with the planner's own checks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from orchestrator import Plan
from orchestrator.graph import Graph, NodeKey
from orchestrator.plan import HOST, AdaptStep, CallStep, RegionStep
from orchestrator.plan.steps import LeafStep, StepVisitor

__all__ = ["Replay", "stale_reads", "wanted_results"]

Content = int


@dataclass
class _Names:
    """Equal contents are equal numbers, so that comparing them is cheap however deep they are."""

    known: dict[Any, Content] = field(default_factory=dict)

    def of(self, *what: Any) -> Content:
        return self.known.setdefault(what, len(self.known))


@dataclass
class Replay(StepVisitor):
    """One run of a plan's steps.

    Args:
        plan: The plan.
        names: Shared by runs that are compared.
        destroys: Running a program again destroys what it gave before, as on the device.
    """

    plan: Plan
    names: _Names = field(default_factory=_Names)
    destroys: bool = True

    def __post_init__(self) -> None:
        #: Value to the place where its content is: a buffer of a program, or a place of its own.
        self.at: dict[int, Any] = {}
        self.holds: dict[Any, Content] = {}
        self.reads: list[tuple[str, str, Content]] = []
        self.chunk = 0
        self.started = 0
        self.buffered = {group.device for group in self.plan.groups if group.output_buffers}
        for index, value in enumerate(self.plan.values):
            if index < len(self.plan.inputs) or value.constant:
                self._put(index, self.names.of("given", value.origin))

    def run(self) -> Replay:
        self.visit(self.plan.steps)
        return self

    @property
    def results(self) -> dict[str, Content]:
        return {name: self.holds[self.at[index]] for name, index in self.plan.outputs}

    def _put(self, index: int, content: Content, place: Any = None) -> None:
        self.at[index] = place = (index, self.chunk, "own") if place is None else place
        self.holds[place] = content

    def _read(self, reader: str, index: int, running: str = "") -> Content:
        """Reads a value; what lives in the buffer of the program that is running is being overwritten."""
        place = self.at[index]
        spoiled = self.destroys and running and place[0] == running
        content = self.names.of("spoiled", reader) if spoiled else self.holds[place]
        self.reads.append((reader, self.plan.values[index].origin, content))
        return content

    def visit_region(self, step: RegionStep) -> None:
        """Two chunks; what they hand out is there twice, and what is born in it differs."""
        came = {index: self.at[index] for index in step.inputs}
        left: dict[int, list[Content]] = {index: [] for index in step.outputs}
        for self.chunk in (1, 2):
            for index, place in came.items():
                spec = self.plan.values[index].spec
                if set(getattr(spec, "names", ())) & set(step.dims):
                    self._put(index, self.names.of("part", self.chunk, self.holds[place]))
            self.visit(step.body)
            for index, contents in left.items():
                contents.append(self.holds[self.at[index]])
        self.chunk = 0
        self.at.update(came)
        for index, contents in left.items():
            names = getattr(self.plan.values[index].spec, "names", ())
            if set(names) & set(step.dims):
                self._put(index, self.names.of("joined", *contents))
            # What does not have the dim stays where the last chunk left it.

    def visit_call(self, step: CallStep) -> None:
        fed = [self._read(step.name, index, step.program) for index in step.inputs]
        for position, index in enumerate(step.outputs):
            self._made(step, index, position, self.names.of(step.name, position, *fed))

    def _made(self, step: LeafStep, index: int, position: int, content: Content) -> None:
        if step.program and step.device in self.buffered and self.destroys:
            self._put(index, content, (step.program, position))
        else:
            self.started += 1
            self._put(index, content, (f"run {self.started} of {step.program or step.label}", position))

    def visit_adapter(self, step: AdaptStep) -> None:
        """Adapters keep the content: pads and casts are not what this is about."""
        (source,), (target,) = step.inputs, step.outputs
        if step.adapter.place in ("producer", "consumer"):
            self.at[target] = self.at[source]
        elif step.program:
            self._made(step, target, 0, self._read(f"adapt {step.origin}", source, step.program))
        else:
            self._put(target, self._read(f"{step.adapter.kind} {step.origin}", source))


def stale_reads(plan: Plan) -> list[tuple[str, str]]:
    """Returns reader and origin of every read that gets another content than it would if nothing were destroyed."""
    names = _Names()
    safe = Replay(plan, names, destroys=False).run()
    real = Replay(plan, names).run()
    assert len(safe.reads) == len(real.reads)
    found = [read[:2] for read, right in zip(real.reads, safe.reads, strict=True) if read != right]
    found += [("result", name) for name, content in safe.results.items() if real.results[name] != content]
    return found


def wanted_results(graph: Graph, plan: Plan) -> bool:
    """Tells whether a plan without regions computes what its graph says, destroyed buffers included."""
    replay = Replay(plan).run()
    made: dict[tuple[NodeKey, str], Content] = {}
    for name in graph.inputs:
        made[NodeKey("input", name), ""] = replay.names.of("given", name)
    for name in graph.constants:
        made[NodeKey("constant", name), ""] = replay.names.of("given", name)
    for name in graph.order:
        call = plan.call(name)
        edges = {edge.target_port: edge for edge in graph.into(NodeKey("call", name))}
        fed = [made[edges[port].source, edges[port].source_port] for port, _ in call.inputs]
        for position, (port, _) in enumerate(call.outputs):
            made[NodeKey("call", name), port] = replay.names.of(name, position, *fed)
    assert all(plan.values[index].memory == HOST for _, index in plan.outputs)
    return all(
        replay.results[name] == made[edge.source, edge.source_port]
        for name in graph.outputs
        for edge in graph.into(NodeKey("output", name))
    )
