"""How often the body of a loop, map or branch runs, and at which sizes.

Sizes tell, or the plan's most for a summary. Where a request decides it on its way, the runner *notes* it in the run's
real sizes, under a name of its own: an entry for each time that the loop was come to (iterations), that a branch was (0
or 1), for each batch of a map (its items, and the sizes that they were padded to), and for each chunk of a region.
What is noted in the body of a map or region is in the entry of its batch or chunk. Inputs that a request left out are
noted as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.plan.chunks import Run, bucket_for, chunk_sizes, combine
from orchestrator.plan.model import DimPlan, Plan, PlannedLoop, PlannedValue, Step
from orchestrator.specs import TensorSpec, plain_dim, size_of

__all__ = [
    "ABSENT",
    "batch_run",
    "item_dims",
    "may_skip",
    "most_repeats",
    "note_of",
    "note_of_region",
    "notes",
    "region_parts",
    "repeats",
    "without_notes",
]

_NOTE = "runs of "

#: What was noted, by name.
Notes = tuple[tuple[str, Any], ...]

#: The name under which a run notes the inputs that its request left out.
ABSENT = "inputs left out"


def note_of(loop: PlannedLoop) -> str:
    """Returns the name under which a run notes how often a body ran."""
    return f"{_NOTE}{loop.name}"


def note_of_region(step: Step) -> str:
    """Returns the name under which a run notes what was noted in the chunks of a region."""
    return f"{_NOTE}{step.name} {step.outputs}"


def notes(real: Mapping[str, Any]) -> Notes:
    """Returns what a run noted."""
    return tuple(sorted((name, value) for name, value in real.items() if name.startswith(_NOTE)))


def without_notes(real: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sizes of a run alone."""
    return {name: value for name, value in real.items() if not name.startswith(_NOTE)}


def region_parts(dims: Sequence[DimPlan], step: Step, run: Run) -> list[Run]:
    """Returns the runs of a region's body, one for each chunk, with what was noted in it.

    Args:
        dims: The region's dims.
        step: The region.
        run: Sizes around it.
    """
    parts = list(combine(dims, run.real, run))
    noted: Any = run.real.get(note_of_region(step))
    if noted is None:
        return parts
    return [_with_notes(part, found) for part, found in zip(parts, noted, strict=True)]


def _with_notes(run: Run, found: Notes, times: int = 1) -> Run:
    """A run with what was noted in it; so many equal runs in one."""
    return replace(run, real={**run.real, **{name: value * times for name, value in found}})


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
    batches: Any
    if noted is None:
        rest = tuple(run.real[dim.name] for dim in dims[1:])
        sizes = [count for count, _ in chunk_sizes(run.real[loop.dim], dims[0].buckets)]
        batches, each = [((count, *rest), ()) for count in sizes], times
    else:
        batches, each = noted, 1
    found: dict[tuple[tuple[int, ...], Notes], int] = {}
    for batch in batches:
        found[batch] = found.get(batch, 0) + each
    return [
        (_with_notes(batch_run(dims, sizes, run), inner, count), count)
        for (sizes, inner), count in found.items()
    ]


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
