"""What a run of steps decided on its way, apart from its sizes: nothing that a user names is a key beside it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

__all__ = ["RunRecord"]


@dataclass
class RunRecord:
    """Sizes of one run, and what it decided on its way.

    Attributes:
        sizes: The size of each named dim, those that stages and loops decided included.
        iterations: How often a loop ran, or a branch (0 or 1), each time that it was come to; by its name.
        batches: The batches of a map, all times that it was come to; by its name.
        chunks: The chunks of a region; by the values that it gives.
        absent: Inputs that the request left out.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    iterations: dict[str, tuple[int, ...]] = field(default_factory=dict)
    batches: dict[str, tuple[RunRecord, ...]] = field(default_factory=dict)
    chunks: dict[tuple[int, ...], tuple[RunRecord, ...]] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()

    def inner(self, sizes: Mapping[str, int]) -> RunRecord:
        """Returns an empty record of a batch or chunk in this run.

        Args:
            sizes: All sizes there.
        """
        return RunRecord(dict(sizes), absent=self.absent)

    def is_decided(self) -> bool:
        """Tells whether a loop, branch, map or region in it decided something."""
        return bool(self.iterations or self.batches or self.chunks)

    def times(self, count: int) -> RunRecord:
        """Returns the record of so many equal runs, one after another."""
        return RunRecord(
            self.sizes,
            {name: counts * count for name, counts in self.iterations.items()},
            {name: parts * count for name, parts in self.batches.items()},
            {outputs: parts * count for outputs, parts in self.chunks.items()},
            self.absent,
        )

    def key(self) -> Hashable:
        """Returns what tells runs apart that cost differently."""
        return (
            frozenset(self.sizes.items()),
            frozenset(self.iterations.items()),
            frozenset((name, tuple(part.key() for part in parts)) for name, parts in self.batches.items()),
            frozenset(
                (outputs, tuple(part.key() for part in parts)) for outputs, parts in self.chunks.items()
            ),
            self.absent,
        )
