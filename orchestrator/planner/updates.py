"""Updates: which value a stage may update in place as it is, and which is copied before.

A stage with an alias writes into the memory of an input, and what it gives is that memory. So nobody may need the
old value afterwards: no later step, no next iteration, no output of the pipeline; and it may be nobody else's: no
tensor of the request, no constant, nothing that a stage keeps. Where one of these is so, the edge into the port gets a
``clone``. A carry that only its start speaks against is copied before its loop, once, and lives in one buffer from
there on.

The pass walks over the steps with the values that are alive, and knows of each in which *buffers* its memory may lie.
In the body of a loop a carry has a buffer of its own, which stands for wherever it lies in that iteration; the loop as
a whole then updates what its carry starts with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.graph import Edge
from orchestrator.plan.steps import (
    HOST,
    AdaptStep,
    BranchStep,
    CallStep,
    LoopLikeStep,
    LoopStep,
    MapStep,
    RegionStep,
    Step,
    iter_steps,
)
from orchestrator.planner.context import PlanContext
from orchestrator.planner.liveness import free_values

__all__ = ["find_clones"]

#: Adapters that make memory of their own; what the others give may be what they got.
_FRESH = ("upload", "download", "gather", "copy", "cast", "clone")


@dataclass(frozen=True)
class _Buffer:
    """Memory of some value.

    Attributes:
        index: The value that it was made for.
        owner: Why it is nobody's to write into, a clause; empty: it is the plan's own.
    """

    index: int
    owner: str = ""


_Buffers = frozenset[_Buffer]


def find_clones(context: PlanContext) -> PlanContext:
    """Says which edges get a copy before an update in place, and for whom.

    Returns:
        The context with :attr:`PlanContext.clones`; where these have grown, its steps must be made again.
    """
    if not any(call.aliases for call in context.calls.values()):
        return context
    return replace(context, clones=_Walk(free_values(context)).run())


class _Walk:
    """Walks over the steps of a plan.

    Attributes:
        clones: Edges that get a copy, with the reason; those of the context are in its steps already.
        buffers: Where each value may lie.
        pins: Buffers of carries that are needed beyond their iteration, with the reason.
        writes: Buffers that were updated.
    """

    def __init__(self, context: PlanContext) -> None:
        self.context = context
        self.clones: dict[Edge, str] = dict(context.clones)
        self.buffers: dict[int, _Buffers] = {}
        self.pins: dict[_Buffer, str] = {}
        self.writes: set[_Buffer] = set()
        self._edges = {edge.destination: edge for edge in context.graph.edges}
        self._readers = _Readers(context)

    def run(self) -> dict[Edge, str]:
        """Returns the edges that get a copy."""
        # What a request begins with is nobody's to write into. Outputs are never freed, so they stay alive to the end.
        for index, value in enumerate(self.context.values):
            if value.constant:
                self.buffers[index] = _own(index, "it is a constant")
        inputs = list(self.context.graph.inputs)
        for index, name in enumerate(inputs):
            self.buffers[index] = _own(index, f"it is the request's own tensor {name!r}")
        self._steps(self.context.steps, set(range(len(inputs))))
        return self.clones

    def _steps(self, steps: Sequence[Step], alive: set[int]) -> None:
        alive = set(alive)
        for step in steps:
            survivors = alive - set(step.frees)
            match step:
                case CallStep():
                    self._call(step, survivors)
                case AdaptStep(inputs=(source,), outputs=(target,), adapter=adapter):
                    views = _Buffers() if adapter.kind in _FRESH else self.buffers[source]
                    self.buffers[target] = views | _own(target)
                case LoopStep():
                    self._loop(step, survivors)
                case BranchStep():
                    self._branch(step, survivors)
                case MapStep():
                    self._map(step, alive)
                case RegionStep():  # another chunk reads what is outside, whatever dies after the last one
                    self._steps(step.body, alive)
                    self.buffers |= {index: self.buffers[index] | _own(index) for index in step.outputs}
            alive = survivors | (set(step.outputs) - set(step.frees))

    def _call(self, step: CallStep, survivors: set[int]) -> None:
        """Places what a call gives: in memory of its own, of its inputs, of its stage, or in that of an alias."""
        call = self.context.calls[step.name]
        inputs = dict(zip((port for port, _ in call.inputs), step.inputs, strict=True))
        outputs = dict(zip((port for port, _ in call.outputs), step.outputs, strict=True))
        all_inputs = _Buffers().union(*(self.buffers[index] for index in step.inputs))
        for index in step.outputs:
            self.buffers[index] = _own(index)
            if call.is_declared or call.device == HOST:
                self.buffers[index] = _own(index, f"stage {call.stage!r} may keep what it gave")
            elif call.shares:
                self.buffers[index] = all_inputs | _own(
                    index, f"it may lie in memory of stage {call.stage!r}"
                )
        # What is updated lies where the input lies; the others that the call reads must not.
        for output, port in call.aliases:
            index = inputs[port]
            beside = {f"{step.name}.{name}": other for name, other in inputs.items() if name != port}
            if self._update(f"{step.name}.{port}", step, index, survivors, beside):
                self.buffers[outputs[output]] = self.buffers[index]
            else:
                self.buffers[outputs[output]] = _own(outputs[output])

    def _update(
        self, port: str, step: Step, index: int, survivors: set[int], beside: Mapping[str, int]
    ) -> bool:
        """Notes that a step updates a value in place; False: a copy of it.

        Args:
            port: The port that it comes in by.
            step: The step.
            index: The value.
            survivors: Values that must keep their content.
            beside: Values that the step reads beside it, by port.
        """
        edge = self._edges[port]
        is_copied = edge in self.clones and edge not in self.context.clones
        reason = "" if is_copied else self._conflict(port, step, index, survivors, beside)
        if reason:
            self.clones[edge] = reason
        if is_copied or reason:
            return False
        self.writes |= self.buffers[index]
        return True

    def _conflict(
        self, port: str, step: Step, index: int, survivors: set[int], beside: Mapping[str, int]
    ) -> str:
        """Why a value may not be updated as it is, a clause; empty: it may."""
        buffers = self.buffers[index]
        for buffer in sorted(buffers, key=lambda item: item.index):
            if buffer.owner or buffer in self.pins:
                return buffer.owner or self.pins[buffer]
        for name, other in beside.items():
            if self.buffers[other] & buffers:
                return f"{name!r} reads it, too"
        for other in sorted(survivors):
            if self.buffers[other] & buffers:
                return f"{self._readers.after(step, other, port)} reads the old value afterwards"
        return ""

    def _loop(self, step: LoopStep, survivors: set[int]) -> None:
        """Walks over the body until it is known which carries are needed beyond their iteration, then as one step."""
        during = survivors | _read_from_outside(step) | {entry.whole for entry in step.slices}
        entries = {carry.argument: _Buffer(carry.argument) for carry in step.carries}
        writes_before, pins_before = self.writes, -1
        while len(self.pins) != pins_before:
            pins_before, self.writes = len(self.pins), set()
            self.buffers |= {argument: frozenset({entry}) for argument, entry in entries.items()}
            self.buffers |= {entry.part: self.buffers[entry.whole] for entry in step.slices}
            self._steps(step.body, during | set(step.arguments))
            self._pin(step, entries, during)
        # From outside, the loop updates the starts of its carries, those among them that later become another carry.
        yields = {carry.argument: self.buffers[carry.yielded] for carry in step.carries}
        sources = {argument: _sources(argument, yields, entries) for argument in entries}
        updates = {argument for argument, entry in entries.items() if entry in self.writes}
        updates = set().union(*(sources[argument] for argument in updates))
        self.writes = writes_before | (self.writes - set(entries.values()))
        starts: dict[int, _Buffers] = {}
        for carry in step.carries:
            port = self._port(carry.argument)
            beside = {
                self._port(other.argument): other.initial
                for other in step.carries
                if other is not carry and self._edges[self._port(other.argument)] not in self.clones
            }
            is_own = carry.argument not in updates or self._update(port, step, carry.initial, during, beside)
            starts[carry.argument] = self.buffers[carry.initial] if is_own else _Buffers()
        for carry, result in zip(step.carries, step.results, strict=True):
            origins = sources[carry.argument]
            places = _Buffers().union(*(starts[origin] | yields[origin] for origin in origins))
            self.buffers[result] = (places - set(entries.values())) | _own(result)
        self.buffers |= {index: _own(index) for index in step.stacks}

    def _port(self, argument: int) -> str:
        return self.context.values[argument].origin

    def _pin(self, step: LoopStep, entries: Mapping[int, _Buffer], during: set[int]) -> None:
        """Notes the carries whose next iteration may not update them: somebody else needs what they begin with."""
        # Whose memory it is comes first, then what outlives the iteration: what is collected, other carries, values
        # from outside. A reason goes along with a buffer from carry to carry, since this is asked until nothing is new.
        collections = _Buffers().union(*(self.buffers[index] for index in step.collects))
        for carry in step.carries:
            buffers = self.buffers[carry.yielded]
            reasons = [buffer.owner or self.pins.get(buffer, "") for buffer in buffers]
            if buffers & collections:
                reasons.append(f"loop {step.name!r} collects it")
            reasons += [
                f"{self._port(other.argument)!r} goes on with the same tensor"
                for other in step.carries
                if other is not carry and self.buffers[other.yielded] & buffers
            ]
            reasons += [
                f"{self._port(other)!r} is read again in the next iteration"
                for other in sorted(during)
                if self.buffers[other] & buffers
            ]
            reason = next(filter(None, reasons), "")
            if reason:
                self.pins.setdefault(entries[carry.argument], reason)

    def _branch(self, step: BranchStep, survivors: set[int]) -> None:
        """Walks over a body that runs once or not at all: what it is otherwise is read only where it does not run."""
        self.buffers |= {entry.part: self.buffers[entry.whole] for entry in step.slices}
        self.buffers |= {carry.argument: self.buffers[carry.initial] for carry in step.carries}
        parts = {entry.part for entry in step.slices}
        self._steps(step.body, survivors | _read_from_outside(step) | parts)
        for carry, result in zip(step.carries, step.results, strict=True):
            both = self.buffers[carry.initial] | self.buffers[carry.yielded]
            self.buffers[result] = both | _own(result)

    def _map(self, step: MapStep, alive: set[int]) -> None:
        """Walks over a body that runs for each batch."""
        for entry in step.slices:
            self.buffers[entry.part] = _own(
                entry.part, f"a batch of map {step.name!r} may be a view of its items"
            )
        self._steps(step.body, alive | set(step.arguments))
        for part, index in zip(step.collects, step.stacks, strict=True):
            self.buffers[index] = self.buffers[part] | _own(index)


class _Readers:
    """Who reads which value, and when.

    Args:
        context: The plan so far, with steps and edges.
    """

    def __init__(self, context: PlanContext) -> None:
        self._positions = {id(step): at for at, step in enumerate(iter_steps(context.steps))}
        makers = {index: step for step in iter_steps(context.steps, AdaptStep) for index in step.outputs}
        # An edge reads the value at its end, and all that this was made of on its way.
        places = {
            step.label: self._positions[id(step)]
            for step in iter_steps(context.steps)
            if isinstance(step, (CallStep, LoopLikeStep))
        }
        self._reads: dict[int, list[tuple[float, str]]] = {}
        for edge in context.edges:
            index, outputs = edge.value, context.graph.outputs
            name = f"output {edge.target!r}" if edge.target in outputs else repr(edge.target)
            position = places.get(edge.target.rpartition(".")[0], math.inf)
            while True:
                self._reads.setdefault(index, []).append((position, name))
                if index not in makers:
                    break
                index = makers[index].inputs[0]

    def after(self, step: Step, index: int, port: str) -> str:
        """Returns who reads a value after a step, a port of it apart; else who does in the next iteration."""
        position = self._positions[id(step)]
        reads = [(at, name) for at, name in sorted(self._reads.get(index, [])) if name != repr(port)]
        later = [name for at, name in reads if at > position]
        return (later or [name for _, name in reads] or ["the next iteration or chunk"])[0]


def _own(index: int, owner: str = "") -> _Buffers:
    return frozenset({_Buffer(index, owner)})


def _read_from_outside(step: LoopLikeStep) -> set[int]:
    """Values that a body reads, or yields, and that are made outside of it."""
    inner = list(iter_steps(step.body))
    own = {index for part in inner for index in part.outputs} | set(step.arguments)
    own |= {index for part in inner if isinstance(part, LoopLikeStep) for index in part.arguments}
    return ({index for part in inner for index in part.inputs} | set(step.yields)) - own


def _sources(argument: int, yields: Mapping[int, _Buffers], entries: Mapping[int, _Buffer]) -> set[int]:
    """Carries whose buffer a carry may have after some iterations, itself among them."""
    sources, todo = {argument}, [argument]
    while todo:
        buffers = yields[todo.pop()]
        origins = {other for other, entry in entries.items() if entry in buffers} - sources
        sources |= origins
        todo += origins
    return sources
