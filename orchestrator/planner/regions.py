"""Regions: the calls in which born dims live, grouped so that each group can run as a whole.

The *label* of a device call is the set of born dims it reads; of any other call the empty set. The *level* of a
call counts how often the label changes on the longest way to it. Calls of one label and level form a region. A way
between two of them that left the region would raise the level, so a region is convex; and every edge between two
regions leads to a higher level, so joining the calls of each region leaves the graph acyclic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.graph import Edge, NodeKey
from orchestrator.planner.draft import Draft
from orchestrator.specs import TensorSpec

__all__ = ["Region", "find_regions", "leaving"]


@dataclass(frozen=True)
class Region:
    """A region: its born dims, in the order of the graph's dims, and its level."""

    dims: tuple[str, ...]
    level: int


def find_regions(draft: Draft) -> dict[str, Region]:
    """Returns the region of each call that is in one."""
    born = [name for name, dim in draft.dims.items() if dim.born and not dim.any]
    if not born:
        return {}
    labels: dict[str, tuple[str, ...]] = {}
    levels: dict[str, int] = {}
    for name in draft.graph.order:
        labels[name] = _label(draft, name, born)
        before = [
            edge.source.name for edge in draft.graph.into(NodeKey("call", name)) if edge.source.kind == "call"
        ]
        levels[name] = max((levels[other] + (labels[other] != labels[name]) for other in before), default=0)
    return {name: Region(label, levels[name]) for name, label in labels.items() if label}


def leaving(draft: Draft, edge: Edge, regions: Mapping[str, Region]) -> tuple[str, ...]:
    """Returns the region dims that an edge's value carries out of its region."""
    spec = draft.sources[edge]
    region = regions.get(edge.source.name) if edge.source.kind == "call" else None
    inside = edge.target.kind == "call" and regions.get(edge.target.name) == region
    if region is None or inside or not isinstance(spec, TensorSpec):
        return ()
    return tuple(name for name in spec.names if name in region.dims)


def _label(draft: Draft, name: str, born: list[str]) -> tuple[str, ...]:
    if draft.graph.calls[name].stage.host:
        return ()
    read = {
        dim
        for edge in draft.graph.into(NodeKey("call", name))
        if isinstance(spec := draft.forms[edge].spec, TensorSpec)
        for dim in spec.names
    }
    return tuple(dim for dim in born if dim in read)
