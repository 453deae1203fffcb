"""How often the body of a loop, map or branch runs, and at which sizes.

Sizes tell, or the plan's most for a summary. Where a request decides it on its way, the runner *notes* it in the run's
real sizes, under a name of its own: an entry for each time that the loop was come to (iterations), that a branch was (0
or 1), and for each batch of a map (its items, and the sizes that they were padded to). Inputs that a request left out
are noted as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.plan.chunks import Run, bucket_for, chunk_sizes
from orchestrator.plan.model import DimPlan, Plan, PlannedLoop, PlannedValue
from orchestrator.specs import TensorSpec, plain_dim, size_of

__all__ = [
    "ABSENT",
    "batch_run",
    "item_dims",
    "may_skip",
    "most_repeats",
    "note_of",
    "noted_share",
    "repeats",
]

_NOTE = "runs of "

#: The name under which a run notes the inputs that its request left out.
ABSENT = "inputs left out"


def note_of(loop: PlannedLoop) -> str:
    """Returns the name under which a run notes how often a body ran."""
    return f"{_NOTE}{loop.name}"


def noted_share(run: Run, at: int, count: int) -> Run:
    """Returns one of several runs of a body with its share of what was noted in all of them."""
    real: dict[str, Any] = dict(run.real)
    for name in real:
        if name.startswith(_NOTE):
            size = len(real[name]) // count
            real[name] = real[name][at * size : (at + 1) * size]
    return replace(run, real=real)


def repeats(plan: Plan, loop: PlannedLoop, run: Run, times: int = 1) -> list[tuple[Run, int]]:
    """Returns the sizes at which a body runs, each with how often.

    Args:
        plan: The plan.
        loop: The loop, map or branch.
        run: Sizes around it.
        times: How often it is come to; what was noted counts all of these.
    """
    noted: Any = run.real.get(note_of(loop))
    if loop.kind == "map":
        return _batches(plan, loop, run, times, noted)
    if noted is not None:
        return [(run, sum(noted))]
    return [(run, times * _most(plan, loop, run))]


def most_repeats(plan: Plan, loop: PlannedLoop, run: Run) -> int:
    """Returns how often a loop or branch runs at most each time that it is come to."""
    noted: Any = run.real.get(note_of(loop))
    return _most(plan, loop, run) if noted is None else max(noted, default=0)


def may_skip(loop: PlannedLoop, values: Sequence[PlannedValue], dims: Mapping[str, DimPlan]) -> bool:
    """Tells whether a loop or branch may not run at all: what it gives is then what its carries start with.

    Args:
        loop: The loop or branch.
        values: Values of the plan.
        dims: Named dims.
    """
    if loop.kind == "when" or loop.max_steps == 0:
        return True
    for whole, _ in loop.slices:
        spec = values[whole].spec
        size = plain_dim(spec.dims[0]) if isinstance(spec, TensorSpec) else 0
        if not (size > 0 if isinstance(size, int) else isinstance(size, str) and not dims[size].born):
            return True
    return False


def _most(plan: Plan, loop: PlannedLoop, run: Run) -> int:
    if loop.kind == "when":
        return 1
    if loop.dim:
        return run.real[loop.dim]
    bounds = [] if loop.max_steps is None else [loop.max_steps]
    for whole, _ in loop.slices[:1]:
        spec = plan.values[whole].spec
        assert isinstance(spec, TensorSpec)
        bounds.append(size_of(spec.dims[0], run.real))
    return min(bounds)


def _batches(plan: Plan, loop: PlannedLoop, run: Run, times: int, noted: Any) -> list[tuple[Run, int]]:
    by_name = {dim.name: dim for dim in plan.dims}
    dims = [by_name[name] for name in item_dims(plan, loop)]
    if noted is not None:
        runs = (batch_run(dims, batch, run) for batch in noted)
        return [(noted_share(one, at, len(noted)), 1) for at, one in enumerate(runs)]
    rest = tuple(run.real[dim.name] for dim in dims[1:])
    found: dict[tuple[int, ...], int] = {}
    for count, _ in chunk_sizes(run.real[loop.dim], dims[0].buckets):
        batch = (count, *rest)
        found[batch] = found.get(batch, 0) + times
    return [(batch_run(dims, batch, run), count) for batch, count in found.items()]


def item_dims(plan: Plan, loop: PlannedLoop) -> tuple[str, ...]:
    """Returns the dims of a map's items, that which counts them first."""
    specs = [plan.values[part].spec for _, part in loop.slices]
    names = [name for spec in specs if isinstance(spec, TensorSpec) for name in spec.names]
    return tuple(dict.fromkeys((loop.dim, *names)))


def batch_run(dims: Sequence[DimPlan], batch: Sequence[int], run: Run) -> Run:
    """Returns the sizes of one batch.

    Args:
        dims: Dims of the items, that which counts them first.
        batch: For each its size in the batch: the number of items, then the sizes that they are padded to.
        run: Sizes of all other names.
    """
    real = {dim.name: size for dim, size in zip(dims, batch, strict=True)}
    bucket = {
        dim.name: size if dim.any else bucket_for(size, dim.buckets) or size
        for dim, size in zip(dims, batch, strict=True)
    }
    return Run({**run.real, **real}, {**run.bucket, **bucket}, run.start)
