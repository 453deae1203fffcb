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
    entered: Collection[str],
    padded: frozenset[str],
) -> EdgeSpec:
    """Finds the form in which an edge's consumer reads the value.

    Args:
        edge: The edge; inputs of inlined pipelines on the way (``constraints``) constrain the value like ports.
        source: What the producer gives.
        port: What the consumer declares, if anything.
        dims: Named dims with their buckets.
        entered: Names that inputs of the pipeline size.
        padded: Names that requests may have at sizes which are no buckets.

    Raises:
        PlanError: They contradict, or fit at the buckets only while a request may have other sizes.
    """
    wants = [spec for spec in (*edge.constraints, port) if spec is not None]
    if not isinstance(source, TensorSpec) or not all(isinstance(want, TensorSpec) for want in wants):
        for want in wants:
            _fit_type(edge, source, want)
        return EdgeSpec(source)
    value, conversions, rule = TensorSpec(source.dims, source.dtype), [], source.pad
    for want in wants:
        assert isinstance(want, TensorSpec)
        want = _settled(value, want, dims, entered)
        if edge.source.kind == "constant":
            _check_constant(edge, source, want, dims)
        _check_between(edge, value, want, dims, padded, rule)
        value, adapters = _fit(edge, value, want, dims)
        conversions += adapters
        rule = want.pad if want.pad is not None else rule
    return EdgeSpec(value, tuple(conversions), rule)


def _settled(
    value: TensorSpec, want: TensorSpec, dims: dict[str, DimPlan], entered: Collection[str]
) -> TensorSpec:
    """What a port wants where it names a dim that no request and no stage decides: the bucket that holds the value."""
    settled = list(plain_dims(want.dims))
    for position, (given, asked) in enumerate(zip(plain_dims(value.dims), settled, strict=False)):
        decided = isinstance(asked, str) and (asked in entered or dims[asked].decided_by or dims[asked].any)
        if isinstance(asked, str) and not decided and not isinstance(given, str):
            buckets = {name: dims[name].buckets for name in dim_names(given)}
            largest = max(size_of(given, sizes) for sizes in combinations(buckets, buckets))
            fixed = dims[asked].buckets
            settled[position] = next((size for size in fixed if size >= largest), fixed[-1])
    return replace(want, dims=tuple(settled))


def _check_constant(edge: Edge, source: TensorSpec, want: TensorSpec, dims: dict[str, DimPlan]) -> None:
    """A constant is put in place once, so it takes no size that a request decides.

    Where there is one bucket, and no chunks, it has that size; a smaller request reads its first slices.
    """
    for given, asked in zip(source.dims, plain_dims(want.dims), strict=False):
        if not isinstance(asked, str) or dims[asked].any:
            continue
        if len(dims[asked].buckets) > 1 or dims[asked].decided_by or dims[asked].batch:
            raise PlanError(
                f"A constant has one size, but {edge.destination!r} takes {show_spec(want)}, whose {asked!r} a request "
                f"decides (buckets {dims[asked].buckets}), and {edge.origin!r} is {show_spec(source)}. Make it in a "
                f"stage out of a value that has {asked!r}, e.g. with torch.zeros_like, or let the port take {given}.",
                edge=str(edge),
                source=source,
                target=want,
            )


def _check_between(
    edge: Edge,
    value: TensorSpec,
    want: TensorSpec,
    dims: dict[str, DimPlan],
    padded: frozenset[str],
    rule: Pad,
) -> None:
    """Refuses what fits at the buckets, but not at the sizes of requests that are padded to them.

    An adapter works on the padded value. So a padded dim can neither be grown nor cut to another size there: its
    padding would lie between what a request gave and what the adapter adds, or be part of what is left.
    """
    if len(value.dims) != len(want.dims):
        return
    largest = {name: dim.buckets[-1] for name, dim in dims.items()}
    for given, asked in zip(plain_dims(value.dims), plain_dims(want.dims), strict=True):
        names = [name for name in dim_names(given) if name in padded]
        if not names or given == asked or (isinstance(asked, str) and dims[asked].any):
            continue
        grows, shrinks = _changes((given,), (asked,), dims)
        at = unlike(given, asked, largest) if isinstance(asked, str) else ""
        same_fill = edge.source.kind == "input" and rule == want.pad and not shrinks
        if at or ((grows or shrinks) and not same_fill and not _contradicts(want, grows, shrinks)):
            way_out = (
                f"Requests may have any size of {names[0]!r} up to {largest[names[0]]}, padded, and which elements are "
                f"padding is not known once {given} is brought to {asked}. Do it in a stage, or use no pad rule for "
                f"{names[0]!r}."
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
    given, asked = plain_dim(pair[0]), plain_dim(pair[1])
    if isinstance(asked, str) and isinstance(given, str) and asked != given:
        way_out = f"Call the dim {given!r} in both places; a name is one size in the whole graph."
        raise _conflict(edge, value, want, f"Dims {given!r} and {asked!r} are two names", way_out)
    if isinstance(asked, str) and dims[asked].any:
        return given
    if isinstance(given, str) and dims[given].any and given != asked:
        raise _conflict(
            edge, value, want, f"Dim {given!r} has any size, the port a fixed one", "Give the dim buckets."
        )
    grows, shrinks = _changes((given,), (asked,), dims)
    if not grows and not shrinks and isinstance(asked, int):
        return given
    return asked


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
