"""Bucket: one set of sizes for each name in the whole graph.

The sizes are solved jointly: where several stages are compiled for different buckets of a name, the ones they share
are the buckets of the graph, so that one choice for each name fits every stage of a request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from orchestrator.errors import PlanError, PlanOptionError, nearest
from orchestrator.plan.records import DimPlan
from orchestrator.planner.context import PlanContext
from orchestrator.specs import Dim, TensorSpec

__all__ = ["ANY_SIZES", "bucket"]

#: Sizes at which a dim of any size is tried while planning; the first that every module accepts is used.
ANY_SIZES = (64, 256, 1024)


def bucket(context: PlanContext) -> PlanContext:
    """Finds the buckets of every name.

    Raises:
        PlanError: A name without sizes, contradictory declarations, or sizes that are none of a dim's buckets.
    """
    if not isinstance(context.options.sizes, Mapping):
        raise PlanError(f"sizes is a dict of dim to buckets, not {context.options.sizes!r}.")
    declarations: dict[str, list[tuple[str, Dim]]] = {}
    for where, dim in _declarations(context):
        declarations.setdefault(dim.name, []).append((where, dim))
    for name in context.options.sizes:
        if name not in declarations:
            raise PlanOptionError(
                f"sizes names the dim {name!r}, but no port has it.{nearest(name, declarations)}", dim=name
            )
    return replace(
        context, dims={name: _solve(context, name, places) for name, places in declarations.items()}
    )


def _declarations(context: PlanContext) -> Iterator[tuple[str, Dim]]:
    """Yields every place that names a dim; a bare name comes as a Dim without buckets."""
    ports = [(name, spec) for name, spec in context.graph.inputs.items()]
    for stage in context.graph.stages.values():
        ports += [
            (f"{stage.name}.{port.name}", port.spec) for port in (*stage.inputs, *stage.outputs) if port.spec
        ]
    ports += [
        (f"{loop.name}.{port}", spec) for loop in context.graph.loops.values() for port, spec in loop.over
    ]
    ports += [(str(edge), spec) for edge in context.graph.edges for spec in edge.constraints]
    for where, spec in ports:
        for dim in spec.dims if isinstance(spec, TensorSpec) else ():
            if isinstance(dim, (str, Dim)):
                yield where, dim if isinstance(dim, Dim) else Dim(dim)


def _solve(context: PlanContext, name: str, places: list[tuple[str, Dim]]) -> DimPlan:
    wish = _wish(context, name)
    batch, exact = any(dim.batch for _, dim in places), any(dim.exact for _, dim in places)
    # A dim of any size is one everywhere; else the buckets that all places share are those of the graph, and what the
    # user wished for is some of these. A bare name has only what the user wished for.
    open_ended = [where for where, dim in places if dim.any]
    bucket_lists = [(where, dim.buckets) for where, dim in places if dim.buckets]
    if open_ended and bucket_lists:
        raise PlanError(
            f"Dim {name!r} has any size at {open_ended[0]!r} but buckets {bucket_lists[0][1]} at "
            f"{bucket_lists[0][0]!r}; a name has one set of sizes in the whole graph.",
            dim=name,
        )
    if open_ended:
        return DimPlan(name, wish or ANY_SIZES[:1], any=True, batch=batch, exact=exact)
    if not bucket_lists:
        if not wish:
            raise PlanError(
                f"Dim {name!r} (at {places[0][0]!r}) has no sizes; give plan(sizes={{{name!r}: 8}}) or several "
                f"buckets, or declare Dim({name!r}, buckets=(...)).",
                dim=name,
            )
        return DimPlan(name, wish, batch=batch, exact=exact)
    common = sorted(set.intersection(*(set(buckets) for _, buckets in bucket_lists)))
    if not common:
        choices = ", ".join(f"{buckets} at {where!r}" for where, buckets in dict(bucket_lists).items())
        raise PlanError(f"The buckets of dim {name!r} have nothing in common: {choices}.", dim=name)
    strange = [size for size in wish if size not in common]
    if strange:
        raise PlanError(
            f"sizes asks for {name!r} at {strange[0]}, which is none of its buckets {tuple(common)}.",
            dim=name,
        )
    return DimPlan(name, wish or tuple(common), batch=batch, exact=exact, declared_buckets=tuple(common))


def _wish(context: PlanContext, name: str) -> tuple[int, ...]:
    if name not in context.options.sizes:
        return ()
    sizes = context.options.sizes[name]
    choices = tuple(sizes) if isinstance(sizes, (tuple, list)) else (sizes,)
    for size in choices:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise PlanError(f"sizes of dim {name!r} are positive ints, not {size!r}.", dim=name)
    if not choices:
        raise PlanError(f"sizes gives no size for dim {name!r}.", dim=name)
    return tuple(sorted(set(choices)))
