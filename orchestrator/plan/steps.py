"""Steps: the instructions of a plan, a class for each kind.

A *leaf* is a call or an adapter. A *block* has a body: a region, whose body runs in chunks, and what is like a loop,
whose body runs for each iteration of a loop, each batch of a map, or once or not at all in a branch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeVar, overload

from orchestrator.adapter import Adapter

__all__ = [
    "HOST",
    "AdaptStep",
    "BlockStep",
    "BranchStep",
    "CallStep",
    "Carry",
    "LeafStep",
    "LoopLikeStep",
    "LoopStep",
    "MapStep",
    "RegionStep",
    "Slice",
    "Step",
    "StepVisitor",
    "adapter_of",
    "body_of",
    "dead_initials",
    "iter_steps",
    "with_body",
]

#: The memory of host stages, pipeline inputs and outputs.
HOST = "host"

S = TypeVar("S", bound="Step")


@dataclass(frozen=True)
class Carry:
    """What a loop hands from one iteration to the next, by values; the words are those of ``scf.for`` of MLIR.

    Attributes:
        initial: The value that the first iteration reads.
        argument: What the body calls the one of an iteration.
        yielded: The one of the body for the next iteration; the result of the loop after the last.
    """

    initial: int
    argument: int
    yielded: int


@dataclass(frozen=True)
class Slice:
    """What enters the body anew each time that it runs, by values.

    Attributes:
        whole: The value outside.
        part: What the body calls its part: the slice of an iteration, a batch of a map's items, or, in a branch, the
            whole once more.
    """

    whole: int
    part: int


@dataclass(frozen=True)
class Step:
    """One instruction.

    Attributes:
        inputs: Values read, by index; for a call in the order of its fed ports.
        outputs: Values made, by index; for a call in the order of its output ports; for a loop the results of its
            carries, then the collected values.
        device: Where it happens: a device group, or ``"host"``.
        frees: Values that die after this step.
        locks: Locks that a request takes before this step, by name, in the order of the plan's.
        unlocks: Locks that it gives back after this step.
        op: What texts call this kind of step.
    """

    op: ClassVar[str] = "step"

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    device: str = field(default=HOST, kw_only=True)
    frees: tuple[int, ...] = field(default=(), kw_only=True)
    locks: tuple[str, ...] = field(default=(), kw_only=True)
    unlocks: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def label(self) -> str:
        """The name of this step in texts, such as its call, the origin of its edge, its dims or its loop."""
        return ""


@dataclass(frozen=True)
class LeafStep(Step):
    """A step without a body.

    Attributes:
        program: The program it runs, on a device without eager compute.
    """

    program: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class CallStep(LeafStep):
    """Runs a stage.

    Attributes:
        name: The call.
        alternate: The program it runs in its stead in every second iteration, so that what it gave is still there in
            the next one.
    """

    op: ClassVar[str] = "call"

    name: str
    alternate: str = ""

    @property
    def label(self) -> str:
        """The call."""
        return self.name


@dataclass(frozen=True)
class AdaptStep(LeafStep):
    """Moves a value, or changes its form.

    Attributes:
        origin: The origin of the value.
        adapter: What is done to it.
    """

    op: ClassVar[str] = "adapt"

    origin: str
    adapter: Adapter

    @property
    def label(self) -> str:
        """The origin of the value."""
        return self.origin


@dataclass(frozen=True)
class BlockStep(Step):
    """A step with a body.

    Attributes:
        body: Its steps, in order.
    """

    body: tuple[Step, ...]


@dataclass(frozen=True)
class RegionStep(BlockStep):
    """Runs its body in chunks of data-dependent dims: once, several times, or (zero items) not at all.

    Attributes:
        dims: The dims.
    """

    op: ClassVar[str] = "region"

    dims: tuple[str, ...]

    @property
    def label(self) -> str:
        """The dims."""
        return ", ".join(self.dims)


@dataclass(frozen=True)
class LoopLikeStep(BlockStep):
    """Runs its body as often as a request wants.

    Attributes:
        name: The loop, map or branch.
        carries: What one iteration hands to the next; a map has none; those of a branch are its results if it does
            not run.
        slices: What enters the body anew each time.
        collects: What each iteration adds to each collected value; a branch collects nothing.
        noun: What texts for people call this kind of loop.
    """

    op: ClassVar[str] = "loop"
    noun: ClassVar[str]

    name: str
    carries: tuple[Carry, ...] = ()
    slices: tuple[Slice, ...] = ()
    collects: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """The loop."""
        return self.name

    @property
    def arguments(self) -> tuple[int, ...]:
        """Values that the body is handed each time."""
        return (*(carry.argument for carry in self.carries), *(entry.part for entry in self.slices))

    @property
    def yields(self) -> tuple[int, ...]:
        """Values of the body that are read after its last step."""
        return (*(carry.yielded for carry in self.carries), *self.collects)

    @property
    def results(self) -> tuple[int, ...]:
        """What it gives for its carries."""
        return self.outputs[: len(self.carries)]

    @property
    def stacks(self) -> tuple[int, ...]:
        """What it gives for what it collects."""
        return self.outputs[len(self.carries) :]


@dataclass(frozen=True)
class LoopStep(LoopLikeStep):
    """Runs its body for one iteration after another.

    Attributes:
        until: What ends the loop once it is true; None: nothing does.
        max_steps: Most iterations; None: as many as there are slices.
        check_every: Iterations from one look at ``until`` to the next.
        steps_dim: The dim that is the number of iterations, where the loop decides it; else empty.
        progress_outputs: Names of values of an iteration that are handed out while the loop runs, each with the value.
        progress_starts: Likewise before the first iteration.
        condition: What must hold for any iteration to run; None: nothing.
    """

    noun: ClassVar[str] = "loop"

    until: int | None = None
    max_steps: int | None = None
    check_every: int = 1
    steps_dim: str = ""
    progress_outputs: tuple[tuple[str, int], ...] = ()
    progress_starts: tuple[tuple[str, int], ...] = ()
    condition: int | None = None

    @property
    def yields(self) -> tuple[int, ...]:
        """Values of an iteration that are read after its last step."""
        return (*super().yields, *(() if self.until is None else (self.until,)))


@dataclass(frozen=True)
class MapStep(LoopLikeStep):
    """Runs its body for items, in batches.

    Attributes:
        items_dim: The dim that is the number of items.
    """

    noun: ClassVar[str] = "map"

    items_dim: str = ""


@dataclass(frozen=True)
class BranchStep(LoopLikeStep):
    """Runs its body once, or not at all.

    Attributes:
        condition: What it hangs on, besides what may be missing of what enters it; None: nothing.
    """

    noun: ClassVar[str] = "branch"

    condition: int | None = None


def body_of(step: Step) -> tuple[Step, ...]:
    """Returns the steps of a block's body; none for a leaf."""
    return step.body if isinstance(step, BlockStep) else ()


def adapter_of(step: Step) -> Adapter | None:
    """Returns what an adapter step does; None for all other steps."""
    return step.adapter if isinstance(step, AdaptStep) else None


def with_body(step: S, body: tuple[Step, ...]) -> S:
    """Returns a block with another body; a leaf as it is."""
    return replace(step, body=body) if isinstance(step, BlockStep) else step


@overload
def iter_steps(steps: Iterable[Step]) -> Iterator[Step]: ...
@overload
def iter_steps(steps: Iterable[Step], kind: type[S]) -> Iterator[S]: ...
def iter_steps(steps: Iterable[Step], kind: type[Step] = Step) -> Iterator[Step]:
    """Yields every step of a kind, those of a body after the block itself."""
    for step in steps:
        if isinstance(step, kind):
            yield step
        yield from iter_steps(body_of(step), kind)


class StepVisitor:
    """Walks over steps in order, with one method for each kind; as it is, it does nothing but visit the bodies."""

    def visit(self, steps: Iterable[Step]) -> None:
        """Visits steps, in order."""
        for step in steps:
            self.visit_step(step)

    def visit_step(self, step: Step) -> None:
        """Visits one step by the method of its kind."""
        match step:
            case CallStep():
                self.visit_call(step)
            case AdaptStep():
                self.visit_adapter(step)
            case RegionStep():
                self.visit_region(step)
            case MapStep():
                self.visit_map(step)
            case BranchStep():
                self.visit_branch(step)
            case LoopStep():
                self.visit_loop(step)

    def visit_call(self, step: CallStep) -> None:
        """Visits a call."""

    def visit_adapter(self, step: AdaptStep) -> None:
        """Visits an adapter."""

    def visit_region(self, step: RegionStep) -> None:
        """Visits a region."""
        self.visit(step.body)

    def visit_loop(self, step: LoopStep) -> None:
        """Visits a loop."""
        self.visit(step.body)

    def visit_map(self, step: MapStep) -> None:
        """Visits a map."""
        self.visit(step.body)

    def visit_branch(self, step: BranchStep) -> None:
        """Visits a branch."""
        self.visit(step.body)


def dead_initials(step: LoopLikeStep) -> list[int]:
    """Returns the initial values of a loop's carries that nobody reads any more once it has begun."""
    read = {index for inner in iter_steps(step.body) for index in inner.inputs} | set(step.yields)
    read |= {entry.whole for entry in step.slices}
    initials = {carry.initial for carry in step.carries}
    return sorted((initials & set(step.frees)) - read)
