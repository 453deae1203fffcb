"""Residency: device or host for every edge, with the reason in a sentence.

What is possible comes first: a value to or from the host is on the host, and within one device group it stays on
the device, unless its ranks hold parts, or chunks of it are to be joined where nothing computes eagerly, or its buffer
would be overwritten before it is read. Then cost: adapters that are cheaper on the host take the value there. Two
groups of one backend with peer copies hand values over directly. What enters and
leaves a loop has a home of its own. A residency may be forced where both are possible.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from orchestrator.errors import PlanError, PlanOptionError, nearest
from orchestrator.graph import CONDITION, Edge, until_port
from orchestrator.plan.records import Residency
from orchestrator.plan.steps import HOST
from orchestrator.planner.context import PlanContext
from orchestrator.planner.infer.representation import is_gathered
from orchestrator.planner.schedule.regions import leaving

__all__ = ["decide_residency"]


def decide_residency(context: PlanContext) -> PlanContext:
    """Decides where each edge's value lives between its two ends.

    Raises:
        PlanError: A forced residency names no edge, or is impossible.
    """
    overrides = _overrides(context)
    residencies = {edge: _decide(context, edge) for edge in context.graph.edges}
    for edge, wish in overrides.items():
        residencies[edge] = _force(context, edge, wish, *residencies[edge])
    return replace(context, residencies=residencies)


def _overrides(context: PlanContext) -> Mapping[Edge, Residency]:
    edges = {str(edge): edge for edge in context.graph.edges}
    overrides: dict[Edge, Residency] = {}
    for name, wish in context.options.residency.items():
        # Blanks around the arrow do not count, so a name as a plan prints it and one typed by hand are the same.
        parts = [part.strip() for part in str(name).split("->")]
        edge = edges.get(" -> ".join(parts))
        if edge is None:
            raise PlanOptionError(
                f"residency names the edge {name!r}, which does not exist.{nearest(name, edges)}", edge=name
            )
        try:
            overrides[edge] = Residency(wish)
        except ValueError:
            raise PlanOptionError(
                f"The residency of {name!r} is Residency.DEVICE or HOST, not {wish!r}.", edge=name
            ) from None
    return overrides


def _decide(context: PlanContext, edge: Edge) -> tuple[Residency, str]:
    source, target = (end.device for end in context.locations[edge])
    # From what leaves no choice to what is a matter of cost: ends outside of the plan, an end on the host, parts of
    # ranks, one device, two devices.
    if edge.source.kind == "constant":
        where = Residency.HOST if target == HOST else Residency.DEVICE
        return where, "a constant, put in place once, at load"
    if edge.source.kind == "input" and edge.target.kind == "output":
        return Residency.HOST, "an input handed through"
    if edge.source.kind == "input":
        return Residency.HOST, "a request's inputs come from the host"
    if edge.target.kind == "output":
        return Residency.HOST, "results go to the host"
    if HOST in (source, target):
        return Residency.HOST, _on_host(context, edge, source)
    if is_gathered(context, edge):
        return Residency.HOST, f"each rank of {source} holds a part; they are joined on the host"
    if source == target:
        return _within(context, edge, source)
    return _between(context, source, target)


def _on_host(context: PlanContext, edge: Edge, source: str) -> str:
    """Why an edge with an end on the host has it there."""
    node, port = (edge.source, edge.source_port) if source == HOST else (edge.target, edge.target_port)
    # A spill takes the host as the end of its edge, so its reason comes before the reasons of ordinary ends.
    if edge in context.spills:
        return context.spills[edge]
    if node.kind == "call":
        return f"{node.name!r} is a host stage"
    loop = context.graph.loops[node.name]
    if node.kind == "exit" and port == until_port(loop.until):
        return f"what ends {loop.name!r} is read on the host"
    if port in loop.each:
        return f"slices of {port!r} are cut on the host"
    if port in dict(loop.over):
        return f"batches of {port!r} are made on the host"
    if port in loop.inputs:
        return f"{loop.name!r} hands {port!r} on as it is"
    if port == CONDITION:
        return f"the condition of {loop.name!r} is read on the host"
    name = port.partition("[")[0]
    what = "collects" if port in loop.results and port not in loop.carry else "carries"
    return f"{loop.name!r} {what} {name!r} on the host"


def _within(context: PlanContext, edge: Edge, device: str) -> tuple[Residency, str]:
    if edge in context.spills:
        return Residency.HOST, context.spills[edge]
    dims = leaving(context, edge)
    if dims and context.is_compiled(device):
        return Residency.HOST, f"{dims[0]!r} is born in the request; its chunks are joined on the host"
    # Without a fusion an edge has no adapters that could be compiled: either it needs none, or its end is a loop's,
    # where no program takes them.
    fusion = context.fusions.get(edge)
    if fusion is None and context.is_compiled(device) and context.consumer_specs[edge].conversions:
        return Residency.HOST, "a loop's end takes no adapters on the device; they are done on the host"
    if fusion is None:
        if edge.target.kind != "exit":
            return Residency.DEVICE, f"both ends are on {device}"
        collects = edge.target_port in context.graph.loops[edge.target.name].results
        return Residency.DEVICE, f"{'collected' if collects else 'carried'} on {device}"
    where = Residency.HOST if fusion.over_host else Residency.DEVICE
    return where, f"both ends are on {device}; {fusion.reason}"


def _between(context: PlanContext, source: str, target: str) -> tuple[Residency, str]:
    one, other = context.groups[source], context.groups[target]
    peers = type(one) is type(other) and one.capabilities.peer_copy and other.capabilities.peer_copy
    if peers and not one.capabilities.host_memory and not other.capabilities.host_memory:
        return Residency.DEVICE, f"{source} and {target} copy directly"
    if one.capabilities.host_memory or other.capabilities.host_memory:
        cpu = source if one.capabilities.host_memory else target
        return Residency.HOST, f"{cpu} computes in host memory"
    return Residency.HOST, f"there is no direct way from {source} to {target}"


def _force(
    context: PlanContext, edge: Edge, wish: Residency, residency: Residency, reason: str
) -> tuple[Residency, str]:
    if wish is residency:
        return residency, f"{reason} (as asked)"
    # An edge with fusions is on the host by cost alone, so it may stay; any other has a reason that no wish removes.
    if wish is Residency.DEVICE and edge in context.fusions and edge not in context.spills:
        return Residency.DEVICE, f"forced to stay on the device; without that: {reason}"
    if wish is Residency.DEVICE:
        raise PlanError(
            f"The edge '{edge}' cannot stay on the device: {reason}. Leave it out of residency=.",
            edge=str(edge),
            reason=reason,
        )
    if edge.source.kind == "constant":
        raise PlanError(
            f"The edge '{edge}' is a constant, put in place at load; it has no way over the host."
        )
    return Residency.HOST, f"forced to the host; without that: {reason}"
