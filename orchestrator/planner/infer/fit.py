"""Fit: what must be done to a producer's value so that a declared port takes it.

Sizes are compared at every combination of buckets. Growing needs the port's pad rule, shrinking its
``allow_slice``, another dtype its ``allow_cast``; everything else that differs is a contradiction.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from orchestrator.adapter import Adapter
from orchestrator.errors import PlanError
from orchestrator.graph import Edge
from orchestrator.plan.records import DimPlan
from orchestrator.planner.context import EdgeSpec
from orchestrator.planner.infer.trials import unlike
from orchestrator.specs import (
    AnyDim,
    Pad,
    PortSpec,
    TensorSpec,
    combinations,
    dim_names,
    plain_dim,
    plain_dims,
    show_spec,
    size_of,
)

__all__ = ["fit_edge"]


def fit_edge(
    edge: Edge,
    source: PortSpec,
    port: PortSpec | None,
    dims: dict[str, DimPlan],
    input_names: Collection[str],
    pad_names: frozenset[str],
) -> EdgeSpec:
    """Finds the form in which an edge's consumer reads the value.

    Args:
        edge: The edge; inputs of inlined pipelines on the way (``constraints``) constrain the value like ports.
        source: What the producer gives.
        port: What the consumer declares, if anything.
        dims: Named dims with their buckets.
        input_names: Names that inputs of the pipeline size.
        pad_names: Names that requests may have at sizes which are no buckets.

    Raises:
        PlanError: They contradict, or fit at the buckets only while a request may have other sizes.
    """
    # What inlined pipelines on the way want comes before what the port wants: each makes of the value what the one
    # before it left, and the last pad rule is the one in force.
    wants = [spec for spec in (*edge.constraints, port) if spec is not None]
    if not isinstance(source, TensorSpec) or not all(isinstance(want, TensorSpec) for want in wants):
        for want in wants:
            _fit_type(edge, source, want)
        return EdgeSpec(source)
    value, conversions, rule = TensorSpec(source.dims, source.dtype), [], source.pad
    for want in wants:
        assert isinstance(want, TensorSpec)
        want = _with_sizes(value, want, dims, input_names)
        if edge.source.kind == "constant":
            _check_constant(edge, source, want, dims)
        _check_between(edge, value, want, dims, pad_names, rule)
        value, adapters = _fit(edge, value, want, dims)
        conversions += adapters
        rule = want.pad if want.pad is not None else rule
    return EdgeSpec(value, tuple(conversions), rule)


def _with_sizes(
    value: TensorSpec, want: TensorSpec, dims: dict[str, DimPlan], input_names: Collection[str]
) -> TensorSpec:
    """What a port wants where it names a dim that no request and no stage decides: the bucket that holds the value."""
    dims_of_port = list(plain_dims(want.dims))
    for position, (source_dim, port_dim) in enumerate(
        zip(plain_dims(value.dims), dims_of_port, strict=False)
    ):
        decided = isinstance(port_dim, str) and (
            port_dim in input_names or dims[port_dim].decided_by or dims[port_dim].any
        )
        if isinstance(port_dim, str) and not decided and not isinstance(source_dim, str):
            buckets = {name: dims[name].buckets for name in dim_names(source_dim)}
            largest = max(size_of(source_dim, sizes) for sizes in combinations(buckets, buckets))
            fixed = dims[port_dim].buckets
            dims_of_port[position] = next((size for size in fixed if size >= largest), fixed[-1])
    return replace(want, dims=tuple(dims_of_port))


def _check_constant(edge: Edge, source: TensorSpec, want: TensorSpec, dims: dict[str, DimPlan]) -> None:
    """A constant is put in place once, so it takes no size that a request decides.

    Where there is one bucket, and no chunks, it has that size; a smaller request reads its first slices.
    """
    for source_dim, port_dim in zip(source.dims, plain_dims(want.dims), strict=False):
        if not isinstance(port_dim, str) or dims[port_dim].any:
            continue
        if len(dims[port_dim].buckets) > 1 or dims[port_dim].decided_by or dims[port_dim].batch:
            raise PlanError(
                f"A constant has one size, but {edge.destination!r} takes {show_spec(want)}, whose {port_dim!r} a "
                f"request decides (buckets {dims[port_dim].buckets}), and {edge.origin!r} is {show_spec(source)}. Make "
                f"it in a stage out of a value that has {port_dim!r}, e.g. with torch.zeros_like, or let the port take "
                f"{source_dim}.",
                edge=str(edge),
                source=source,
                target=want,
            )


def _check_between(
    edge: Edge,
    value: TensorSpec,
    want: TensorSpec,
    dims: dict[str, DimPlan],
    pad_names: frozenset[str],
    rule: Pad,
) -> None:
    """Refuses what fits at the buckets, but not at the sizes of requests that are padded to them.

    An adapter works on the padded value. So a padded dim can neither be grown nor cut to another size there: its
    padding would lie between what a request gave and what the adapter adds, or be part of what is left.
    """
    if len(value.dims) != len(want.dims):
        return
    largest = {name: dim.buckets[-1] for name, dim in dims.items()}
    for source_dim, port_dim in zip(plain_dims(value.dims), plain_dims(want.dims), strict=True):
        names = [name for name in dim_names(source_dim) if name in pad_names]
        if not names or source_dim == port_dim or (isinstance(port_dim, str) and dims[port_dim].any):
            continue
        grows, shrinks = _changes((source_dim,), (port_dim,), dims)
        at = unlike(source_dim, port_dim, largest) if isinstance(port_dim, str) else ""
        same_fill = edge.source.kind == "input" and rule == want.pad and not shrinks
        if at or ((grows or shrinks) and not same_fill and not _contradicts(want, grows, shrinks)):
            way_out = (
                f"Requests may have any size of {names[0]!r} up to {largest[names[0]]}, padded, and which elements are "
                f"padding is not known once {source_dim} is brought to {port_dim}. Do it in a stage, or use no pad "
                f"rule for {names[0]!r}."
            )
            raise _conflict(edge, value, want, f"Sizes differ{at}", way_out)


def _contradicts(want: TensorSpec, grows: bool, shrinks: bool) -> bool:
    """Tells whether the two ends do not fit at the buckets either, which is said in other words."""
    return (grows and want.pad is None) or (shrinks and not want.allow_slice)


def _fit_type(edge: Edge, source: PortSpec, want: PortSpec) -> None:
    matches = isinstance(source, type) and isinstance(want, type) and issubclass(source, want)
    if not matches and want is not object:
        raise PlanError(
            f"{edge.origin!r} gives {show_spec(source)}, but {edge.destination!r} takes {show_spec(want)}.",
            edge=str(edge),
            source=source,
            target=want,
        )


def _conflict(edge: Edge, value: TensorSpec, want: TensorSpec, what: str, way_out: str) -> PlanError:
    return PlanError(
        f"{what}: {edge.origin!r} gives {show_spec(value)}, but {edge.destination!r} takes {show_spec(want)}. "
        f"{way_out}",
        edge=str(edge),
        source=value,
        target=want,
    )


def _fit(
    edge: Edge, value: TensorSpec, want: TensorSpec, dims: dict[str, DimPlan]
) -> tuple[TensorSpec, list[Adapter]]:
    if len(value.dims) != len(want.dims):
        ranks = f"{len(value.dims)} and {len(want.dims)}"
        raise _conflict(edge, value, want, f"Ranks differ ({ranks})", "Reshape it in a stage in between.")
    # Cut, convert, fill: the smallest value is converted, and a pad value is one of the dtype that arrives.
    adapters: list[Adapter] = []
    target = tuple(
        _fit_dim(edge, value, want, pair, dims) for pair in zip(value.dims, want.dims, strict=True)
    )
    grows, shrinks = _changes(value.dims, target, dims)
    if shrinks and not want.allow_slice:
        raise _conflict(
            edge, value, want, "The value is too large", "Declare the port with allow_slice=True to cut it."
        )
    if grows and want.pad is None:
        way_out = "Declare the port with a pad rule (pad=0 or pad='repeat_first') to fill it up."
        raise _conflict(edge, value, want, "The value is too small", way_out)
    if shrinks:
        cut = tuple(_smaller(old, new, dims) for old, new in zip(value.dims, target, strict=True))
        adapters.append(Adapter("slice", cut))
    if value.dtype != want.dtype:
        if not want.allow_cast:
            way_out = "Declare the port with allow_cast=True to convert it."
            raise _conflict(edge, value, want, "Dtypes differ", way_out)
        adapters.append(Adapter("cast", dtype=want.dtype))
    if grows:
        adapters.append(Adapter("pad", target, want.pad))
    return TensorSpec(target, want.dtype), adapters


def _fit_dim(
    edge: Edge, value: TensorSpec, want: TensorSpec, pair: tuple[AnyDim, AnyDim], dims: dict[str, DimPlan]
) -> AnyDim:
    """The dim that arrives: the producer's where sizes are equal anyway, else the port's."""
    source_dim, port_dim = plain_dim(pair[0]), plain_dim(pair[1])
    if isinstance(port_dim, str) and isinstance(source_dim, str) and port_dim != source_dim:
        way_out = f"Call the dim {source_dim!r} in both places; a name is one size in the whole graph."
        raise _conflict(edge, value, want, f"Dims {source_dim!r} and {port_dim!r} are two names", way_out)
    if isinstance(port_dim, str) and dims[port_dim].any:
        return source_dim
    if isinstance(source_dim, str) and dims[source_dim].any and source_dim != port_dim:
        raise _conflict(
            edge,
            value,
            want,
            f"Dim {source_dim!r} has any size, the port a fixed one",
            "Give the dim buckets.",
        )
    grows, shrinks = _changes((source_dim,), (port_dim,), dims)
    if not grows and not shrinks and isinstance(port_dim, int):
        return source_dim
    return port_dim


def _changes(old: tuple[AnyDim, ...], new: tuple[AnyDim, ...], dims: dict[str, DimPlan]) -> tuple[bool, bool]:
    """Whether any dim grows, and whether any shrinks, at any combination of buckets."""
    names = dict.fromkeys((*TensorSpec(old).names, *TensorSpec(new).names))
    buckets = {name: dims[name].buckets for name in names}
    grows = shrinks = False
    for sizes in combinations(names, buckets):
        for before, after in zip(old, new, strict=True):
            grows |= size_of(before, sizes) < size_of(after, sizes)
            shrinks |= size_of(before, sizes) > size_of(after, sizes)
    return grows, shrinks


def _smaller(old: AnyDim, new: AnyDim, dims: dict[str, DimPlan]) -> AnyDim:
    return new if _changes((old,), (new,), dims)[1] else old
