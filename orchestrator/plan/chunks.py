"""Which bucket a size runs in, and how a size above the largest bucket is cut into chunks.

Chunks of a dim are the largest bucket while it can be filled, then the smallest that holds the rest. A request
whose dims need chunks is several *runs* of the same steps, one for each combination.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from orchestrator.plan.records import DimPlan, PlannedValue
from orchestrator.plan.run_record import RunRecord

__all__ = [
    "SizeAssignment",
    "bucket_for",
    "chunk_sizes",
    "combine",
    "cut",
    "run_chunks",
    "size_error",
    "ways_out",
]

T = TypeVar("T")


def bucket_for(size: int, buckets: Sequence[int]) -> int | None:
    """Returns the smallest bucket that holds ``size``, or None above the largest."""
    return next((bucket for bucket in buckets if bucket >= size), None)


def chunk_sizes(size: int, buckets: Sequence[int]) -> list[tuple[int, int]]:
    """Returns ``(size, bucket)`` of each chunk; zero items are no chunks."""
    largest = buckets[-1]
    chunks = [(largest, largest)] * (size // largest)
    rest = size % largest
    return [*chunks, (rest, bucket_for(rest, buckets) or largest)] if rest else chunks


def size_error(dim: DimPlan, size: int) -> str:
    """Tells why a size of a dim cannot run: ``large``, ``odd``, or nothing if it can.

    ``large``: above the largest bucket, and not to be cut. ``odd``: a chunk of it is no bucket, and not to be padded.
    """
    if dim.unbounded:
        return ""
    if size > dim.buckets[-1] and not dim.can_chunk:
        return "large"
    odd = not dim.can_pad and any(part != bucket for part, bucket in chunk_sizes(size, dim.buckets))
    return "odd" if odd else ""


def ways_out(dim: DimPlan, size: int) -> str:
    """Returns what to do about a size above the largest bucket, as sentences."""
    larger = (
        dim.declared_buckets[-1:] if dim.declared_buckets and size <= dim.declared_buckets[-1] else (size,)
    )
    buckets = tuple(sorted({*dim.buckets, *larger}))
    if dim.declared_buckets and size > dim.declared_buckets[-1]:
        bucket = f"Give it a larger bucket where it is declared: Dim({dim.name!r}, buckets={buckets})"
    else:
        bucket = f"Plan with a larger bucket: sizes={{{str(dim.name)!r}: {buckets}}}"
    if dim.whole:
        promise = "" if dim.batch else " with batch=True either"
        return f"It cannot run in chunks{promise}: {dim.whole}. {bucket}."
    return (
        f"{bucket}. Or declare Dim({dim.name!r}, ..., batch=True), the promise that items along it are computed "
        f"independently of one another: then larger sizes run in chunks."
    )


@dataclass(frozen=True)
class SizeAssignment:
    """The sizes of one run of steps: of a request, a chunk, or a batch.

    Attributes:
        actual: Size of each name in this run.
        bucket: The compiled size it runs in.
        offset: Where this run's chunk begins, for names that are cut.
        record: What it decided; None: it is foretold.
    """

    actual: Mapping[str, int] = field(default_factory=dict)
    bucket: Mapping[str, int] = field(default_factory=dict)
    offset: Mapping[str, int] = field(default_factory=dict)
    record: RunRecord | None = None

    def sizes(self, value: PlannedValue) -> Mapping[str, int]:
        """Returns the sizes that a value's dims are at."""
        return self.actual if value.unpadded else self.bucket

    def key(self, names: Iterable[str]) -> tuple[int, ...]:
        """Tells apart the chunks of a value with these names."""
        return tuple(self.offset.get(name, 0) for name in names)


def cut(dim: DimPlan, sizes: Mapping[str, int], run: SizeAssignment) -> Iterator[SizeAssignment]:
    """Yields a run for each chunk of one dim; none for zero items.

    Args:
        dim: The dim to cut.
        sizes: Whole sizes.
        run: Sizes of all other names.
    """
    name, start = dim.name, 0
    size = sizes[name]
    whole = [(size, size)] if size else []
    for part, bucket in whole if dim.unbounded else chunk_sizes(size, dim.buckets):
        yield SizeAssignment(
            {**run.actual, name: part}, {**run.bucket, name: bucket}, {**run.offset, name: start}, run.record
        )
        start += part


def combine(
    dims: Sequence[DimPlan], sizes: Mapping[str, int], run: SizeAssignment
) -> Iterator[SizeAssignment]:
    """Yields a run for each combination of chunks of ``dims``, the first dim slowest."""
    if not dims:
        yield run
        return
    for part in cut(dims[0], sizes, run):
        yield from combine(dims[1:], sizes, part)


def run_chunks(
    dims: Sequence[DimPlan],
    sizes: Mapping[str, int],
    run: SizeAssignment,
    once: Callable[[SizeAssignment], T],
    join: Callable[[list[T], str], T],
) -> T:
    """Runs every combination of chunks and joins what they give, the last dim first.

    Args:
        dims: Dims to cut; none of zero items.
        sizes: Whole sizes.
        run: Sizes of all other names.
        once: Runs one combination.
        join: Joins the results of the chunks of one dim, given by name.
    """
    if not dims:
        return once(run)
    pieces = [run_chunks(dims[1:], sizes, part, once, join) for part in cut(dims[0], sizes, run)]
    return pieces[0] if len(pieces) == 1 else join(pieces, dims[0].name)
