"""Fuse: where adapters go between two stages of a device without eager compute.

Four places are possible: compiled into the producer, compiled into the consumer, a weightless program of its own, or
the host. They are compared by estimated time: bytes through a core's memory, bytes over the link (down from one rank,
up to all), and program starts. All edges that want the same of one value are decided together, since they share it.

With *b* bytes of the value and *a* of the adapted one, *n* consumers (one in a loop counts once for each iteration),
and *r* runs of the producer for a request:

    producer    memory: r a, and r b if somebody else reads the value as it is; n a
    consumer    memory: r b, and n (b + 2 a)
    program     memory: r b, b + a, n a; one program start
    host        memory: r b, n a; link: b + ranks x a
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from orchestrator.adapter import Adapter, Place
from orchestrator.backend import CompilingBackend
from orchestrator.errors import PlanError, nearest
from orchestrator.graph import Edge
from orchestrator.planner.context import Fusion, PlanContext
from orchestrator.planner.infer.bodies import limit_of
from orchestrator.planner.infer.representation import is_gathered
from orchestrator.planner.schedule.regions import leaving
from orchestrator.specs import TensorSpec
from orchestrator.stage import Stage

__all__ = ["fuse"]

_PLACES: tuple[Place, ...] = ("producer", "consumer", "program")


@dataclass(frozen=True)
class _Group:
    """Edges that want the same of one value.

    Attributes:
        edges: The edges.
        alone: Nobody else reads the value.
        runs: Calls of the producer's stage in a request.
        reads: How often a consumer reads one value of the producer: above 1 where it enters a loop.
    """

    edges: tuple[Edge, ...]
    alone: bool
    runs: int
    reads: int = 1


def fuse(context: PlanContext) -> PlanContext:
    """Chooses where the adapters of each such edge go.

    Raises:
        PlanError: A place is forced that is not possible, or for an edge that has no adapters.
    """
    groups = _groups(context)
    fusions: dict[Edge, Fusion] = {}
    notes: list[str] = []
    _check_place_options(context, [edge for group in groups for edge in group.edges])
    for group in groups:
        for edge in group.edges:
            fusions[edge] = _choose(context, group, edge, notes)
    return replace(context, fusions=fusions).with_notes(*notes)


def _groups(context: PlanContext) -> list[_Group]:
    # A place is chosen once for all edges of a group, as they share the adapted value. An option for one edge sets it
    # apart.
    members: dict[Any, list[Edge]] = {}
    readers: dict[Any, int] = {}
    for edge in context.graph.edges:
        root = (edge.source, edge.source_port)
        readers[root] = readers.get(root, 0) + 1
        if _stays_with_adapters(context, edge):
            members.setdefault(
                (root, context.consumer_specs[edge].conversions, _place_option(context, edge)), []
            ).append(edge)
    return [
        _Group(
            tuple(edges),
            len(edges) == readers[root],
            _runs(context, edges[0].source.name),
            max(_reads(context, edge) for edge in edges),
        )
        for (root, _, _), edges in members.items()
    ]


def _stays_with_adapters(context: PlanContext, edge: Edge) -> bool:
    """Tells whether an edge could stay on a device that compiles, if its adapters were compiled too."""
    ends = (edge.source, edge.target)
    if (
        not context.consumer_specs[edge].conversions
        or is_gathered(context, edge)
        or any(node.kind != "call" for node in ends)
    ):
        return False
    devices = {context.device_of(node.name) for node in ends}
    if len(devices) > 1 or not context.is_compiled(devices.pop()):
        return False
    return not leaving(context, edge)


def _runs(context: PlanContext, call: str) -> int:
    stage = context.graph.calls[call].stage
    return sum(other.stage is stage for other in context.graph.calls.values())


def _reads(context: PlanContext, edge: Edge) -> int:
    """Iterations of the loops between an edge's producer and its consumer."""
    graph, times = context.graph, 1
    around = graph.scope(edge.target)
    while around != graph.scope(edge.source):
        times *= max(1, limit_of(context, graph.loops[around]))
        around = graph.loops[around].within
    return times


def _costs(context: PlanContext, group: _Group) -> dict[str, float]:
    """Estimated seconds of each place."""
    # All edges of a group have equal specs and conversions, so the first stands for all. Terms follow the table of the
    # module's docstring.
    edge = group.edges[0]
    source, target = context.producer_specs[edge], context.consumer_specs[edge].spec
    assert isinstance(source, TensorSpec)
    assert isinstance(target, TensorSpec)
    before, after = source.nbytes(context.largest), target.nbytes(context.largest)
    capabilities = context.groups[context.device_of(edge.source.name)].capabilities
    link, runs, count = capabilities.link, group.runs, len(group.edges) * group.reads
    raw = runs * before
    return {
        "producer": link.memory_seconds(runs * after + (0 if group.alone else raw) + count * after),
        "consumer": link.memory_seconds(raw + count * (before + 2 * after)),
        "program": link.memory_seconds(raw + before + after + count * after) + link.dispatch_seconds,
        "host": link.memory_seconds(raw + count * after) + link.seconds(before + capabilities.ranks * after),
    }


def _choose(context: PlanContext, group: _Group, edge: Edge, notes: list[str]) -> Fusion:
    costs = _costs(context, group)
    # Cost decides among the places that no stage forbids; the host is always possible and is compared apart, since it
    # is no place on the device.
    able = [place for place in _PLACES if _obstacle(context, group, place) is None]
    best = min(able, key=lambda place: costs[place])
    option = _place_option(context, edge)
    if option in _PLACES:
        stage = _obstacle(context, group, option)
        if stage is not None:
            raise PlanError(
                f"The adapters of '{edge}' cannot be folded into the {option}: stage {stage.name!r} is compiled as its "
                f"author made it. Choose another place: options={{'adapters': {{'{edge}': 'program'}}}}.",
                edge=str(edge),
                stage=stage.name,
            )
        best = option
    over_host = option == "host" or (option == "cost" and costs["host"] < costs[best])
    # A program by option may be a bad choice that its author does not see, so the plan says what it costs.
    if option == "program" and costs["host"] < costs["program"]:
        notes.append(
            f"'{edge}': a program of its own for the adapters takes {_us(costs['program'])} (estimate), "
            f"over the host it would be {_us(costs['host'])}."
        )
    return Fusion(
        best,
        over_host,
        _reason(edge, context.consumer_specs[edge].conversions, best, over_host, option, costs, able),
    )


def _reason(
    edge: Edge,
    conversions: tuple[Adapter, ...],
    best: Place,
    over_host: bool,
    option: str,
    costs: dict[str, float],
    able: list[Place],
) -> str:
    are = "is" if len(conversions) == 1 else "are"
    where = {
        "producer": f"{are} compiled into {edge.source.name!r}",
        "consumer": f"{are} compiled into {edge.target.name!r}",
        "program": f"{are} a program of its own",
        "host": f"{are} done on the host",
    }
    # Rejected places are listed with their costs, so that the choice can be followed without the planner.
    choice = "host" if over_host else best
    what = " and ".join(conversion.kind for conversion in conversions)
    others = [f"{place} {_us(costs[place])}" for place in (*able, "host") if place != choice]
    suffix = ", as asked" if option != "cost" else ""
    return f"the {what} {where[choice]}{suffix}: {_us(costs[choice])} (estimate), against {', '.join(others)}"


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.3g} us"


def _obstacle(context: PlanContext, group: _Group, place: str) -> Stage | None:
    """The stage that stands in the way of a place; None: it is possible."""
    edge = group.edges[0]
    backend = context.groups[context.device_of(edge.source.name)]
    ends = {
        "producer": [edge.source.name],
        "consumer": [edge.target.name for edge in group.edges],
    }.get(place, [])
    stages = [context.graph.calls[name].stage for name in ends]
    return next((stage for stage in stages if not _foldable(backend, stage)), None)


def _foldable(backend: object, stage: Stage) -> bool:
    return not isinstance(backend, CompilingBackend) or backend.foldable(stage)


def _place_option(context: PlanContext, edge: Edge) -> str:
    """The place that the option ``adapters`` gives for an edge, or ``cost``."""
    option = context.groups[context.device_of(edge.source.name)].options.get("adapters", "cost")
    return str(option) if isinstance(option, str) else str(dict(option).get(str(edge), "cost"))


def _check_place_options(context: PlanContext, edges: list[Edge]) -> None:
    names, able = {str(edge) for edge in context.graph.edges}, {str(edge) for edge in edges}
    for backend in context.groups.values():
        option = backend.options.get("adapters", ())
        # An option for an edge without adapters would silently do nothing, so it is refused as a name that does not
        # exist is.
        for name in () if isinstance(option, str) else dict(option):
            if name not in names:
                raise PlanError(
                    f"The option 'adapters' names the edge {name!r}, which does not exist.{nearest(name, names)}",
                    edge=name,
                )
            if name not in able:
                raise PlanError(
                    f"The option 'adapters' names the edge {name!r}, which has no adapters between two stages on "
                    f"{backend.device}; leave it out.",
                    edge=name,
                )
