"""Loops while inferring: what enters and leaves a body, and how often it runs.

The number of iterations is a fixed one, or the size of a named dim, or (where ``until`` may end the loop, or a limit
cuts a named size) it is known only when the loop has run: then it is a dim of its own, ``steps of decode``, that the
loop decides as a host stage decides the number of its crops.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch

from orchestrator.errors import PlanError
from orchestrator.graph import CONDITION, Edge, Graph, Loop, next_port, stacked_port, until_port
from orchestrator.plan.records import DimPlan
from orchestrator.planner.context import EdgeSpec, PlanContext
from orchestrator.planner.infer.trials import unlike
from orchestrator.specs import (
    AnyDim,
    PortSpec,
    StepsDim,
    TensorSpec,
    combinations,
    plain_dim,
    plain_dims,
    show_spec,
    size_of,
)

__all__ = ["born_by", "entered", "is_of_items", "left", "limit_of", "named_constant", "steps_dim"]


def steps_dim(loop: str) -> StepsDim:
    """Returns the dim that is the number of iterations of a loop that decides it."""
    return StepsDim(f"steps of {loop}")


def limit_of(context: PlanContext, loop: Loop) -> int:
    """Returns the most iterations of a loop, at the largest buckets."""
    name = steps_dim(loop.name)
    if loop.kind != "loop":
        return 1
    if name in context.dims:
        return context.dims[name].buckets[-1]
    edges = [edge for edge in context.graph.edges if edge.target.name == loop.name]
    sliced = [context.producer_specs[edge] for edge in edges if edge.target.kind == "enter"]
    names = [edge.target_port for edge in edges if edge.target.kind == "enter"]
    for port, spec in zip(names, sliced, strict=True):
        if port in loop.each and isinstance(spec, TensorSpec):
            most = size_of(spec.dims[0], context.largest)
            return most if loop.max_steps is None else min(most, loop.max_steps)
    return loop.max_steps or 0


def entered(
    loop: Loop, given: Mapping[str, PortSpec], ports: Mapping[str, Edge], dims: Mapping[str, DimPlan]
) -> tuple[dict[str, PortSpec], AnyDim | None, DimPlan | None]:
    """Finds what one iteration of a loop gets, and how many there are.

    Args:
        loop: The loop.
        given: Ports to what is fed to them.
        ports: Ports to edges.
        dims: Named dims.

    Returns:
        Ports to specs in the body, the number of iterations, and the dim that it is where the loop decides it.

    Raises:
        PlanError: What is to be sliced has no dim 0, or not the length of the others.
    """
    if loop.kind != "loop":
        return (*_entered_once(loop, given, ports), None)
    made = {port: given[port] for port in loop.carry}
    length: tuple[str, AnyDim] | None = None
    for port in loop.each:
        spec = given[port]
        if not isinstance(spec, TensorSpec) or not spec.dims:
            raise PlanError(
                f"'{loop.name}.{port}' gets one slice for each iteration, but {ports[port].origin!r} is "
                f"{show_spec(spec)}, which has no dim to slice. Give a tensor whose dim 0 counts the iterations.",
                edge=str(ports[port]),
                spec=spec,
            )
        first = plain_dim(spec.dims[0])
        if length is not None and length[1] != first:
            other = ports[length[0]]
            raise PlanError(
                f"Slices of one loop are equally many, but {ports[port].origin!r} at '{loop.name}.{port}' has {first} "
                f"and {other.origin!r} at '{loop.name}.{length[0]}' has {length[1]} along dim 0. Cut the longer one.",
                loop=loop.name,
                ports=(length[0], port),
            )
        length = (port, first)
        made[port] = TensorSpec(spec.dims[1:], spec.dtype, pad=spec.pad)
    count, decided = _count(loop, None if length is None else length[1], dims)
    return made, count, decided


def _entered_once(
    loop: Loop, given: Mapping[str, PortSpec], ports: Mapping[str, Edge]
) -> tuple[dict[str, PortSpec], AnyDim | None]:
    """What the body of a map or branch gets, and the number of items where it is a dim."""
    made = {port: given[port] for port in (*loop.carry, *loop.inputs)}
    if loop.condition:
        _check_boolean(f"The condition of branch {loop.name!r}", given[CONDITION], ports[CONDITION])
    counts: dict[AnyDim | None, str] = {}
    for port, batch in loop.over:
        counts.setdefault(_items(loop, port, given[port], batch, ports[port]), port)
        made[port] = batch
    if len(counts) > 1:
        (one, first), (other, second) = list(counts.items())[:2]
        raise PlanError(
            f"Items of one map are equally many, but {ports[first].origin!r} at '{loop.name}.{first}' has "
            f"{one or 'a list of them'} and {ports[second].origin!r} at '{loop.name}.{second}' has "
            f"{other or 'a list of them'}.",
            loop=loop.name,
            ports=(first, second),
        )
    return made, next(iter(counts), None)


def _items(loop: Loop, port: str, spec: PortSpec, batch: TensorSpec, edge: Edge) -> AnyDim | None:
    """The number of items, which are the slices of a tensor along dim 0; None for a list."""
    if spec is list:
        return None
    conversions = (
        isinstance(spec, TensorSpec)
        and spec.dtype == batch.dtype
        and len(spec.dims) == len(batch.dims)
        and all(isinstance(dim, int) for dim in batch.dims[1:])
        and plain_dims(spec.dims[1:]) == plain_dims(batch.dims[1:])
    )
    if not conversions or not isinstance(spec, TensorSpec):
        raise PlanError(
            f"Map {loop.name!r} takes items of {show_spec(batch)} at {port!r}, but {edge.origin!r} gives "
            f"{show_spec(spec)}. Give a list of tensors without the first dim, or a tensor whose other dims are those "
            f"of fixed size.",
            edge=str(edge),
            source=spec,
            target=batch,
        )
    return plain_dim(spec.dims[0])


def _left_map(
    loop: Loop, given: Mapping[str, PortSpec], ports: Mapping[str, Edge], count: AnyDim | None
) -> dict[str, PortSpec]:
    """What a map gives: lists, or tensors where it was given tensors."""
    first = str(loop.over[0][1].dims[0])
    own = {name for _, spec in loop.over for name in spec.names}
    made: dict[str, PortSpec] = {}
    for name in loop.collect:
        spec = given[stacked_port(name)]
        names = spec.names if isinstance(spec, TensorSpec) else ()
        if not isinstance(spec, TensorSpec) or plain_dims(spec.dims[:1]) != (first,) or first in names[1:]:
            raise PlanError(
                f"The body of map {loop.name!r} gives {show_spec(spec)} at {name!r} "
                f"({ports[stacked_port(name)].origin!r}); it must begin with the dim {first!r} that counts the items.",
                loop=loop.name,
                port=name,
            )
        if count is not None and own & set(names[1:]):
            raise PlanError(
                f"Map {loop.name!r} gives items of {show_spec(spec)}, which may differ in size; give it a list.",
                loop=loop.name,
                port=name,
            )
        made[stacked_port(name)] = list if count is None else TensorSpec((count, *spec.dims[1:]), spec.dtype)
    return made


def is_of_items(graph: Graph, dim: DimPlan) -> bool:
    """Tells whether a dim is one of the items of a map."""
    loop = graph.loops.get(dim.decided_by.rpartition(".")[0])
    return loop is not None and loop.kind == "map"


def born_by(
    graph: Graph, loop: Loop, dims: Mapping[str, DimPlan], taken: Collection[str]
) -> dict[str, DimPlan]:
    """Returns the dims of a map's items, which every batch decides.

    Args:
        graph: The graph.
        loop: The map.
        dims: Named dims.
        taken: Names that inputs of the pipeline size.

    Raises:
        PlanError: One of them has another size elsewhere.
    """
    born: dict[str, DimPlan] = {}
    for port, spec in loop.over:
        for name in spec.names:
            if is_of_items(graph, dims[name]):
                continue
            if name in taken or dims[name].decided_by:
                by = dims[name].decided_by or "an input of the pipeline"
                raise PlanError(
                    f"The items of '{loop.name}.{port}' have a dim {name!r}, whose size {by} decides; in a batch of "
                    f"items it is another. Call it otherwise in the body of the map.",
                    loop=loop.name,
                    dim=name,
                )
            born.setdefault(name, replace(dims[name], decided_by=f"{loop.name}.{port}"))
    return born


def _count(loop: Loop, length: AnyDim | None, dims: Mapping[str, DimPlan]) -> tuple[AnyDim, DimPlan | None]:
    largest = {name: dim.buckets[-1] for name, dim in dims.items()}
    bounds = [] if length is None else [size_of(length, largest)]
    bounds += [] if loop.max_steps is None else [loop.max_steps]
    if not loop.until and (length is None or isinstance(length, int)):
        return min(bounds), None
    if not loop.until and length is not None and loop.max_steps is None:
        return length, None
    name = steps_dim(loop.name)
    return name, DimPlan(name, (max(1, min(bounds)),), decided_by=f"{loop.name}.steps", can_pad=True)


def left(
    loop: Loop,
    given: Mapping[str, PortSpec],
    ports: Mapping[str, Edge],
    heads: Mapping[str, PortSpec],
    count: AnyDim | None,
    dims: Mapping[str, DimPlan],
) -> dict[str, PortSpec]:
    """Finds what a loop gives.

    Args:
        loop: The loop.
        given: Ports of its end to what the body gives.
        ports: Ports to edges.
        heads: Carries to what an iteration gets.
        count: How many iterations there are.
        dims: Named dims.

    Returns:
        Ports to specs outside.

    Raises:
        PlanError: A carry changes its shape or dtype, or what is to end the loop is not one boolean.
    """
    match loop.kind:
        case "map":
            return _left_map(loop, given, ports, count)
    for port in loop.carry:
        _check_carry(loop, port, given[next_port(port)], ports[next_port(port)], heads[port], dims)
    if loop.until:
        end = until_port(loop.until)
        _check_boolean(f"until of loop {loop.name!r}", given[end], ports[end])
    made: dict[str, PortSpec] = dict(heads)
    for name in loop.collect:
        spec = given[stacked_port(name)]
        if isinstance(spec, TensorSpec) and count is not None:
            made[stacked_port(name)] = TensorSpec((count, *spec.dims), spec.dtype)
        else:
            made[stacked_port(name)] = list
    return made


def _check_carry(
    loop: Loop, port: str, given: PortSpec, edge: Edge, head: PortSpec, dims: Mapping[str, DimPlan]
) -> None:
    same = _same(given, head, dims)
    match loop.kind:
        case "when" if not (same and _named_alike(given, head)):
            raise PlanError(
                f"A branch gives one form, but {port!r} of {loop.name!r} is {show_spec(given)} from {edge.origin!r} "
                f"and otherwise {show_spec(head)}. Let them be equal: named dims are those that every request sizes, "
                f"and what is there otherwise is made in a stage out of a value that has them, e.g. with "
                f"torch.zeros_like.",
                loop=loop.name,
                port=port,
                otherwise=head,
                given=given,
            )
        case "loop" if not same:
            raise PlanError(
                f"A carry keeps its shape and dtype, but {port!r} of loop {loop.name!r} starts as {show_spec(head)} "
                f"and {edge.origin!r} gives {show_spec(given)} for the next iteration. Give state that grows a fixed "
                f"size and a position, or convert it in a stage of the body.",
                loop=loop.name,
                port=port,
                start=head,
                next=given,
            )


def named_constant(
    edge_spec: EdgeSpec, spec: PortSpec, dims: Mapping[str, DimPlan], sized: Collection[str]
) -> EdgeSpec:
    """Returns the form of a constant that stands for a value with named dims.

    Args:
        edge_spec: The form of the constant, which has fixed dims.
        spec: The value.
        dims: Named dims.
        sized: Names that every request sizes, at the one bucket they have.
    """
    if not isinstance(edge_spec.spec, TensorSpec) or not isinstance(spec, TensorSpec):
        return edge_spec
    if len(edge_spec.spec.dims) != len(spec.dims):
        return edge_spec
    named = [
        name if name in sized and dims[str(name)].buckets == (size,) else size
        for size, name in zip(edge_spec.spec.dims, plain_dims(spec.dims), strict=True)
    ]
    return replace(edge_spec, spec=replace(edge_spec.spec, dims=tuple(named)))


def _named_alike(one: PortSpec, other: PortSpec) -> bool:
    """Tells whether two specs have fixed dims at the same places."""
    if not isinstance(one, TensorSpec) or not isinstance(other, TensorSpec):
        return True
    pairs = zip(one.dims, other.dims, strict=True)
    return all(isinstance(here, int) == isinstance(there, int) for here, there in pairs)


def _same(one: PortSpec, other: PortSpec, dims: Mapping[str, DimPlan]) -> bool:
    if not isinstance(one, TensorSpec) or not isinstance(other, TensorSpec):
        return one is other
    if one.dtype != other.dtype or len(one.dims) != len(other.dims):
        return False
    names = dict.fromkeys((*one.names, *other.names))
    buckets = {name: dims[name].buckets for name in names}
    largest = {name: sizes[-1] for name, sizes in buckets.items()}
    return all(one.shape(sizes) == other.shape(sizes) for sizes in combinations(names, buckets)) and not any(
        unlike(first, second, largest) for first, second in zip(one.dims, other.dims, strict=True)
    )


def _check_boolean(what: str, spec: PortSpec, edge: Edge) -> None:
    if spec is bool:
        return
    if isinstance(spec, TensorSpec) and spec.dtype is torch.bool and all(dim == 1 for dim in spec.dims):
        return
    raise PlanError(
        f"{what} is one boolean, but {edge.origin!r} gives {show_spec(spec)}. Reduce it in a stage, e.g. "
        f"finished.all().",
        edge=str(edge),
        spec=spec,
    )
