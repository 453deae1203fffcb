"""Regions: the calls in which data-dependent dims live, grouped so that each group can run as a whole.

The *label* of a device call is the set of data-dependent dims it reads; of any other call the empty set. The *level*
of a call counts how often the label changes on the longest way to it. Calls of one label and level form a region. A
way between two of them that left the region would raise the level, so a region is convex; and every edge between two
regions leads to a higher level, so joining the calls of each region leaves the graph acyclic.

A loop counts as one call that reads what enters its body. No stage in a loop decides a dim, so there is no region in
it; the dims of a map's items are its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from orchestrator.graph import Edge, NodeKey
from orchestrator.plan.records import DimPlan
from orchestrator.planner.context import PlanContext, RegionKey
from orchestrator.planner.infer.bodies import is_of_items
from orchestrator.specs import TensorSpec

__all__ = ["group_regions", "leaving", "runs_once"]


def group_regions(context: PlanContext) -> PlanContext:
    """Says of each call, and of each loop by its entry, in which region it is, if in any."""
    graph = context.graph
    region_dims = [
        name
        for name, dim in context.dims.items()
        if dim.decided_by and not dim.any and not is_of_items(graph, dim)
    ]
    if not region_dims:
        return context
    # What enters each call, or each loop as a whole, from outside of it.
    reads: dict[NodeKey, list[Edge]] = {}
    for edge in graph.edges:
        node, source = graph.ancestor_in(edge.target, ""), graph.ancestor_in(edge.source, "")
        if node is not None and node != source:
            reads.setdefault(node, []).append(edge)
    # In topological order: the level of whatever a node reads is known. It grows exactly where the label changes.
    labels: dict[NodeKey, tuple[str, ...]] = {}
    levels: dict[NodeKey, int] = {}
    for (node,) in graph.ordered_units({}):
        edges = reads.get(node, [])
        labels[node] = _label(context, node, edges, region_dims)
        before = [other for edge in edges if (other := graph.ancestor_in(edge.source, "")) is not None]
        levels[node] = max((levels[other] + (labels[other] != labels[node]) for other in before), default=0)
    regions = {node: RegionKey(label, levels[node]) for node, label in labels.items() if label}
    return replace(context, regions=regions)


def leaving(context: PlanContext, edge: Edge) -> tuple[str, ...]:
    """Returns the region dims that an edge's value carries out of its region, to be joined from chunks there.

    Between two regions that run once it stays as it is: where there are no items, neither of them runs.
    """
    spec = context.producer_specs[edge]
    region, there = (_region(context, node) for node in (edge.source, edge.target))
    if region is None or there == region or not isinstance(spec, TensorSpec):
        return ()
    names = tuple(name for name in spec.names if name in region.dims)
    is_whole = there is not None and set(names) <= set(there.dims)
    return () if is_whole and runs_once(context.dims, region.dims) else names


def runs_once(dims: Mapping[str, DimPlan], names: Iterable[str]) -> bool:
    """Tells whether a region never runs in chunks, as far as that is known.

    Args:
        dims: All dims by name; those of which steps have shown that they run as a whole say why.
        names: Those of the region.
    """
    return not any(dims[name].batch and not dims[name].whole for name in names)


def _region(context: PlanContext, node: NodeKey) -> RegionKey | None:
    around = context.graph.ancestor_in(node, "")
    return None if around is None else context.regions.get(around)


def _label(context: PlanContext, node: NodeKey, edges: list[Edge], region_dims: list[str]) -> tuple[str, ...]:
    if node.kind == "call" and context.graph.calls[node.name].stage.host:
        return ()
    read = {dim for edge in edges for dim in _read(context, edge)}
    return tuple(dim for dim in region_dims if dim in read)


def _read(context: PlanContext, edge: Edge) -> tuple[str, ...]:
    """Names of what an edge's consumer reads; the number of slices or items that enter a loop is no size to it."""
    spec = context.consumer_specs[edge].spec
    if not isinstance(spec, TensorSpec):
        return ()
    if edge.target.kind != "enter":
        return spec.names
    loop = context.graph.loops[edge.target.name]
    cut = edge.target_port in (*loop.each, *(name for name, _ in loop.over))
    return TensorSpec(spec.dims[1:]).names if cut else spec.names
