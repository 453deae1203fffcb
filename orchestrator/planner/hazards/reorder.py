"""Order: blocks of steps put in an order in which nothing is read after it was overwritten.

A *block* runs as one: an adapter, a region, a loop, or a call with the adapters fused into it. ``solve`` keeps the
order it is given, except where a reader of a value must come before the next run of the program that made it. Each
such demand is one more edge of the graph of blocks; a demand that would close a cycle is a *conflict*, which no order
can solve.

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
        producer: The call that made it.
        readers: The calls and loops in the reading block; None: all that come after.
        carry: The carry, by its value in the body, whose next value is destroyed before it is read; None: none is.
    """

    earlier: str
    later: str
    reader: str
    producer: str
    readers: frozenset[str] | None
    carry: int | None = None


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
        fused_adapters: What is fused into calls.
        live_out: Values that are read after the last block.
        carry_buffers: Values that are in the buffer of a program before the first block, with the program and the call
            that runs it.
        may_skip: Tells whether a loop may not run at all.

    Attributes:
        moves: What ``solve`` changed, a sentence each.
    """

    def __init__(
        self,
        steps: tuple[Step, ...],
        run_by: Callable[[Step], Hashable | None],
        fused_adapters: FusedAdapters,
        live_out: Collection[int] = (),
        carry_buffers: Mapping[int, tuple[Hashable, str]] | None = None,
        may_skip: Callable[[Step], bool] = lambda _: False,
    ) -> None:
        # What each block reads, runs and needs is worked out once: `solve` asks for it at every block.
        self.moves: list[str] = []
        self._blocks = fused_groups(steps)
        self._run_by = run_by
        self._fused_adapters = fused_adapters
        self._live_out = frozenset(live_out)
        self._carry_buffers = carry_buffers or {}
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
        self._needs = [self._producers(block) for block in self._blocks]
        self._programs = [self._programs_of(block) for block in self._blocks]
        self._reads = [self._values_read(block) for block in self._blocks]
        #: What is still to come before each block, and which blocks wait for it.
        self._before: list[set[int]] = [set(needs) for needs in self._needs]
        self._after: list[list[int]] = [[] for _ in self._blocks]
        for at, needs in enumerate(self._needs):
            for other in needs:
                self._after[other].append(at)
        #: Blocks that wait for a reader by a demand, not by what they need; blocks that are put out already.
        self._is_waiting = [False] * len(self._blocks)
        self._is_out = [False] * len(self._blocks)
        #: Readers of each value, in the order given; values by the program in whose buffer they are, with their block.
        self._readers: dict[int, deque[int]] = {}
        for at, reads in enumerate(self._reads):
            for index in reads:
                self._readers.setdefault(index, deque()).append(at)
        self._lives: dict[Hashable, list[tuple[int, int]]] = {}
        for index, (key, _) in self._carry_buffers.items():
            self._lives.setdefault(key, []).append((_START, index))
        #: Values that will be copied out of their buffer in time.
        self._copies: set[int] = set()

    def solve(self, resolve: Callable[[Conflict], Resolution]) -> tuple[Step, ...] | None:
        """Returns the steps in a safe order; None: they are to be ordered anew.

        Blocks are put out one after another, each time the first of the order given that may come next. One that would
        overwrite a value waits for those that still read it; so what is out already is never looked at again.

        Args:
            resolve: Says what becomes of a value that no order saves.
        """
        # Holds before each block: the buffers contain what `_lives` says, and everything in them that is still to be
        # read has its reader among the blocks to come. A heap gives the earliest ready block of the legal order, so
        # that blocks move only where they must, and a plan is the same each time.
        order: list[int] = []
        ready = [at for at, before in enumerate(self._before) if not before]
        while ready:
            at = heapq.heappop(ready)
            hazard = self._hazard(at)
            if hazard is not None:
                maker, reader, value = hazard
                # First way out: the block waits for the reader, one more edge. It leaves the heap, and the reader
                # brings it back. There is a cycle if the reader is the block itself, needs it, or comes after all
                # blocks.
                if reader not in (at, _END) and not self._reaches(at, reader):
                    self._is_waiting[at] = True
                    self._before[at].add(reader)
                    self._after[reader].append(at)
                    self._note_move(maker, at, reader)
                    continue
                # Else something must give way. The block is looked at again: its other programs, or other values in the
                # same buffer, may be hazards too. What waited for another program must not have: that order is not
                # kept.
                match resolve(self._conflict(maker, at, reader, value)):
                    case Resolution.ANEW:
                        return None
                    case Resolution.OTHER_PROGRAM if self._is_waiting[at]:
                        return None  # with the other program it need not have waited
                    case Resolution.OTHER_PROGRAM:
                        self._programs[at] = self._programs_of(self._blocks[at])
                    case Resolution.COPY:
                        self._copies.add(value)
                heapq.heappush(ready, at)
                continue
            # No hazard: it runs, and what it overwrites is read by nobody any more.
            order.append(at)
            self._put_out(at)
            for other in self._after[at]:
                self._before[other].discard(at)
                if not self._before[other]:
                    heapq.heappush(ready, other)
        return tuple(step for at in order for step in self._blocks[at])

    def _note_move(self, maker: int, later: int, reader: int) -> None:
        """Notes that a call was moved; a download by itself has its edge to tell of it."""
        if not isinstance(self._blocks[reader][0], AdaptStep):
            first, second = (_name(self._blocks[at]) for at in (reader, later))
            read = "the iteration before" if maker == _START else _name(self._blocks[maker])
            self.moves.append(
                f"{first!r} comes before {second!r}, whose program overwrites what {read!r} gave."
            )

    def _producers(self, block: tuple[Step, ...]) -> set[int]:
        outputs = {index for step in block for index in step.outputs}
        reads = {index for step in block for index in step.inputs} - outputs
        return {self._maker[index] for index in reads if index in self._maker}

    def _programs_of(self, block: tuple[Step, ...]) -> tuple[Hashable, ...]:
        """Programs of a block, in the order of running: a plan is the same in every process."""
        keys = (self._run_by(step) for step in iter_steps(block))
        return tuple(dict.fromkeys(key for key in keys if key is not None))

    def _values_read(self, block: tuple[Step, ...]) -> frozenset[int]:
        """Values whose buffers the block reads: through names that fused adapters gave them, not by giving names."""
        # Fused adapters move no bytes by themselves: the program of the call reads the root's buffer. A loop hands on
        # its yields between iterations and its initials before the first: both are reads of buffers, unlike what a body
        # only names. What is made inside is the body's own matter and was ordered there.
        outputs = {index for step in iter_steps(block) for index in step.outputs}
        aliases = _branch_aliases(block)
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
            reads.update(self._buffer(index, aliases) for index in indices)
        return frozenset(reads - outputs)

    def _buffer(self, index: int, aliases: Mapping[int, int]) -> int:
        """The value whose buffer is read for another name of it."""
        root, _ = self._fused_adapters.read(index)
        return self._buffer(aliases[root], aliases) if root in aliases else root

    def _hazard(self, at: int) -> tuple[int, int, int] | None:
        """Finds a value, by its block, that a block would overwrite although somebody still reads it."""
        for key in self._programs[at]:
            for maker, value in self._lives.get(key, ()):
                if value in self._copies:
                    continue
                reader = self._next_reader(value)
                if reader is not None or value in self._live_out:
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
        values_before = (
            {key: {value for _, value in lives} for key, lives in self._lives.items()} if skips else {}
        )
        for key in self._programs[at]:
            self._lives[key] = [(at, index) for index in self._outputs_in(at, key)]
        if skips:
            self._let_through(at, values_before, self._lives)

    def _let_through(
        self,
        at: int,
        values_before: Mapping[Hashable, set[int]],
        lives: dict[Hashable, list[tuple[int, int]]],
    ) -> None:
        """Notes that what a loop gives is still where it started, if the loop did not run."""
        for step in self._blocks[at]:
            for final in step.outputs:
                start = (
                    self._fused_adapters.read(self._initials[final])[0] if final in self._initials else None
                )
                for key in (key for key, values in values_before.items() if start in values):
                    lives.setdefault(key, []).append((at, final))

    def _outputs_in(self, at: int, key: Hashable) -> Iterator[int]:
        """Values that a block gives and that live in the buffer of a program."""
        block = self._blocks[at]
        outputs = {index for step in block for index in step.outputs}
        ends = _ends(block[0])
        run = None
        for step in iter_steps(block):
            if place_of(step) != "producer":
                run = self._run_by(step)
            if run is not None and run == key:
                yield from (index for index in step.outputs if index in outputs)
                yield from (ends[index] for index in step.outputs if index in ends)

    def _reaches(self, start: int, goal: int) -> bool:
        """Tells whether ``goal`` must come after ``start``."""
        todo, ancestors = [goal], {goal}
        while todo:
            for before in self._before[todo.pop()]:
                if before == start:
                    return True
                if before not in ancestors and not self._is_out[before]:
                    ancestors.add(before)
                    todo.append(before)
        return False

    def _conflict(self, maker: int, later: int, reader: int, value: int) -> Conflict:
        # The result of a loop that did not run is its carry's initial, through any number of loops. If that is a carry
        # of the loop around, the way out is double buffering, not another program for this one block.
        start = value
        while start in self._initials:
            start = self._fused_adapters.read(self._initials[start])[0]
        if start in self._carry_buffers:
            return self._carry_conflict(later, reader, start)
        made_by = (
            self._fused_adapters.epilogue[value][0]
            if value in self._fused_adapters.epilogue
            else _name(self._blocks[maker])
        )
        readers = frozenset(
            step.label for kind in (CallStep, LoopLikeStep) for step in iter_steps(self._blocks[reader], kind)
        )
        earlier, runs = (_name(self._blocks[at]) for at in (maker, later))
        if reader == _END:
            return Conflict(earlier, runs, "what comes after the region", made_by, None)
        reads = _name(self._blocks[reader])
        return Conflict(earlier, runs, reads, made_by, readers)

    def _carry_conflict(self, later: int, reader: int, value: int) -> Conflict:
        made_by = self._carry_buffers[value][1]
        reads = "the iteration after" if reader == _END else _name(self._blocks[reader])
        return Conflict("the iteration before", _name(self._blocks[later]), reads, made_by, None, value)


def _branch_aliases(block: tuple[Step, ...]) -> dict[int, int]:
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
