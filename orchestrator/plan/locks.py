"""Locks: what one request at a time uses of a device, and from which step to which it does.

A program's output buffer holds what one request made of it until that has been read; a state holds what one request
wrote until its loops are done. Requests that run at the same time may use neither between. So a step takes *locks*
before it runs and gives them back after it: a lock is held from the run of a program to the last reader of what it
gave, and no longer. In between, and beside it, other requests go on: in host stages, on other devices, in programs
whose locks are free.

A lock may have several *members*. Two programs of which each runs while the values of the other are still to be read
would let two requests wait for each other for ever; they have one lock in common. What is left has an order, in which
every request takes its locks, so that no two wait for each other.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from orchestrator.adapter import MOVES
from orchestrator.plan.records import PlanData, PlannedLock
from orchestrator.plan.steps import (
    HOST,
    AdaptStep,
    CallStep,
    LeafStep,
    LoopLikeStep,
    LoopStep,
    Step,
    body_of,
    iter_steps,
    with_body,
)

if TYPE_CHECKING:
    from orchestrator.plan.parts import Part

__all__ = [
    "LockSpan",
    "lock_spans",
    "members_of",
    "with_locks",
    "with_part_locks",
    "with_same_locks",
    "without_locks",
]

P = TypeVar("P", bound=PlanData)

#: First and last step, by their positions in one list of steps, that a lock is held over.
_Span = tuple[int, int]


def members_of(plan: PlanData) -> tuple[str, ...]:
    """Returns what needs a lock: programs with an output buffer, and states."""
    buffered = {group.device for group in plan.groups if group.overwrites_outputs}
    programs = [program.name for program in plan.programs if program.device in buffered]
    return (*programs, *(state.name for state in plan.states))


def with_locks(plan: P) -> P:
    """Returns a plan whose steps take and give back as few locks for as short a time as its values allow."""
    members = members_of(plan)
    if not members:
        return plan
    groups: list[tuple[str, ...]] = [(name,) for name in members]
    # Members that wait for one another get one lock, which is held where any of them was: that may make others wait for
    # one another. There are fewer locks each time.
    while True:
        placement = _Placement(plan, groups)
        placement.run()
        merged = _components(len(groups), placement.waits)
        if len(merged) == len(groups):
            break
        groups = [tuple(name for at in component for name in groups[at]) for component in merged]
    order = _order(len(groups), placement.waits)
    locks = tuple(PlannedLock(groups[at][0], groups[at]) for at in order)
    return with_same_locks(replace(plan, locks=locks))


def with_same_locks(plan: P) -> P:
    """Returns a plan of the same locks whose steps take them anew, after some of them were changed.

    Where the order of the locks does not suit these steps, the first one takes all and the last one gives them back.
    """
    if not plan.locks:
        return plan
    placement = _Placement(plan, [lock.members for lock in plan.locks])
    steps = placement.run()
    if all(held < taken for held, taken in placement.waits):
        return replace(plan, steps=steps)
    names = tuple(lock.name for lock in plan.locks)
    steps = without_locks(plan.steps)
    steps = (replace(steps[0], locks=names), *steps[1:])
    return replace(plan, steps=(*steps[:-1], replace(steps[-1], unlocks=names[::-1])))


def with_part_locks(
    plan: PlanData, parts: Sequence[Part], *, is_alone: bool
) -> tuple[tuple[str, ...], tuple[tuple[Step, ...], ...]]:
    """Returns the locks of a request in parts: those that it holds from its begin to its end, and the others.

    Args:
        plan: The plan whose values they have.
        parts: All of its parts, each of which runs by itself, some several times.
        is_alone: All locks are to be held all the time.

    Returns:
        Names of the first, in the order of taking; and the steps of each part, which take and give back the others.
    """
    names = tuple(lock.name for lock in plan.locks)
    if is_alone or not names:
        return names, tuple(without_locks(part.steps) for part in parts)
    placement = _Placement(
        replace(plan, steps=tuple(step for part in parts for step in part.steps)),
        [lock.members for lock in plan.locks],
    )
    placement.find()
    # What is in a buffer or a state while parts come and go is held all the time.
    held = placement.guards({index for part in parts for index in (*part.reads, *part.results)})
    steps = tuple(placement.place(part.steps, held) for part in parts)
    if all(before < after for before, after in placement.waits):
        return tuple(names[at] for at in sorted(held)), steps
    return with_part_locks(plan, parts, is_alone=True)


def without_locks(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Returns steps that take no locks, for a request that has them all."""
    return tuple(
        replace(with_body(step, without_locks(body_of(step))), locks=(), unlocks=()) for step in steps
    )


class LockSpan(NamedTuple):
    """One stretch of steps that a request holds a lock over.

    Attributes:
        lock: The lock.
        first: The step that takes it, by its label.
        last: The step after which it is given back.
        host_calls: Calls of host stages in between: they run while other requests wait.
    """

    lock: str
    first: str
    last: str
    host_calls: tuple[str, ...]


def lock_spans(steps: Sequence[Step]) -> list[LockSpan]:
    """Returns what steps and their bodies hold, in the order of taking."""
    # Host stages of all steps in their order, and how many of them are those of earlier steps.
    host_calls: list[str] = []
    counts: list[int] = []
    for step in steps:
        counts.append(len(host_calls))
        host_calls += [call.name for call in iter_steps((step,), CallStep) if call.device == HOST]
    counts.append(len(host_calls))
    ends: dict[str, list[int]] = {}
    for at, step in enumerate(steps):
        for name in step.unlocks:
            ends.setdefault(name, []).append(at)
    spans = []
    for at, step in enumerate(steps):
        for name in step.locks:
            end = ends[name][bisect.bisect_left(ends[name], at)]
            span_calls = tuple(host_calls[counts[at] : counts[end + 1]])
            spans.append(LockSpan(name, step.label, steps[end].label, span_calls))
        spans += lock_spans(body_of(step))
    return spans


@dataclass
class _Placement:
    """Puts locks on the steps of a plan.

    Attributes:
        plan: The plan.
        groups: The members of each lock; a lock goes by its position here.
        waits: Pairs of a lock that is held where another one is taken, and that one.
    """

    plan: PlanData
    groups: Sequence[tuple[str, ...]]
    waits: set[tuple[int, int]] = field(default_factory=set)

    def run(self) -> tuple[Step, ...]:
        """Returns the steps with their locks."""
        self.find()
        return self.place(self.plan.steps, frozenset())

    def find(self) -> None:
        """Finds what each value of the plan may be in."""
        self._lock_of = {name: at for at, members in enumerate(self.groups) for name in members}
        self._states = {origin: state.name for state in self.plan.states for origin in state.origins}
        self._owners = self._find_owners()

    def _find_owners(self) -> Mapping[int, frozenset[int]]:
        """The locks of the buffers and states that each value may be in."""
        owners: dict[int, frozenset[int]] = {}
        # What a loop hands on is where the iteration before put it: sets grow until nothing changes any more.
        while True:
            size = sum(map(len, owners.values()))
            for step in iter_steps(self.plan.steps):
                for source, target in _aliases(step):
                    owners[target] = owners.get(target, frozenset()) | owners.get(source, frozenset())
                for index in step.outputs if getattr(step, "program", "") else ():
                    state = self._states.get(self.plan.values[index].origin)
                    names = self._programs(step) if state is None else [state]
                    owners[index] = owners.get(index, frozenset()) | self._locks(names)
            if size == sum(map(len, owners.values())):
                return owners

    def _programs(self, step: Step) -> list[str]:
        match step:
            case CallStep(program=program, alternate=alternate):
                return [program, alternate]
            case LeafStep(program=program):
                return [program]
        return []

    def _locks(self, names: Iterable[str]) -> frozenset[int]:
        return frozenset(self._lock_of[name] for name in names if name in self._lock_of)

    def guards(self, indices: Iterable[int]) -> frozenset[int]:
        """Returns the locks of what these values may be in."""
        return frozenset[int]().union(*(self._owners.get(index, frozenset()) for index in indices))

    def place(self, steps: Sequence[Step], outer: frozenset[int]) -> tuple[Step, ...]:
        """Puts locks on steps that run while the outer ones are held."""
        taken_at: dict[int, set[int]] = {}
        last_at: dict[int, set[int]] = {}
        for lock, spans in self._spans(steps).items():
            for start, end in () if lock in outer else _merge(spans):
                taken_at.setdefault(start, set()).add(lock)
                last_at.setdefault(end, set()).add(lock)
        names = [members[0] for members in self.groups]
        result = []
        # What is held here: taken at an earlier step, and not yet given back.
        held: set[int] = set()
        for at, step in enumerate(steps):
            taken, last = taken_at.get(at, set()), last_at.get(at, set())
            self.waits |= {(other, lock) for lock in taken for other in outer | held}
            held |= taken
            result.append(
                replace(
                    with_body(step, self.place(body_of(step), outer | held)),
                    locks=tuple(names[lock] for lock in sorted(taken)),
                    unlocks=tuple(names[lock] for lock in sorted(last, reverse=True)),
                )
            )
            held -= last
        return tuple(result)

    def _spans(self, steps: Sequence[Step]) -> dict[int, list[_Span]]:
        """For each lock where it is needed: at the runs of its programs, and from what they give to its readers."""
        spans: dict[int, list[_Span]] = {}
        positions: dict[int, int] = {}
        for at, step in enumerate(steps):
            # Inside of a block its body takes a lock, where no value crosses the block's border or that of an
            # iteration in what the lock guards.
            crossing = self.guards(_border(step))
            inside = [inner for inner in iter_steps((step,), LeafStep) if inner.program]
            runs = self._locks(name for inner in inside for name in self._programs(inner))
            for lock in crossing | (frozenset() if body_of(step) else runs):
                spans.setdefault(lock, []).append((at, at))
            for index in _reads(step):
                if index in positions:
                    for lock in self._owners.get(index, ()):
                        spans.setdefault(lock, []).append((positions[index], at))
            positions |= dict.fromkeys(step.outputs, at)
        return spans


def _aliases(step: Step) -> list[tuple[int, int]]:
    """Values that a step gives another name, which leaves them where they are, each with that name."""
    match step:
        case AdaptStep(program="", adapter=adapter) if adapter.kind not in MOVES:
            return [(step.inputs[0], step.outputs[0])]
        case LoopLikeStep(carries=carries, slices=slices):
            pairs = [(entry.whole, entry.part) for entry in slices]
            for carry, result in zip(carries, step.results, strict=True):
                pairs += [(source, carry.argument) for source in (carry.initial, carry.yielded)]
                pairs += [(source, result) for source in (carry.initial, carry.yielded)]
            return pairs
    return []


def _border(step: Step) -> set[int]:
    """Values that come into a step, or leave it; in a block also those that go from one iteration to the next."""
    values = {*step.outputs, *_reads(step)}
    match step:
        case LoopStep(progress_outputs=progress_outputs):
            values |= {*step.arguments, *step.yields, *(index for _, index in progress_outputs)}
        case LoopLikeStep():
            values |= {*step.arguments, *step.yields}
    return values


def _reads(step: Step) -> set[int]:
    """Values that a step or its body reads and that it does not make itself."""
    reads = {index for inner in iter_steps((step,)) for index in inner.inputs}
    return reads - {index for inner in iter_steps(body_of(step)) for index in inner.outputs}


def _merge(spans: Iterable[_Span]) -> list[_Span]:
    """Joins spans that have a step in common."""
    merged: list[_Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _components(count: int, waits: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Numbers that reach each other by ``waits``, each group in ascending order."""
    after: dict[int, set[int]] = {}
    for one, other in waits:
        after.setdefault(one, set()).add(other)
    reach: list[set[int]] = []
    for start in range(count):
        todo, seen = [start], {start}
        while todo:
            fresh = after.get(todo.pop(), set()) - seen
            seen |= fresh
            todo += fresh
        reach.append(seen)
    groups: list[list[int]] = []
    for number in range(count):
        group = [other for other in reach[number] if number in reach[other]]
        if min(group) == number:
            groups.append(sorted(group))
    return groups


def _order(count: int, waits: Iterable[tuple[int, int]]) -> list[int]:
    """Numbers in an order that all ``waits`` agree with, else ascending."""
    before: dict[int, set[int]] = {number: set() for number in range(count)}
    for one, other in waits:
        before[other].add(one)
    ready = [number for number in range(count) if not before[number]]
    order: list[int] = []
    while ready:
        number = heapq.heappop(ready)
        order.append(number)
        for other, needs in before.items():
            if number in needs:
                needs.discard(number)
                if not needs:
                    heapq.heappush(ready, other)
    return order
