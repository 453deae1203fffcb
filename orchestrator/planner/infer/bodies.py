"""Loops while inferring: the specs that enter and leave a body, and how often it runs.

The number of iterations is a fixed one, or the size of a named dim, or (where ``until`` may end the loop, or a limit
cuts a named size) it is known only when the loop has run: then it is a dim of its own, ``steps of decode``, that the
loop decides as a host stage decides the number of its crops.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch

from orchestrator.errors import PlanError
from orchestrator.graph import (
    CONDITION,
    BranchLoop,
    Edge,
    Graph,
    Loop,
    MapLoop,
    next_port,
    stacked_port,
    until_port,
)
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

__all__ = [
    "enter_specs",
    "exit_specs",
    "find_item_dims",
    "is_of_items",
    "limit_of",
    "named_constant",
    "steps_dim",
]


def steps_dim(loop: str) -> StepsDim:
    """Returns the dim that is the number of iterations of a loop that decides it."""
    return StepsDim(f"steps of {loop}")


def limit_of(context: PlanContext, loop: Loop) -> int:
    """Returns the most iterations of a loop, at the largest buckets."""
    name = steps_dim(loop.name)
    match loop:
        case MapLoop() | BranchLoop():
            return 1
    if name in context.dims:
        return context.dims[name].buckets[-1]
    # Without a dim of its own the loop runs once for each slice, cut at max_steps: any sliced port tells the number,
    # since infer proved that all have one length.
    edges = [edge for edge in context.graph.edges if edge.target.name == loop.name]
    specs = [context.producer_specs[edge] for edge in edges if edge.target.kind == "enter"]
    names = [edge.target_port for edge in edges if edge.target.kind == "enter"]
    for port, spec in zip(names, specs, strict=True):
        if port in loop.each and isinstance(spec, TensorSpec):
            most = size_of(spec.dims[0], context.largest)
            return most if loop.max_steps is None else min(most, loop.max_steps)
    return loop.max_steps or 0


def enter_specs(
    loop: Loop, specs: Mapping[str, PortSpec], ports: Mapping[str, Edge], dims: Mapping[str, DimPlan]
) -> tuple[dict[str, PortSpec], AnyDim | None, DimPlan | None]:
    """Returns the specs in the body of a loop, map or branch, and how often the body runs.

    Args:
        loop: The loop.
        specs: Entry ports to the specs outside of the body.
        ports: Entry ports to their edges.
        dims: Named dims.

    Returns:
        Ports to specs in the body, the number of iterations, and its dim where the loop decides that number.

    Raises:
        PlanError: A value to be sliced has no dim 0, or another length than the others.
    """
    match loop:
        case MapLoop() | BranchLoop():
            return (*_single_enter_specs(loop, specs, ports), None)
    if loop.condition:
        _check_boolean(f"The condition of loop {loop.name!r}", specs[CONDITION], ports[CONDITION])
    # A carry keeps its spec from one iteration to the next; exit_specs checks that the body gives it back so.
    body_specs = {port: specs[port] for port in loop.carry}
    length: tuple[str, AnyDim] | None = None
    # All slices must have one symbolic length: lengths that are equal at the buckets alone would part at other sizes.
    for port in loop.each:
        spec = specs[port]
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
        body_specs[port] = TensorSpec(spec.dims[1:], spec.dtype, pad=spec.pad)
    count, dim = _count(loop, None if length is None else length[1], dims)
    return body_specs, count, dim


def _single_enter_specs(
    loop: Loop, specs: Mapping[str, PortSpec], ports: Mapping[str, Edge]
) -> tuple[dict[str, PortSpec], AnyDim | None]:
    """Specs in the body of a map or branch, and the number of items where that is a dim."""
    body_specs = {port: specs[port] for port in (*loop.carry, *loop.inputs)}
    if loop.condition:
        _check_boolean(f"The condition of branch {loop.name!r}", specs[CONDITION], ports[CONDITION])
    # One count for all ports, and None stands for a list: a list and a tensor never go together, as nobody could check
    # that they are equally long.
    counts: dict[AnyDim | None, str] = {}
    for port, batch in loop.over:
        counts.setdefault(_items(loop, port, specs[port], batch, ports[port]), port)
        body_specs[port] = batch
    if len(counts) > 1:
        (one, first), (other, second) = list(counts.items())[:2]
        raise PlanError(
            f"Items of one map are equally many, but {ports[first].origin!r} at '{loop.name}.{first}' has "
            f"{one or 'a list of them'} and {ports[second].origin!r} at '{loop.name}.{second}' has "
            f"{other or 'a list of them'}.",
            loop=loop.name,
            ports=(first, second),
        )
    return body_specs, next(iter(counts), None)


def _items(loop: Loop, port: str, spec: PortSpec, batch: TensorSpec, edge: Edge) -> AnyDim | None:
    """The number of items, which are the slices of a tensor along dim 0; None for a list."""
    if spec is list:
        return None
    # A batch is one plain slice of the tensor only where every other dim is fixed: items of one tensor cannot differ in
    # size.
    matches = (
        isinstance(spec, TensorSpec)
        and spec.dtype == batch.dtype
        and len(spec.dims) == len(batch.dims)
        and all(isinstance(dim, int) for dim in batch.dims[1:])
        and plain_dims(spec.dims[1:]) == plain_dims(batch.dims[1:])
    )
    if not matches or not isinstance(spec, TensorSpec):
        raise PlanError(
            f"Map {loop.name!r} takes items of {show_spec(batch)} at {port!r}, but {edge.origin!r} gives "
            f"{show_spec(spec)}. Give a list of tensors without the first dim, or a tensor whose other dims are those "
            f"of fixed size.",
            edge=str(edge),
            source=spec,
            target=batch,
        )
    return plain_dim(spec.dims[0])


def _map_exit_specs(
    loop: Loop, specs: Mapping[str, PortSpec], ports: Mapping[str, Edge], count: AnyDim | None
) -> dict[str, PortSpec]:
    """Specs of the results of a map: tensors where its items are slices of tensors, else lists."""
    # The dim that counts a batch's items is the body's own; outside the number of all items takes its place.
    first = str(loop.over[0][1].dims[0])
    own = {name for _, spec in loop.over for name in spec.names}
    results: dict[str, PortSpec] = {}
    for name in loop.collect:
        spec = specs[stacked_port(name)]
        names = spec.names if isinstance(spec, TensorSpec) else ()
        if not isinstance(spec, TensorSpec) or plain_dims(spec.dims[:1]) != (first,) or first in names[1:]:
            raise PlanError(
                f"The body of map {loop.name!r} gives {show_spec(spec)} at {name!r} "
                f"({ports[stacked_port(name)].origin!r}); it must begin with the dim {first!r} that counts the items.",
                loop=loop.name,
                port=name,
            )
        # Batches are joined to one tensor, so no dim may differ from one batch to the next.
        if count is not None and own & set(names[1:]):
            raise PlanError(
                f"Map {loop.name!r} gives items of {show_spec(spec)}, which may differ in size; give it a list.",
                loop=loop.name,
                port=name,
            )
        results[stacked_port(name)] = (
            list if count is None else TensorSpec((count, *spec.dims[1:]), spec.dtype)
        )
    return results


def is_of_items(graph: Graph, dim: DimPlan) -> bool:
    """Tells whether a dim is one of the items of a map."""
    match graph.loops.get(dim.decided_by.rpartition(".")[0]):
        case MapLoop():
            return True
    return False


def find_item_dims(
    graph: Graph, loop: Loop, dims: Mapping[str, DimPlan], input_dims: Collection[str]
) -> dict[str, DimPlan]:
    """Returns the dims of a map's items, which every batch decides.

    Args:
        graph: The graph.
        loop: The map.
        dims: Named dims.
        input_dims: Names that inputs of the pipeline size.

    Raises:
        PlanError: One of them has another size elsewhere.
    """
    item_dims: dict[str, DimPlan] = {}
    for port, spec in loop.over:
        for name in spec.names:
            # Another port of this map, or another map, may have brought the dim in already: dims of items may be
            # shared, those of requests and stages may not.
            if is_of_items(graph, dims[name]):
                continue
            if name in input_dims or dims[name].decided_by:
                by = dims[name].decided_by or "an input of the pipeline"
                raise PlanError(
                    f"The items of '{loop.name}.{port}' have a dim {name!r}, whose size {by} decides; in a batch of "
                    f"items it is another. Call it otherwise in the body of the map.",
                    loop=loop.name,
                    dim=name,
                )
            item_dims.setdefault(name, replace(dims[name], decided_by=f"{loop.name}.{port}"))
    return item_dims


def _count(loop: Loop, length: AnyDim | None, dims: Mapping[str, DimPlan]) -> tuple[AnyDim, DimPlan | None]:
    largest = {name: dim.buckets[-1] for name, dim in dims.items()}
    bounds = [] if length is None else [size_of(length, largest)]
    bounds += [] if loop.max_steps is None else [loop.max_steps]
    # Three cases, from what is known first to last: a fixed number, the size of a named dim, and a number that only the
    # run decides, which gets a dim bounded by what is known.
    if not loop.until and (length is None or isinstance(length, int)):
        return min(bounds), None
    if not loop.until and length is not None and loop.max_steps is None:
        return length, None
    name = steps_dim(loop.name)
    return name, DimPlan(name, (max(1, min(bounds)),), decided_by=f"{loop.name}.steps", can_pad=True)


def exit_specs(
    loop: Loop,
    specs: Mapping[str, PortSpec],
    ports: Mapping[str, Edge],
    arguments: Mapping[str, PortSpec],
    count: AnyDim | None,
    dims: Mapping[str, DimPlan],
) -> dict[str, PortSpec]:
    """Returns the specs that a loop, map or branch gives outside of its body.

    Args:
        loop: The loop.
        specs: Exit ports to the specs in the body.
        ports: Exit ports to their edges.
        arguments: Carries to the specs with which an iteration begins.
        count: How many iterations there are.
        dims: Named dims.

    Returns:
        Ports to specs outside.

    Raises:
        PlanError: A carry changes its shape or dtype, or ``until`` is not one boolean.
    """
    match loop:
        case MapLoop():
            return _map_exit_specs(loop, specs, ports, count)
    # The next iteration reads the yielded value by the argument's spec, so both must be equal at every bucket.
    for port in loop.carry:
        _check_carry(loop, port, specs[next_port(port)], ports[next_port(port)], arguments[port], dims)
    if loop.until:
        end = until_port(loop.until)
        _check_boolean(f"until of loop {loop.name!r}", specs[end], ports[end])
    # A final carry is what an iteration would begin with; results are stacked where the count is a dim, and a list
    # where the values have no spec to stack.
    results: dict[str, PortSpec] = dict(arguments)
    for name in loop.collect:
        spec = specs[stacked_port(name)]
        if isinstance(spec, TensorSpec) and count is not None:
            results[stacked_port(name)] = TensorSpec((count, *spec.dims), spec.dtype)
        else:
            results[stacked_port(name)] = list
    return results


def _check_carry(
    loop: Loop, port: str, spec: PortSpec, edge: Edge, argument: PortSpec, dims: Mapping[str, DimPlan]
) -> None:
    same = _same(spec, argument, dims)
    match loop:
        # Both ways of a branch end in one value: a dim fixed on one side and named on the other would be padded on that
        # side alone.
        case BranchLoop() if not (same and _named_alike(spec, argument)):
            raise PlanError(
                f"A branch gives one form, but {port!r} of {loop.name!r} is {show_spec(spec)} from {edge.origin!r} "
                f"and otherwise {show_spec(argument)}. Let them be equal: named dims are those that every request "
                f"sizes, and what is there otherwise is made in a stage out of a value that has them, e.g. with "
                f"torch.zeros_like.",
                loop=loop.name,
                port=port,
                otherwise=argument,
                given=spec,
            )
        case Loop() if not same:
            raise PlanError(
                f"A carry keeps its shape and dtype, but {port!r} of loop {loop.name!r} starts as "
                f"{show_spec(argument)} and {edge.origin!r} gives {show_spec(spec)} for the next iteration. Give "
                f"state that grows a fixed size and a position, or convert it in a stage of the body.",
                loop=loop.name,
                port=port,
                start=argument,
                next=spec,
            )


def named_constant(
    edge_spec: EdgeSpec, spec: PortSpec, dims: Mapping[str, DimPlan], request_dims: Collection[str]
) -> EdgeSpec:
    """Returns the form of a constant that stands for a value with named dims.

    Args:
        edge_spec: The form of the constant, which has fixed dims.
        spec: The value.
        dims: Named dims.
        request_dims: Names that every request sizes, at the one bucket they have.
    """
    if not isinstance(edge_spec.spec, TensorSpec) or not isinstance(spec, TensorSpec):
        return edge_spec
    if len(edge_spec.spec.dims) != len(spec.dims):
        return edge_spec
    spec_dims = [
        name if name in request_dims and dims[str(name)].buckets == (size,) else size
        for size, name in zip(edge_spec.spec.dims, plain_dims(spec.dims), strict=True)
    ]
    return replace(edge_spec, spec=replace(edge_spec.spec, dims=tuple(spec_dims)))


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
