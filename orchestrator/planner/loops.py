"""Loops while inferring: what enters and leaves a body, and how often it runs.

The number of iterations is a fixed one, or the size of a named dim, or (where ``until`` may end the loop, or a limit
cuts a named size) it is known only when the loop has run: then it is a dim of its own, ``steps of decode``, that the
loop decides as a host stage decides the number of its crops.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from orchestrator.errors import PlanError
from orchestrator.graph import Edge, Loop, collected, ending, following
from orchestrator.plan.model import DimPlan
from orchestrator.planner.draft import Draft
from orchestrator.specs import AnyDim, PortSpec, TensorSpec, combinations, plain_dim, show_spec, size_of

__all__ = ["entered", "left", "limit_of", "steps_dim"]


def steps_dim(loop: str) -> str:
    """Returns the dim that is the number of iterations of a loop that decides it."""
    return f"steps of {loop.replace('/', ':').replace('#', '~')}"


def limit_of(draft: Draft, loop: Loop) -> int:
    """Returns the most iterations of a loop, at the largest buckets."""
    name = steps_dim(loop.name)
    if name in draft.dims:
        return draft.dims[name].buckets[-1]
    edges = [edge for edge in draft.graph.edges if edge.target.name == loop.name]
    sliced = [draft.sources[edge] for edge in edges if edge.target.kind == "enter"]
    names = [edge.target_port for edge in edges if edge.target.kind == "enter"]
    for port, spec in zip(names, sliced, strict=True):
        if port in loop.each and isinstance(spec, TensorSpec):
            most = size_of(spec.dims[0], draft.largest)
            return most if loop.max_steps is None else min(most, loop.max_steps)
    return loop.max_steps or 0


def entered(
    loop: Loop, given: Mapping[str, PortSpec], ports: Mapping[str, Edge], dims: Mapping[str, DimPlan]
) -> tuple[dict[str, PortSpec], AnyDim, DimPlan | None]:
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


def _count(loop: Loop, length: AnyDim | None, dims: Mapping[str, DimPlan]) -> tuple[AnyDim, DimPlan | None]:
    largest = {name: dim.buckets[-1] for name, dim in dims.items()}
    bounds = [] if length is None else [size_of(length, largest)]
    bounds += [] if loop.max_steps is None else [loop.max_steps]
    if not loop.until and (length is None or isinstance(length, int)):
        return min(bounds), None
    if not loop.until and length is not None and loop.max_steps is None:
        return length, None
    name = steps_dim(loop.name)
    return name, DimPlan(name, (max(1, min(bounds)),), born=f"{loop.name}.steps", padded=True)


def left(
    loop: Loop,
    given: Mapping[str, PortSpec],
    ports: Mapping[str, Edge],
    heads: Mapping[str, PortSpec],
    count: AnyDim,
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
    for port in loop.carry:
        _check_carry(loop, port, given[following(port)], ports[following(port)], heads[port], dims)
    if loop.until:
        _check_until(loop, given[ending(loop.until)], ports[ending(loop.until)])
    made: dict[str, PortSpec] = dict(heads)
    for name in loop.collect:
        spec = given[collected(name)]
        if isinstance(spec, TensorSpec):
            made[collected(name)] = TensorSpec((count, *spec.dims), spec.dtype)
        else:
            made[collected(name)] = list
    return made


def _check_carry(
    loop: Loop, port: str, given: PortSpec, edge: Edge, head: PortSpec, dims: Mapping[str, DimPlan]
) -> None:
    if _same(given, head, dims):
        return
    raise PlanError(
        f"A carry keeps its shape and dtype, but {port!r} of loop {loop.name!r} starts as {show_spec(head)} and "
        f"{edge.origin!r} gives {show_spec(given)} for the next iteration. Give state that grows a fixed size and a "
        f"position, or convert it in a stage of the body.",
        loop=loop.name,
        port=port,
        start=head,
        next=given,
    )


def _same(one: PortSpec, other: PortSpec, dims: Mapping[str, DimPlan]) -> bool:
    if not isinstance(one, TensorSpec) or not isinstance(other, TensorSpec):
        return one is other
    if one.dtype != other.dtype or len(one.dims) != len(other.dims):
        return False
    names = dict.fromkeys((*one.names, *other.names))
    buckets = {name: dims[name].buckets for name in names}
    return all(one.shape(sizes) == other.shape(sizes) for sizes in combinations(names, buckets))


def _check_until(loop: Loop, spec: PortSpec, edge: Edge) -> None:
    if spec is bool:
        return
    if isinstance(spec, TensorSpec) and spec.dtype is torch.bool and all(dim == 1 for dim in spec.dims):
        return
    raise PlanError(
        f"until of loop {loop.name!r} is one boolean, but {edge.origin!r} gives {show_spec(spec)}. Reduce it in a "
        f"stage of the body, e.g. finished.all().",
        loop=loop.name,
        port=loop.until,
        spec=spec,
    )
