"""Fit: the conversions by which a declared port takes a producer's value.

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
    input_dims: Collection[str],
    padded_dims: frozenset[str],
) -> EdgeSpec:
    """Finds the form in which an edge's consumer reads the value.

    Args:
        edge: The edge; inputs of inlined pipelines on the way (``constraints``) constrain the value like ports.
        source: The producer's spec.
        port: The spec that the consumer declares, if any.
        dims: Named dims with their buckets.
        input_dims: Names that inputs of the pipeline size.
        padded_dims: Names that requests may have at sizes which are no buckets.

    Raises:
        PlanError: They contradict, or fit at the buckets only while a request may have other sizes.
    """
    targets = [spec for spec in (*edge.constraints, port) if spec is not None]
    # Python values have no sizes to bring into line: types must match, and nothing is converted.
    if not isinstance(source, TensorSpec) or not all(isinstance(target, TensorSpec) for target in targets):
        for target in targets:
            _fit_type(edge, source, target)
        return EdgeSpec(source)
    value, conversions, rule = TensorSpec(source.dims, source.dtype), [], source.pad
    # Each constraint reads what the one before made of the value, from the producer to the port; conversions add up in
    # that order. The rule of the last one that has any is in force for what follows.
    for target in targets:
        assert isinstance(target, TensorSpec)
        target = _with_buckets(value, target, dims, input_dims)
        if edge.source.kind == "constant":
            _check_constant(edge, source, target, dims)
        _check_between(edge, value, target, dims, padded_dims, rule)
        value, adapters = _fit(edge, value, target, dims)
        conversions += adapters
        rule = target.pad if target.pad is not None else rule
    return EdgeSpec(value, tuple(conversions), rule)


def _with_buckets(
    value: TensorSpec, target: TensorSpec, dims: dict[str, DimPlan], input_dims: Collection[str]
) -> TensorSpec:
    """The spec of a port, with buckets that hold the value in place of dims that no request and no stage decides."""
    # A request has no say in such a dim, so the value is brought to one bucket for good.
    target_dims = list(plain_dims(target.dims))
    for position, (source_dim, target_dim) in enumerate(
        zip(plain_dims(value.dims), target_dims, strict=False)
    ):
        has_decider = isinstance(target_dim, str) and (
            target_dim in input_dims or dims[target_dim].decided_by or dims[target_dim].any
        )
        if isinstance(target_dim, str) and not has_decider and not isinstance(source_dim, str):
            buckets = {name: dims[name].buckets for name in dim_names(source_dim)}
            largest = max(size_of(source_dim, sizes) for sizes in combinations(buckets, buckets))
            target_buckets = dims[target_dim].buckets
            target_dims[position] = next(
                (size for size in target_buckets if size >= largest), target_buckets[-1]
            )
    return replace(target, dims=tuple(target_dims))


def _check_constant(edge: Edge, source: TensorSpec, target: TensorSpec, dims: dict[str, DimPlan]) -> None:
    """A constant is put in place once, so it takes no size that a request decides.

    Where there is one bucket, and no chunks, it has that size; a smaller request reads its first slices.
    """
    for source_dim, target_dim in zip(source.dims, plain_dims(target.dims), strict=False):
        if not isinstance(target_dim, str) or dims[target_dim].any:
            continue
        if len(dims[target_dim].buckets) > 1 or dims[target_dim].decided_by or dims[target_dim].batch:
            raise PlanError(
                f"A constant has one size, but {edge.destination!r} takes {show_spec(target)}, whose {target_dim!r} a "
                f"request decides (buckets {dims[target_dim].buckets}), and {edge.origin!r} is {show_spec(source)}. "
                f"Make it in a stage out of a value that has {target_dim!r}, e.g. with torch.zeros_like, or let the "
                f"port take {source_dim}.",
                edge=str(edge),
                source=source,
                target=target,
            )


def _check_between(
    edge: Edge,
    value: TensorSpec,
    target: TensorSpec,
    dims: dict[str, DimPlan],
    padded_dims: frozenset[str],
    rule: Pad,
) -> None:
    """Refuses a fit that holds at the buckets, but not at the sizes of requests that are padded to them.

    An adapter works on the padded value. So a padded dim can neither be grown nor cut to another size there: its
    padding would lie between the request's own elements and those that the adapter adds, or be among those that remain.
    """
    if len(value.dims) != len(target.dims):
        return
    largest = {name: dim.buckets[-1] for name, dim in dims.items()}
    # Only dims with sizes between buckets can go wrong here, and only where both ends differ.
    for source_dim, target_dim in zip(plain_dims(value.dims), plain_dims(target.dims), strict=True):
        names = [name for name in dim_names(source_dim) if name in padded_dims]
        if not names or source_dim == target_dim or (isinstance(target_dim, str) and dims[target_dim].any):
            continue
        grows, shrinks = _changes((source_dim,), (target_dim,), dims)
        at = unlike(source_dim, target_dim, largest) if isinstance(target_dim, str) else ""
        # An input that grows by the rule it is padded with anyway has one uniform filling, whatever its size was.
        same_fill = edge.source.kind == "input" and rule == target.pad and not shrinks
        if at or ((grows or shrinks) and not same_fill and not _contradicts(target, grows, shrinks)):
            way_out = (
                f"Requests may have any size of {names[0]!r} up to {largest[names[0]]}, padded, and which elements are "
                f"padding is not known once {source_dim} is brought to {target_dim}. Do it in a stage, or use no pad "
                f"rule for {names[0]!r}."
            )
            raise _conflict(edge, value, target, f"Sizes differ{at}", way_out)


def _contradicts(target: TensorSpec, grows: bool, shrinks: bool) -> bool:
    """Tells whether the two ends do not fit at the buckets either, which is said in other words."""
    return (grows and target.pad is None) or (shrinks and not target.allow_slice)


def _fit_type(edge: Edge, source: PortSpec, target: PortSpec) -> None:
    matches = isinstance(source, type) and isinstance(target, type) and issubclass(source, target)
    if not matches and target is not object:
        raise PlanError(
            f"{edge.origin!r} gives {show_spec(source)}, but {edge.destination!r} takes {show_spec(target)}.",
            edge=str(edge),
            source=source,
            target=target,
        )


def _conflict(edge: Edge, value: TensorSpec, target: TensorSpec, what: str, way_out: str) -> PlanError:
    return PlanError(
        f"{what}: {edge.origin!r} gives {show_spec(value)}, but {edge.destination!r} takes {show_spec(target)}. "
        f"{way_out}",
        edge=str(edge),
        source=value,
        target=target,
    )


def _fit(
    edge: Edge, value: TensorSpec, target: TensorSpec, dims: dict[str, DimPlan]
) -> tuple[TensorSpec, list[Adapter]]:
    if len(value.dims) != len(target.dims):
        ranks = f"{len(value.dims)} and {len(target.dims)}"
        raise _conflict(edge, value, target, f"Ranks differ ({ranks})", "Reshape it in a stage in between.")
    adapters: list[Adapter] = []
    target_dims = tuple(
        _fit_dim(edge, value, target, pair, dims) for pair in zip(value.dims, target.dims, strict=True)
    )
    # Consent first, then adapters: nothing is cut, filled or converted that the port did not allow.
    grows, shrinks = _changes(value.dims, target_dims, dims)
    if shrinks and not target.allow_slice:
        raise _conflict(
            edge, value, target, "The value is too large", "Declare the port with allow_slice=True to cut it."
        )
    if grows and target.pad is None:
        way_out = "Declare the port with a pad rule (pad=0 or pad='repeat_first') to fill it up."
        raise _conflict(edge, value, target, "The value is too small", way_out)
    # Cut, cast, fill, in this order: the cast touches no element that is cut off, and the filling is written in the
    # dtype of the port, whose rule it is.
    if shrinks:
        cut = tuple(_smaller(old, new, dims) for old, new in zip(value.dims, target_dims, strict=True))
        adapters.append(Adapter("slice", cut))
    if value.dtype != target.dtype:
        if not target.allow_cast:
            way_out = "Declare the port with allow_cast=True to convert it."
            raise _conflict(edge, value, target, "Dtypes differ", way_out)
        adapters.append(Adapter("cast", dtype=target.dtype))
    if grows:
        adapters.append(Adapter("pad", target_dims, target.pad))
    return TensorSpec(target_dims, target.dtype), adapters


def _fit_dim(
    edge: Edge, value: TensorSpec, target: TensorSpec, pair: tuple[AnyDim, AnyDim], dims: dict[str, DimPlan]
) -> AnyDim:
    """The dim that arrives: the producer's where sizes are equal anyway, else the port's."""
    source_dim, target_dim = plain_dim(pair[0]), plain_dim(pair[1])
    if isinstance(target_dim, str) and isinstance(source_dim, str) and target_dim != source_dim:
        way_out = f"Call the dim {source_dim!r} in both places; a name is one size in the whole graph."
        raise _conflict(edge, value, target, f"Dims {source_dim!r} and {target_dim!r} are two names", way_out)
    # A dim of any size on one side takes over whatever the other has; on the producer's side the port has to be as
    # free.
    if isinstance(target_dim, str) and dims[target_dim].any:
        return source_dim
    if isinstance(source_dim, str) and dims[source_dim].any and source_dim != target_dim:
        raise _conflict(
            edge,
            value,
            target,
            f"Dim {source_dim!r} has any size, the port a fixed one",
            "Give the dim buckets.",
        )
    # Where sizes are equal at all buckets the name wins over the number, so that consumers can follow it further.
    grows, shrinks = _changes((source_dim,), (target_dim,), dims)
    if not grows and not shrinks and isinstance(target_dim, int):
        return source_dim
    return target_dim


def _changes(old: tuple[AnyDim, ...], new: tuple[AnyDim, ...], dims: dict[str, DimPlan]) -> tuple[bool, bool]:
    """Tells whether any dim grows, and whether any shrinks, at any combination of buckets."""
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
