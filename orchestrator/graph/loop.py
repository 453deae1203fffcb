"""A loop: calls that run again and again, with what is handed from one iteration to the next.

A loop is two nodes of the graph with the calls of its body between them. Values *enter* it: the start of each carry,
and what is cut into one slice for each iteration. They *leave* it: from the body the next value of each carry, what is
collected, and whether to stop; to the graph around it the last carries and the collected values. What is the same in
all iterations is an ordinary edge from outside into the body.

Ports of the loop ``decode``:

    decode.ids         into it: the start of a carry, or what is sliced; in the body: this iteration's; out: the last
    decode.ids[next]   from the body: the next value of a carry
    decode.token[]     from the body: one part of what is collected; out of it: the parts, stacked
    decode.done[until] from the body: whether this iteration was the last
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Loop", "collected", "ending", "following"]


@dataclass(frozen=True)
class Loop:
    """A loop.

    Attributes:
        name: Its name; the calls of its body begin with it.
        carry: Names that an iteration hands to the next.
        each: Names of which every iteration gets one slice.
        collect: Names whose values are stacked.
        until: The name that ends the loop; empty: none.
        max_steps: Most iterations; None: as many as there are slices.
        check_every: Iterations from one look at ``until`` to the next.
        within: The loop around it; empty: none.
    """

    name: str
    carry: tuple[str, ...] = ()
    each: tuple[str, ...] = ()
    collect: tuple[str, ...] = ()
    until: str = ""
    max_steps: int | None = None
    check_every: int = 1
    within: str = ""

    @property
    def results(self) -> tuple[str, ...]:
        """Ports through which values leave it: the last carries, then the collected ones."""
        return (*self.carry, *map(collected, self.collect))


def following(name: str) -> str:
    """Returns the port of a carry's next value."""
    return f"{name}[next]"


def collected(name: str) -> str:
    """Returns the port of a collected value."""
    return f"{name}[]"


def ending(name: str) -> str:
    """Returns the port of what ends a loop."""
    return f"{name}[until]"
