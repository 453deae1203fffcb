"""Whose memory a value of the host lies in: what may not be handed out, or given to code that may write, but as a copy.

Values that may share memory are in one *group*: a view and what it is a view of, a carry over all iterations, what a
stage takes and gives where it hands on its input. A group may be *external*: it is the caller's (an input), the
session's (a constant) or a stage's (a parameter). All this is told from the plan; where it cannot tell, a group counts
as shared.
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.plan.model import Plan
from orchestrator.plan.steps import HOST, AdaptStep, BlockStep, CallStep, LoopLikeStep, MapStep, Step
from orchestrator.plan.updated import updates_of
from orchestrator.specs import TensorSpec

__all__ = ["Sharing"]

#: Adapters that make memory of their own.
_COPYING = ("upload", "download", "gather", "cast", "clone")

#: Types of Python values that nobody can write into.
_CONSTANT = (bool, int, float, complex, str, bytes, type(None))


class Sharing:
    """Which values of a plan share memory.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._calls = {call.name: call for call in plan.calls}
        # A forest: each value points to another one of its group, and the root of a group to itself.
        self._parent = list(range(len(plan.values)))
        self._external = {*range(len(plan.inputs))}
        self._external |= {index for index, value in enumerate(plan.values) if value.constant}
        self._host_outputs: set[int] = set()
        self._body: dict[int, int] = dict.fromkeys(self._external, 0)
        self._reads: list[tuple[int, int]] = []
        self._positions: dict[int, tuple[int, int]] = {}
        self._bodies = 0
        self._walk(plan.steps, 0)
        # Only once all steps are walked are the groups whole, and with them who reads a group last.
        end = len(self._positions)
        self._reads += [(index, end) for _, index in plan.outputs]

        self._groups: dict[int, list[int]] = {}
        for index in range(len(plan.values)):
            self._groups.setdefault(self._root(index), []).append(index)
        self._last: dict[int, int] = {}
        for index, clock in self._reads:
            root = self._root(index)
            self._last[root] = max(clock, self._last.get(root, 0))

    def outputs_to_copy(self) -> frozenset[str]:
        """Outputs that are handed out as copies: external ones, and those whose memory an output before them has.

        The output of a host stage counts as external: the stage may keep it.
        """
        names, roots = set(), set()
        for name, index in self._plan.outputs:
            root = self._root(index)
            if self._is_tensor(index) and (
                root in roots or self._is_in(root, self._external | self._host_outputs)
            ):
                names.add(name)
            roots.add(root)
        return frozenset(names)

    def is_shared(self, index: int, step: Step) -> bool:
        """Tells whether somebody else sees the memory of a value that a step reads: its owner, or a later reader."""
        if id(step) not in self._positions:  # a part of a request in chunks
            return self._is_writable(index)
        clock, body = self._positions[id(step)]
        root = self._root(index)
        bodies = {self._body.get(other, body) for other in self._groups[root]}
        return self._is_writable(index) and (
            self._is_in(root, self._external) or self._last.get(root, 0) > clock or bodies != {body}
        )

    def needs_copy(self, index: int, others: Iterable[int]) -> bool:
        """Tells whether the memory of a value is external, or that of one of the others."""
        root = self._root(index)
        is_seen = self._is_in(root, self._external | self._host_outputs) or root in map(self._root, others)
        return self._is_tensor(index) and is_seen

    def is_joined(self, index: int, other: int) -> bool:
        """Tells whether two values may share memory, wherever it is."""
        return self._root(index) == self._root(other)

    def _is_tensor(self, index: int) -> bool:
        value = self._plan.values[index]
        return value.memory == HOST and isinstance(value.spec, TensorSpec)

    def _is_writable(self, index: int) -> bool:
        """Tells whether a stage could write into a value: a tensor, or a Python value that may hold some."""
        value = self._plan.values[index]
        return value.memory == HOST and value.spec not in _CONSTANT

    def _is_in(self, root: int, indices: set[int]) -> bool:
        return not indices.isdisjoint(self._groups[root])

    def _root(self, index: int) -> int:
        while self._parent[index] != index:
            index = self._parent[index]
        return index

    def _join(self, indices: Iterable[int]) -> None:
        first, *rest = map(self._root, indices)
        for other in rest:
            self._parent[self._root(other)] = self._root(first)

    def _walk(self, steps: Iterable[Step], body: int) -> None:
        for step in steps:
            # The clock counts steps in the order of the plan, bodies included: a later reader has a larger number.
            clock = len(self._positions)
            self._positions[id(step)] = clock, body
            self._reads += [(index, clock) for index in step.inputs]
            self._body.update(dict.fromkeys(step.outputs, body))
            match step:
                case CallStep():
                    self._call(step)
                case AdaptStep(adapter=adapter) if adapter.kind not in _COPYING:
                    self._join((*step.inputs[:1], *step.outputs))
                case BlockStep(body=steps_inside):
                    self._bodies += 1
                    self._enter(step, self._bodies)
                    self._walk(steps_inside, self._bodies)
                    self._leave(step)

    def _call(self, step: CallStep) -> None:
        call = self._calls[step.name]
        # What is an input, updated, lies where that input lies, and is the stage's own as little as it is.
        updates = updates_of(call, step)
        for index, source in updates.items():
            self._join((source, index))
        if call.is_declared:
            self._host_outputs |= set(step.outputs) - updates.keys()
        elif call.shares:
            self._join((*step.inputs, *step.outputs))
            self._external |= set(step.outputs)

    def _enter(self, step: BlockStep, inner: int) -> None:
        """Carries share memory with what they begin and end as, slices with the whole."""
        match step:
            case LoopLikeStep():
                self._body.update(dict.fromkeys(step.arguments, inner))
                for carry, result in zip(step.carries, step.results, strict=True):
                    self._join((carry.initial, carry.argument, carry.yielded, result))
                for entry in step.slices:
                    self._join((entry.whole, entry.part))
        match step:
            case MapStep():  # its results are lists of what the batches gave, or views of it
                for part, whole in zip(step.collects, step.stacks, strict=True):
                    self._join((part, whole))

    def _leave(self, step: BlockStep) -> None:
        """What a body yields is read after its last step."""
        match step:
            case LoopLikeStep():
                self._reads += [(index, len(self._positions)) for index in step.yields]
