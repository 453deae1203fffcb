"""How often the body of a loop, map or branch runs, and at which sizes.

Sizes tell, or the plan's most for a summary. Where a request decides it on its way, the record of its run tells; see
:class:`~orchestrator.plan.run_record.RunRecord`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

from orchestrator.plan.chunks import SizeAssignment, bucket_for, chunk_sizes, combine
from orchestrator.plan.records import DimPlan, PlanData, PlannedValue
from orchestrator.plan.run_record import RunRecord
from orchestrator.plan.steps import BranchStep, LoopLikeStep, LoopStep, MapStep, RegionStep
from orchestrator.specs import TensorSpec, plain_dim, size_of

__all__ = ["batch_run", "item_dims", "may_skip", "most_repeats", "region_parts", "repeats"]


def region_parts(dims: Sequence[DimPlan], step: RegionStep, run: SizeAssignment) -> list[SizeAssignment]:
    """Returns the runs of a region's body, one for each chunk, with what was decided in it.

    Args:
        dims: The region's dims.
        step: The region.
        run: Sizes around it.
    """
    parts = list(combine(dims, run.actual, run))
    records = None if run.record is None else run.record.chunks.get(step.outputs)
    if records is None:
        return [replace(part, record=None) for part in parts]
    return [_with_record(part, record) for part, record in zip(parts, records, strict=True)]


def _with_record(run: SizeAssignment, record: RunRecord) -> SizeAssignment:
    """A run with what it decided."""
    return replace(run, actual={**run.actual, **record.sizes}, record=record)


def repeats(
    plan: PlanData, loop: LoopLikeStep, run: SizeAssignment, times: int = 1
) -> list[tuple[SizeAssignment, int]]:
    """Returns the sizes at which a body runs, each with how often.

    Args:
        plan: The plan.
        loop: The loop, map or branch.
        run: Sizes around it.
        times: How often it is come to; what was recorded counts all of these.
    """
    match loop:
        case MapStep():
            return _batches(plan, loop, run, times)
        case LoopStep() | BranchStep():
            counts = _counts(loop, run)
            return [(run, times * _most(plan, loop, run) if counts is None else sum(counts))]
    raise TypeError(f"{loop!r} is no kind of loop")


def most_repeats(plan: PlanData, loop: LoopStep | BranchStep, run: SizeAssignment) -> int:
    """Returns how often a loop or branch runs at most each time that it is come to."""
    counts = _counts(loop, run)
    return _most(plan, loop, run) if counts is None else max(counts, default=0)


def _counts(loop: LoopLikeStep, run: SizeAssignment) -> tuple[int, ...] | None:
    return None if run.record is None else run.record.iterations.get(loop.name)


def may_skip(
    loop: LoopStep | BranchStep, values: Sequence[PlannedValue], dims: Mapping[str, DimPlan]
) -> bool:
    """Tells whether a loop or branch may not run at all: what it gives is then what its carries start with.

    Args:
        loop: The loop or branch.
        values: Values of the plan.
        dims: Named dims.
    """
    match loop:
        case BranchStep() | LoopStep(max_steps=0) | LoopStep(condition=int()):
            return True
    for entry in loop.slices:
        spec = values[entry.whole].spec
        size = plain_dim(spec.dims[0]) if isinstance(spec, TensorSpec) else 0
        if not (size > 0 if isinstance(size, int) else isinstance(size, str) and not dims[size].decided_by):
            return True
    return False


def _most(plan: PlanData, loop: LoopStep | BranchStep, run: SizeAssignment) -> int:
    match loop:
        case BranchStep():
            return 1
        case LoopStep(steps_dim=str(dim)) if dim:
            return run.actual[dim]
    bounds = [] if loop.max_steps is None else [loop.max_steps]
    for entry in loop.slices[:1]:
        spec = plan.values[entry.whole].spec
        assert isinstance(spec, TensorSpec)
        bounds.append(size_of(spec.dims[0], run.actual))
    return min(bounds)


def _batches(
    plan: PlanData, loop: MapStep, run: SizeAssignment, times: int
) -> list[tuple[SizeAssignment, int]]:
    by_name = {dim.name: dim for dim in plan.dims}
    dims = [by_name[name] for name in item_dims(plan, loop)]
    records = None if run.record is None else run.record.batches.get(loop.name)
    if records is None:
        # Nothing has run: batches are as the buckets cut them, with all other dims of items at the sizes around.
        rest = tuple(run.actual[dim.name] for dim in dims[1:])
        counts = [count for count, _ in chunk_sizes(run.actual[loop.items_dim], dims[0].buckets)]
        foretold = replace(run, record=None)
        return [
            (batch_run(dims, (count, *rest), foretold), times * counts.count(count))
            for count in dict.fromkeys(counts)
        ]
    # It has run: batches that cost the same are one, so that many items are counted as fast as few.
    equal: dict[Hashable, list[RunRecord]] = {}
    for record in records:
        equal.setdefault(record.key(), []).append(record)
    batches = []
    for first, *others in equal.values():
        batch = batch_run(dims, [first.sizes[dim.name] for dim in dims], run)
        count = 1 + len(others)
        batches.append((_with_record(batch, first.times(count)), count))
    return batches


def item_dims(plan: PlanData, loop: MapStep) -> tuple[str, ...]:
    """Returns the dims of a map's items, that which counts them first."""
    specs = [plan.values[entry.part].spec for entry in loop.slices]
    names = [name for spec in specs if isinstance(spec, TensorSpec) for name in spec.names]
    return tuple(dict.fromkeys((loop.items_dim, *names)))


def batch_run(dims: Sequence[DimPlan], batch: Sequence[int], run: SizeAssignment) -> SizeAssignment:
    """Returns the sizes of one batch.

    Args:
        dims: Dims of the items, that which counts them first.
        batch: For each its size in the batch: the number of items, then the sizes that they are padded to.
        run: Sizes of all other names.
    """
    actual = {dim.name: size for dim, size in zip(dims, batch, strict=True)}
    bucket = {
        dim.name: size if dim.any else bucket_for(size, dim.buckets) or size
        for dim, size in zip(dims, batch, strict=True)
    }
    return SizeAssignment({**run.actual, **actual}, {**run.bucket, **bucket}, run.offset, run.record)
