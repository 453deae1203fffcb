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

import enum
import heapq
from collections import deque
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

__all__ = ["Conflict", "Resolution", "Schedule"]

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


class Resolution(enum.Enum):
    """What becomes of a conflict."""

    #: The block that would overwrite the value runs another program.
    OTHER_PROGRAM = enum.auto()
    #: The value is copied out of its buffer.
    COPY = enum.auto()
    #: Something else has changed: the steps are to be ordered anew.
    ANEW = enum.auto()


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
        #: What is still to come before each block, and which blocks wait for it.
        self._before: list[set[int]] = [set(needs) for needs in self._needs]
        self._after: list[list[int]] = [[] for _ in self._blocks]
        for at, needs in enumerate(self._needs):
            for other in needs:
                self._after[other].append(at)
        #: Blocks that were told to wait for a reader.
        self._is_told = [False] * len(self._blocks)
        self._is_out = [False] * len(self._blocks)
        #: Readers of each value, in the order given; values by the program in whose buffer they are, with their block.
        self._readers: dict[int, deque[int]] = {}
        for at, reads in enumerate(self._reads):
            for index in reads:
                self._readers.setdefault(index, deque()).append(at)
        self._lives: dict[Hashable, list[tuple[int, int]]] = {}
        for index, (key, _) in self._carried.items():
            self._lives.setdefault(key, []).append((_START, index))
        #: Values that will be copied out of their buffer in time.
        self._saved: set[int] = set()

    def solve(self, resolve: Callable[[Conflict], Resolution]) -> tuple[Step, ...] | None:
        """Returns the steps in a safe order; None: they are to be ordered anew.

        Blocks are put out one after another, each time the first of the order given that may come next. One that would
        overwrite a value waits for those that still read it; so what is out already is never looked at again.

        Args:
            resolve: Says what becomes of a value that no order saves.
        """
        order: list[int] = []
        ready = [at for at, before in enumerate(self._before) if not before]
        while ready:
            at = heapq.heappop(ready)
            hazard = self._hazard(at)
            if hazard is not None:
                maker, reader, value = hazard
                if reader not in (at, _END) and not self._reaches(at, reader):
                    self._is_told[at] = True
                    self._before[at].add(reader)
                    self._after[reader].append(at)
                    self._tell(maker, at, reader)
                    continue
                match resolve(self._conflict(maker, at, reader, value)):
                    case Resolution.ANEW:
                        return None
                    case Resolution.OTHER_PROGRAM if self._is_told[at]:
                        return None  # with the other program it need not have waited
                    case Resolution.OTHER_PROGRAM:
                        self._programs[at] = self._run(self._blocks[at])
                    case Resolution.COPY:
                        self._saved.add(value)
                heapq.heappush(ready, at)
                continue
            order.append(at)
            self._put_out(at)
            for other in self._after[at]:
                self._before[other].discard(at)
                if not self._before[other]:
                    heapq.heappush(ready, other)
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

    def _hazard(self, at: int) -> tuple[int, int, int] | None:
        """Finds a value, by its block, that a block would overwrite although somebody still reads it."""
        for key in self._programs[at]:
            for maker, value in self._lives.get(key, ()):
                if value in self._saved:
                    continue
                reader = self._next_reader(value)
                if reader is not None or value in self._given:
                    return maker, _END if reader is None else reader, value
        return None

    def _next_reader(self, value: int) -> int | None:
        """The first block that reads a value and is not out yet."""
        readers = self._readers.get(value)
        while readers and self._is_out[readers[0]]:
            readers.popleft()
        return readers[0] if readers else None

    def _put_out(self, at: int) -> None:
        """Notes what is in the buffers of programs once a block has run."""
        self._is_out[at] = True
        # What lives in buffers before it runs counts only for a loop that may not run.
        skips = any(index in self._initials for step in self._blocks[at] for index in step.outputs)
        held = {key: {value for _, value in found} for key, found in self._lives.items()} if skips else {}
        for key in self._programs[at]:
            self._lives[key] = [(at, index) for index in self._made_in(at, key)]
        if skips:
            self._let_through(at, held, self._lives)

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
                if before not in seen and not self._is_out[before]:
                    seen.add(before)
                    todo.append(before)
        return False

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
