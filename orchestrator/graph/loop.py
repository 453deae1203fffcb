"""A loop: calls that run as often as a request wants, with what is handed from one iteration to the next.

A loop is two nodes of the graph with the calls of its body between them. Values *enter* it: the start of each carry,
and what is cut into one slice for each iteration. They *leave* it: from the body the next value of each carry, what is
collected, and whether to stop; to the graph around it the last carries and the collected values. What is the same in
all iterations is an ordinary edge from outside into the body.

Ports of the loop ``decode``:

    decode.ids         into it: the start of a carry, or what is sliced; in the body: this iteration's; out: the last
    decode.ids[next]   from the body: the next value of a carry
    decode.token[]     from the body: one part of what is collected; out of it: the parts, stacked
    decode.done[until] from the body: whether this iteration was the last

Two more classes of loop have the same form. A *map* runs its body for the items of a list or of a dim, in batches:
items enter it, and what is collected leaves it, item by item. A *branch* runs its body once or not at all: its carries
start with what they are otherwise, and what enters it is handed on as it is; ``see[when]`` is its condition. A loop
that ``until`` ends may have a condition as well: where it does not hold, no iteration runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.specs import TensorSpec

__all__ = ["CONDITION", "BranchLoop", "Loop", "MapLoop", "next_port", "stacked_port", "until_port"]

#: The port of a branch by which its condition enters.
CONDITION = "[when]"


@dataclass(frozen=True)
class Loop:
    """A loop that iterates; maps and branches are classes of their own, with the same ports.

    Attributes:
        name: Its name; the calls of its body begin with it.
        carry: Names that an iteration hands to the next.
        each: Names of which every iteration gets one slice.
        collect: Names whose values are stacked.
        until: The name that ends the loop; empty: none.
        max_steps: Most iterations; None: as many as there are slices.
        check_every: Iterations from one look at ``until`` to the next.
        within: The loop around it; empty: none.
        over: (map) Names of which every batch gets some items, with what a batch of them looks like.
        inputs: (when) Names that enter as they are.
        condition: (when, and loops with ``until``) There is a condition that enters by ``[when]``.
    """

    name: str
    carry: tuple[str, ...] = ()
    each: tuple[str, ...] = ()
    collect: tuple[str, ...] = ()
    until: str = ""
    max_steps: int | None = None
    check_every: int = 1
    within: str = ""
    over: tuple[tuple[str, TensorSpec], ...] = ()
    inputs: tuple[str, ...] = ()
    condition: bool = False

    @property
    def entries(self) -> tuple[str, ...]:
        """Ports through which values enter it."""
        condition = (CONDITION,) if self.condition else ()
        return (*self.carry, *self.each, *(name for name, _ in self.over), *self.inputs, *condition)

    @property
    def results(self) -> tuple[str, ...]:
        """Ports through which values leave it, first the last carries, then the collected ones."""
        return (*self.carry, *map(stacked_port, self.collect))


class MapLoop(Loop):
    """A map: its body runs once for each batch of the items of ``over``."""


class BranchLoop(Loop):
    """A branch: its body runs once, or not at all, as ``condition`` and optional ``inputs`` decide."""


def next_port(name: str) -> str:
    """Returns the port of a carry's next value."""
    return f"{name}[next]"


def stacked_port(name: str) -> str:
    """Returns the port of a collected value."""
    return f"{name}[]"


def until_port(name: str) -> str:
    """Returns the port of what ends a loop."""
    return f"{name}[until]"
