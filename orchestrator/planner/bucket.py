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
    sizes = _option_sizes(context, name)
    batch, exact = any(dim.batch for _, dim in places), any(dim.exact for _, dim in places)
    open_ended = [where for where, dim in places if dim.any]
    bucket_sets = [(where, dim.buckets) for where, dim in places if dim.buckets]
    # A dim of any size compiles nothing, so sizes are no buckets for it: they only say where it is tried.
    if open_ended and bucket_sets:
        raise PlanError(
            f"Dim {name!r} has any size at {open_ended[0]!r} but buckets {bucket_sets[0][1]} at {bucket_sets[0][0]!r}; "
            f"a name has one set of sizes in the whole graph.",
            dim=name,
        )
    if open_ended:
        return DimPlan(name, sizes or ANY_SIZES[:1], any=True, batch=batch, exact=exact)
    if not bucket_sets:
        if not sizes:
            raise PlanError(
                f"Dim {name!r} (at {places[0][0]!r}) has no sizes; give plan(sizes={{{name!r}: 8}}) or several "
                f"buckets, or declare Dim({name!r}, buckets=(...)).",
                dim=name,
            )
        return DimPlan(name, sizes, batch=batch, exact=exact)
    # A request takes one bucket for the name, so it must be a bucket at every place that declares any.
    common = sorted(set.intersection(*(set(buckets) for _, buckets in bucket_sets)))
    if not common:
        text = ", ".join(f"{buckets} at {where!r}" for where, buckets in dict(bucket_sets).items())
        raise PlanError(f"The buckets of dim {name!r} have nothing in common: {text}.", dim=name)
    strange = [size for size in sizes if size not in common]
    if strange:
        raise PlanError(
            f"sizes asks for {name!r} at {strange[0]}, which is none of its buckets {tuple(common)}.",
            dim=name,
        )
    return DimPlan(name, sizes or tuple(common), batch=batch, exact=exact, declared_buckets=tuple(common))


def _option_sizes(context: PlanContext, name: str) -> tuple[int, ...]:
    if name not in context.options.sizes:
        return ()
    sizes = context.options.sizes[name]
    buckets = tuple(sizes) if isinstance(sizes, (tuple, list)) else (sizes,)
    for size in buckets:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise PlanError(f"sizes of dim {name!r} are positive ints, not {size!r}.", dim=name)
    if not buckets:
        raise PlanError(f"sizes gives no size for dim {name!r}.", dim=name)
    return tuple(sorted(set(buckets)))
