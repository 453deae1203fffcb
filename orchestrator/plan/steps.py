"""Steps: the instructions of a plan, and what hangs the iterations of a loop together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from orchestrator.adapter import Adapter

__all__ = ["HOST", "PlannedLoop", "Step", "spent_starts", "walk"]

#: The memory of host stages, pipeline inputs and outputs.
HOST = "host"


@dataclass(frozen=True)
class PlannedLoop:
    """How the body of a loop, map or branch hangs together, by values.

    Attributes:
        name: The loop.
        carries: For each carry the value it starts with, that of an iteration, and the one for the next.
        slices: For each input that is sliced the whole value, and the slice of an iteration; for a map the items and
            a batch of them; for a branch what enters it, twice.
        collects: What an iteration adds to each collected value.
        until: What ends the loop once it is true; None: nothing does.
        max_steps: Most iterations; None: as many as there are slices.
        check_every: Iterations from one look at ``until`` to the next.
        dim: The dim that is the number of iterations, where the loop decides it; for a map that of items; else empty.
        kind: ``loop``, ``map`` or ``when``.
        condition: What a branch hangs on, besides what may be missing of what enters it; None: nothing.
        watched: Names of values of an iteration that are handed out while the loop runs, with what is handed out.
    """

    name: str
    carries: tuple[tuple[int, int, int], ...]
    slices: tuple[tuple[int, int], ...]
    collects: tuple[int, ...]
    until: int | None = None
    max_steps: int | None = None
    check_every: int = 1
    dim: str = ""
    kind: str = "loop"
    condition: int | None = None
    watched: tuple[tuple[str, int], ...] = ()

    @property
    def heads(self) -> tuple[int, ...]:
        """Values that every iteration is given."""
        return (*(head for _, head, _ in self.carries), *(head for _, head in self.slices))

    @property
    def ends(self) -> tuple[int, ...]:
        """Values of an iteration that are read after its last step."""
        nexts = tuple(following for _, _, following in self.carries)
        return (*nexts, *self.collects, *(() if self.until is None else (self.until,)))


@dataclass(frozen=True)
class Step:
    """One instruction.

    Attributes:
        op: ``call``, ``adapt``, ``region`` or ``loop`` (a map or a branch too).
        name: The call; for an adapter the edge's origin; for a region its dims; the loop.
        inputs: Values read, by index; for a call in the order of its fed ports.
        outputs: Values made, by index; for a call in the order of its output ports; for a loop the last carries, then
            the collected values.
        adapter: What an ``adapt`` step does.
        device: Where it happens: a device group, or ``"host"``.
        dims: Born dims of a region.
        body: Steps of a region, or of one iteration of a loop.
        frees: Values that die after this step.
        program: The program it runs, on a device without eager compute.
        twin: The program it runs in its stead in every second iteration, so that what it gave is still there in the
            next one.
        loop: How the body of a loop hangs together.
    """

    op: str
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    adapter: Adapter | None = None
    device: str = HOST
    dims: tuple[str, ...] = ()
    body: tuple[Step, ...] = ()
    frees: tuple[int, ...] = ()
    program: str = ""
    twin: str = ""
    loop: PlannedLoop | None = None


def walk(steps: Iterable[Step]) -> Iterator[Step]:
    """Yields every step, those of a body after the region or loop itself."""
    for step in steps:
        yield step
        yield from walk(step.body)


def spent_starts(step: Step) -> list[int]:
    """Returns the values that a loop's carries start with and that nobody reads any more once it has begun."""
    assert step.loop is not None
    read = {index for inner in walk(step.body) for index in inner.inputs} | set(step.loop.ends)
    read |= {whole for whole, _ in step.loop.slices}
    starts = {start for start, _, _ in step.loop.carries}
    return sorted((starts & set(step.frees)) - read)
