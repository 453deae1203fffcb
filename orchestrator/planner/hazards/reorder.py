"""Order: blocks of steps put in an order in which nothing is read after it was overwritten.

A *block* runs as one: an adapter, a region, a loop, or a call with the adapters fused into it. ``solve`` keeps the
order it is given, except where a reader of a value must come before the next run of the program that made it. Each
such demand is one more edge of the graph of blocks; a demand that would close a cycle is a *clash*, which no order can
solve.

In the body of a loop a carry is in the buffer of the program that gave it in the iteration before. What a loop gives
that may not run at all may also be in the buffer that its carry started in. What enters a branch is read in its body,
by a name of its own, from the buffer that it is in outside.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from orchestrator.plan.programs import FusedAdapters, place_of
from orchestrator.plan.steps import (
    AdaptStep,
    BranchStep,
    CallStep,
    LoopLikeStep,
    RegionStep,
    Step,
    iter_steps,
)

__all__ = ["Conflict", "Schedule"]

#: Stands for a reader after the last block.
_END = -1
#: Stands for what made a value before the first block.
_START = -2


@dataclass(frozen=True)
class Conflict:
    """A value that no order saves.

    Attributes:
        earlier: The block that made it.
        later: The block that runs its program again; a call, or a region by its dims.
        reader: The block that reads it too late.
        made_by: The call that made it.
        readers: The calls and loops in the reading block; None: all that come after.
        carried: The carry, by its value in the body, whose next value is destroyed before it is read; None: none is.
    """

    earlier: str
    later: str
    reader: str
    made_by: str
    readers: frozenset[str] | None
    carried: int | None = None


class Schedule:
    """The blocks of a list of steps.

    Args:
        steps: Steps in a legal order.
        run_by: The program a step runs, or None.
        fused: What is fused into calls.
        given: Values that are read after the last block.
        carried: Values that are in the buffer of a program before the first block, with the program and the call that
            runs it.
        may_skip: Tells whether a loop may not run at all.

    Attributes:
        moves: What ``solve`` changed, a sentence each.
    """

    def __init__(
        self,
        steps: tuple[Step, ...],
        run_by: Callable[[Step], Hashable | None],
        fused: FusedAdapters,
        given: Collection[int] = (),
        carried: Mapping[int, tuple[Hashable, str]] | None = None,
        may_skip: Callable[[Step], bool] = lambda _: False,
    ) -> None:
        self.moves: list[str] = []
        self._blocks = fused_groups(steps)
        self._run_by = run_by
        self._fused = fused
        self._given = frozenset(given)
        self._carried = carried or {}
        #: What a loop that may not run gives, to what its carry starts with.
        self._initials = {
            result: carry.initial
            for step in steps
            if isinstance(step, LoopLikeStep) and may_skip(step)
            for carry, result in zip(step.carries, step.results, strict=True)
        }
        self._maker = {
            index: at for at, block in enumerate(self._blocks) for step in block for index in step.outputs
        }
        self._needs = [self._needed(block) for block in self._blocks]
        self._programs = [self._run(block) for block in self._blocks]
        self._reads = [self._read(block) for block in self._blocks]
        self._before: list[set[int]] = [set(needs) for needs in self._needs]

    def solve(self) -> tuple[Step, ...] | Conflict:
        """Returns the steps in a safe order, or the first clash."""
        order = list(range(len(self._blocks)))
        while (hazard := self._hazard(order)) is not None:
            maker, later, reader, value = hazard
            if reader in (later, _END) or self._reaches(later, reader):
                return self._conflict(maker, later, reader, value)
            self._before[later].add(reader)
            self._tell(maker, later, reader)
            order = self._sorted()
        return tuple(step for at in order for step in self._blocks[at])

    def _tell(self, maker: int, later: int, reader: int) -> None:
        """Notes that a call was moved; a download by itself has its edge to tell of it."""
        if not isinstance(self._blocks[reader][0], AdaptStep):
            first, second = (_name(self._blocks[at]) for at in (reader, later))
            read = "the iteration before" if maker == _START else _name(self._blocks[maker])
            self.moves.append(
                f"{first!r} comes before {second!r}, whose program overwrites what {read!r} gave."
            )

    def _needed(self, block: tuple[Step, ...]) -> set[int]:
        made = {index for step in block for index in step.outputs}
        reads = {index for step in block for index in step.inputs} - made
        return {self._maker[index] for index in reads if index in self._maker}

    def _run(self, block: tuple[Step, ...]) -> tuple[Hashable, ...]:
        """Programs of a block, in the order of running: a plan is the same in every process."""
        keys = (self._run_by(step) for step in iter_steps(block))
        return tuple(dict.fromkeys(key for key in keys if key is not None))

    def _read(self, block: tuple[Step, ...]) -> frozenset[int]:
        """Values whose buffers the block reads: through names that fused adapters gave them, not by giving names."""
        made = {index for step in iter_steps(block) for index in step.outputs}
        entered = _entered(block)
        reads: set[int] = set()
        for step in iter_steps(block):
            indices: Iterable[int] = step.inputs
            match step:
                case AdaptStep(adapter=adapter) if adapter.place in ("producer", "consumer"):
                    continue
                case RegionStep():
                    continue  # the steps of its body read
                case LoopLikeStep():
                    indices = (*step.yields, *(carry.initial for carry in step.carries))
            reads.update(self._buffer(index, entered) for index in indices)
        return frozenset(reads - made)

    def _buffer(self, index: int, entered: Mapping[int, int]) -> int:
        """The value whose buffer is read for another name of it."""
        root, _ = self._fused.read(index)
        return self._buffer(entered[root], entered) if root in entered else root

    def _hazard(self, order: list[int]) -> tuple[int, int, int, int] | None:
        """Finds a value, by its block, that is read in or after the next run of its program."""
        lives: dict[Hashable, list[tuple[int, int]]] = {}
        for index, (key, _) in self._carried.items():
            lives.setdefault(key, []).append((_START, index))
        readers: dict[int, list[int]] = {}
        place = {at: position for position, at in enumerate(order)}
        for at in order:
            for index in self._reads[at]:
                readers.setdefault(index, []).append(at)
        for at in order:
            held = {key: {value for _, value in found} for key, found in lives.items()}
            for key in self._programs[at]:
                for maker, value in lives.get(key, ()):
                    late = [reader for reader in readers.get(value, ()) if place[reader] >= place[at]]
                    if late or value in self._given:
                        return maker, at, late[0] if late else _END, value
                lives[key] = [(at, index) for index in self._made_in(at, key)]
            self._let_through(at, held, lives)
        return None

    def _let_through(
        self, at: int, held: Mapping[Hashable, set[int]], lives: dict[Hashable, list[tuple[int, int]]]
    ) -> None:
        """Notes that what a loop gives is still where it started, if the loop did not run."""
        for step in self._blocks[at]:
            for final in step.outputs:
                start = self._fused.read(self._initials[final])[0] if final in self._initials else None
                for key in (key for key, values in held.items() if start in values):
                    lives.setdefault(key, []).append((at, final))

    def _made_in(self, at: int, key: Hashable) -> Iterator[int]:
        """Values that a block gives and that live in the buffer of a program."""
        block = self._blocks[at]
        given = {index for step in block for index in step.outputs}
        ends = _ends(block[0])
        run = None
        for step in iter_steps(block):
            if place_of(step) != "producer":
                run = self._run_by(step)
            if run is not None and run == key:
                yield from (index for index in step.outputs if index in given)
                yield from (ends[index] for index in step.outputs if index in ends)

    def _reaches(self, start: int, goal: int) -> bool:
        """Tells whether ``goal`` must come after ``start``."""
        todo, seen = [goal], {goal}
        while todo:
            for before in self._before[todo.pop()]:
                if before == start:
                    return True
                if before not in seen:
                    seen.add(before)
                    todo.append(before)
        return False

    def _sorted(self) -> list[int]:
        """Schedule in the order given, as far as what must come before what allows."""
        waiting = [len(before) for before in self._before]
        after: list[list[int]] = [[] for _ in self._blocks]
        for at, before in enumerate(self._before):
            for other in before:
                after[other].append(at)
        ready = [at for at, count in enumerate(waiting) if not count]
        heapq.heapify(ready)
        order = []
        while ready:
            at = heapq.heappop(ready)
            order.append(at)
            for other in after[at]:
                waiting[other] -= 1
                if not waiting[other]:
                    heapq.heappush(ready, other)
        return order

    def _conflict(self, maker: int, later: int, reader: int, value: int) -> Conflict:
        start = value
        while start in self._initials:
            start = self._fused.read(self._initials[start])[0]
        if start in self._carried:
            return self._clash_over_carry(later, reader, start)
        made_by = (
            self._fused.epilogue[value][0] if value in self._fused.epilogue else _name(self._blocks[maker])
        )
        readers = frozenset(
            step.label for kind in (CallStep, LoopLikeStep) for step in iter_steps(self._blocks[reader], kind)
        )
        earlier, runs = (_name(self._blocks[at]) for at in (maker, later))
        if reader == _END:
            return Conflict(earlier, runs, "what comes after the region", made_by, None)
        reads = _name(self._blocks[reader])
        return Conflict(earlier, runs, reads, made_by, readers)

    def _clash_over_carry(self, later: int, reader: int, value: int) -> Conflict:
        made_by = self._carried[value][1]
        reads = "the iteration after" if reader == _END else _name(self._blocks[reader])
        return Conflict("the iteration before", _name(self._blocks[later]), reads, made_by, None, value)


def _entered(block: tuple[Step, ...]) -> dict[int, int]:
    """What the bodies of branches call the values that enter them, which stay in the buffers that they are in."""
    branches = iter_steps(block, BranchStep)
    return {entry.part: entry.whole for branch in branches for entry in branch.slices}


def _ends(step: Step) -> dict[int, int]:
    """What the last iteration of a loop gave for the next one: it is what the loop gives."""
    match step:
        case LoopLikeStep():
            yields = (carry.yielded for carry in step.carries)
            return dict(zip(yields, step.results, strict=True))
    return {}


def _name(block: tuple[Step, ...]) -> str:
    step = block[0]
    return f"the region of {step.label}" if isinstance(step, RegionStep) else step.label


def fused_groups(steps: tuple[Step, ...]) -> list[tuple[Step, ...]]:
    """Groups of steps: what is fused into a producer stays with it."""
    blocks: list[tuple[Step, ...]] = []
    for step in steps:
        if place_of(step) == "producer":
            blocks[-1] = (*blocks[-1], step)
        else:
            blocks.append((step,))
    return blocks
