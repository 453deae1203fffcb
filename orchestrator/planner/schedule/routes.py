"""Routes: the adapters that bring a producer's value to one consumer, in order.

What makes a value smaller comes before a move and what makes it larger after it, where the device computes eagerly at
any size; elsewhere both happen on the host, or, on the way from a device to itself, in a program. So no size that is
the request's own comes to a device which compiles each new one. Consumers in one memory share
one move: if they want different cuts, the whole value moves once and is cut there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from orchestrator.adapter import Adapter
from orchestrator.errors import PlanError
from orchestrator.graph import Edge
from orchestrator.plan.records import Residency
from orchestrator.plan.steps import HOST
from orchestrator.planner.context import Location, PlanContext
from orchestrator.planner.infer.representation import is_gathered
from orchestrator.planner.infer.trials import padded_names
from orchestrator.planner.schedule.locations import call_location
from orchestrator.planner.schedule.regions import leaving
from orchestrator.specs import Derived, Pad, PortSpec, TensorSpec, plain_dim, plain_dims

__all__ = ["EdgeRoutes"]


@dataclass(frozen=True)
class _RouteParts:
    shrinks: tuple[Adapter, ...]
    moves: tuple[Adapter, ...]
    grows: tuple[Adapter, ...]


class EdgeRoutes:
    """Finds the route of every edge.

    Args:
        context: The plan so far, with residencies.
    """

    def __init__(self, context: PlanContext) -> None:
        self.context = context
        self._padded_dims = padded_names(context.graph, context.dims) - self._bound()
        self._items = {
            str(plain_dim(spec.dims[0])) for loop in context.graph.loops.values() for _, spec in loop.over
        }
        self._routes: dict[Edge, tuple[Adapter, ...]] = {}
        self._parts = {edge: self._split(edge) for edge in context.graph.edges}
        self._cuts: dict[tuple[object, ...], set[tuple[Adapter, ...]]] = {}
        for edge, parts in self._parts.items():
            if parts.moves:
                self._cuts.setdefault(self._transfer_key(edge), set()).add(parts.shrinks)

    def _bound(self) -> set[str]:
        """Dims that stay at their buckets whatever other rules say: an input brings them to a stage without a rule."""
        consumer_specs = {
            edge: self.context.consumer_specs[edge]
            for edge in self.context.graph.edges
            if edge.source.kind == "input"
        }
        return {
            name
            for edge, edge_spec in consumer_specs.items()
            if edge_spec.rule is None
            and not self.target(edge).unpadded
            and isinstance(edge_spec.spec, TensorSpec)
            for name in edge_spec.spec.names
        }

    def route(self, edge: Edge) -> tuple[Adapter, ...]:
        """Returns the adapters of an edge, in order."""
        if edge not in self._routes:
            self._routes[edge] = self._join(edge)
        return self._routes[edge]

    def _join(self, edge: Edge) -> tuple[Adapter, ...]:
        parts = self._parts[edge]
        none: tuple[Adapter, ...] = ()
        if not parts.moves:
            return self._with_places(edge, (*parts.shrinks, *parts.grows))
        first, rest = parts.moves[:1], parts.moves[1:]
        grows_after = self._grows_after(edge)
        many_cuts = len(self._cuts[self._transfer_key(edge)]) > 1
        # Where to shrink: before the move less is moved. But a device that compiles would do so for each new size, a
        # gather needs all parts, and consumers who share a move and want several cuts need the whole value there.
        if (
            first[0].kind == "gather"
            or not self._takes_any_size(self.source(edge))
            or (many_cuts and grows_after)
        ):
            before, after = none, parts.shrinks
        else:
            before, after = parts.shrinks, none
        # Where to grow: on the target if it computes by itself; else on the host, before the last move.
        if grows_after:
            return (*before, *first, *after, *rest, *parts.grows)
        if rest:
            return (*before, *first, *after, *parts.grows, *rest)
        return (*before, *after, *parts.grows, *first)

    def _with_places(self, edge: Edge, adapters: tuple[Adapter, ...]) -> tuple[Adapter, ...]:
        """Says where adapters between two stages of a device without eager compute are compiled in."""
        if edge not in self.context.fusions:
            return adapters
        place = self.context.fusions[edge].place
        if place != "program":
            return tuple(replace(adapter, place=place) for adapter in adapters)
        *others, last = adapters
        return (*(replace(adapter, place="consumer") for adapter in others), replace(last, place="program"))

    def _takes_any_size(self, end: Location) -> bool:
        if end.memory == HOST:
            return True
        capabilities = self.context.groups[end.device].capabilities
        return capabilities.eager and not capabilities.static_shapes

    def source(self, edge: Edge) -> Location:
        """Returns the producing end."""
        if edge.source.kind != "call":
            return self.context.locations[edge].source
        return self.output_location(edge.source.name, self.context.producer_specs[edge])

    def output_location(self, call: str, spec: PortSpec) -> Location:
        """Returns the end at which a call gives an output."""
        end = call_location(self.context, call)
        births = isinstance(spec, TensorSpec) and self._births(call, spec)
        return Location(end.device, end.memory, True) if births else end

    def target(self, edge: Edge) -> Location:
        """Returns the consuming end."""
        return self.context.locations[edge].target

    def leaves(self, edge: Edge) -> tuple[str, ...]:
        """Returns the region dims that an edge's value carries out of its region."""
        return leaving(self.context, edge)

    def has_buckets(self, spec: TensorSpec) -> bool:
        """Tells whether named dims of a value are compiled for buckets."""
        return any(not self.context.dims[name].any for name in spec.names)

    def _births(self, call: str, spec: TensorSpec) -> bool:
        own = [name for name in spec.names if self.context.dims[name].decided_by.split(".")[0] == call]
        others = [name for name in spec.names if name not in own and not self.context.dims[name].any]
        if own and others and not self.context.graph.calls[call].stage.host:
            raise PlanError(
                f"An output of {call!r} has the born dim {own[0]!r} and the bucketed dim {others[0]!r}: one is at its "
                f"own size and the other padded. Let a host stage (device='host') decide {own[0]!r}.",
                call=call,
            )
        return bool(own)

    def _transfer_key(self, edge: Edge) -> tuple[object, ...]:
        return (edge.source, edge.source_port, self.target(edge).memory, self._is_forced(edge))

    def _is_forced(self, edge: Edge) -> bool:
        same = self.source(edge).memory == self.target(edge).memory != HOST
        return same and self.context.residencies[edge][0] is Residency.HOST

    def _grows_after(self, edge: Edge) -> bool:
        return self._takes_any_size(self.target(edge))

    def _moves(self, edge: Edge) -> tuple[Adapter, ...]:
        source, target = self.source(edge), self.target(edge)
        down, up = Adapter("download", device=HOST), Adapter("upload", device=target.device)
        # Parts on ranks leave a device only by a gather, which brings them to the host.
        if is_gathered(self.context, edge):
            gather = self.context.consumer_specs[edge].conversions[0]
            return (gather,) if target.memory == HOST else (gather, up)
        if source.memory == target.memory:
            return (down, up) if self._is_forced(edge) else ()
        # Between two memories: the host has a link to each device; two devices copy where the residency says so, and
        # else go over the host.
        if source.memory == HOST:
            return (up,)
        if target.memory == HOST:
            return (down,)
        if self.context.residencies[edge][0] is Residency.DEVICE:
            return (Adapter("copy", device=target.device),)
        return (down, up)

    def _split(self, edge: Edge) -> _RouteParts:
        source_spec, edge_spec = self.context.producer_specs[edge], self.context.consumer_specs[edge]
        if not isinstance(source_spec, TensorSpec) or not isinstance(edge_spec.spec, TensorSpec):
            return _RouteParts((), (), ())
        if is_gathered(self.context, edge):
            source_spec = edge_spec.conversions[0].result(source_spec)
        source, target = self.source(edge), self.target(edge)
        # First the cut from a bucket to the value's own size: it needs no room, and what follows has less to do.
        shrinks: list[Adapter] = []
        grows: list[Adapter] = []
        leaves = bool(self.leaves(edge))
        if not source.unpadded and (target.unpadded or leaves) and self.has_buckets(source_spec):
            self._check_cut(edge, source_spec)
            shrinks.append(Adapter("cut", plain_dims(source_spec.dims)))
        for conversion in edge_spec.conversions:
            if conversion.kind == "gather":
                continue
            narrow = (
                conversion.kind == "cast"
                and conversion.dtype is not None
                and conversion.dtype.itemsize <= source_spec.dtype.itemsize
            )
            # What shrinks after something has grown (a port inside an inlined pipeline) stays after it.
            (shrinks if (conversion.kind == "slice" or narrow) and not grows else grows).append(conversion)
        # Last the pad from its own size to a bucket: a pad before it with the same rule would be done twice.
        at_bucket = edge.source.kind == "constant"  # its sizes are those of buckets already
        if (
            not target.unpadded
            and (source.unpadded or leaves)
            and self.has_buckets(edge_spec.spec)
            and not at_bucket
        ):
            rule = self._fill(edge, edge_spec.spec) if leaves or self._is_of_loop(edge) else edge_spec.rule
            if grows and grows[-1].kind == "pad" and grows[-1].rule == rule:
                grows.pop()
            grows.append(Adapter("pad", plain_dims(edge_spec.spec.dims), rule, to_bucket=True))
        return _RouteParts(tuple(shrinks), self._moves(edge), tuple(grows))

    def _is_of_loop(self, edge: Edge) -> bool:
        """Tells whether a value is a carry or what a loop joined: at its own size it is if the planner keeps it so."""
        if edge.source.kind not in ("enter", "exit"):
            return False
        loop = self.context.graph.loops[edge.source.name]
        return edge.source.kind == "exit" or edge.source_port in loop.carry

    def _fill(self, edge: Edge, spec: TensorSpec) -> Pad:
        """What fills a value that the planner cut to its own size and has to grow again.

        A pad rule was promised for the numbers of one port. So it is the port's own that counts. Without one, along
        batches any item may stand there, and the first one does. The rule that the dim came with is good for other
        floating-point values too while padding stays apart from the rest: it is no index, flag or count, and no stage
        reduces it away.

        Raises:
            PlanError: Nobody promised anything.
        """
        # From the nearest promise to the farthest: the port's own rule, batches, then the rule that the dim came with.
        rule = self.context.consumer_specs[edge].rule
        names = [name for name in spec.names if not self.context.dims[name].any]
        if rule is not None:
            return rule
        padded_dim = next((name for name in names if name in self._padded_dims), None)
        if padded_dim is None:
            return None  # it is at its buckets already, and whatever is not is refused when it comes
        if all(self.context.dims[name].batch or name in self._items for name in names):
            return "repeat_first"
        rules = [rule for name in names for rule in self._rules(name)]
        lasts = spec.dtype.is_floating_point and not any(self._is_lost(edge, name, set()) for name in names)
        if lasts and rules and None not in rules and _is_finite(rules[0]):
            return rules[0]
        raise PlanError(
            f"{edge.origin!r} is {spec} at its own size and has to grow to a bucket again for {edge.destination!r}, "
            f"but no pad rule speaks of its numbers: that of the input with {padded_dim!r} was given for other ones. "
            f"Declare the port with a pad rule (inputs={{...: TensorSpec(..., pad=0)}}), or {padded_dim!r} as "
            f"Dim({padded_dim!r}, ..., batch=True) if items along it are independent.",
            edge=str(edge),
            spec=spec,
            dim=padded_dim,
        )

    def _rules(self, name: str) -> list[Pad]:
        """The pad rules that a dim came with: of the stage that decides it, of a map's items, or of inputs."""
        graph = self.context.graph
        node, _, port = self.context.dims[name].decided_by.rpartition(".")
        if node in graph.calls:
            specs = [item.spec for item in graph.calls[node].stage.outputs if item.name == port]
        elif node in graph.loops:
            specs = [spec for _, spec in graph.loops[node].over if name in spec.names]
        else:
            specs = [spec for spec in graph.inputs.values() if name in getattr(spec, "names", ())]
        return [spec.pad for spec in specs if isinstance(spec, TensorSpec)]

    def _is_lost(self, edge: Edge, name: str, path: set[Edge]) -> bool:
        """Tells whether padding along a dim reaches a stage that gives something without the dim."""
        if edge in path or name not in getattr(self.context.producer_specs[edge], "names", ()):
            return False
        path.add(edge)
        if edge.target.kind == "output" or self.target(edge).device == HOST:
            return False
        following = self.context.graph.out_of(edge.target)
        if edge.target.kind == "call":
            specs = [self.context.producer_specs[after] for after in following]
            if any(name not in getattr(spec, "names", ()) for spec in specs):
                return True
        return any(self._is_lost(after, name, path) for after in following)

    def _check_cut(self, edge: Edge, spec: TensorSpec) -> None:
        for dim in spec.dims:
            if isinstance(dim, Derived) and any(self._is_padded(name) for name in dim.names):
                raise PlanError(
                    f"{edge.origin!r} is {spec} and must be cut back for {edge.destination!r}, but {dim.text!r} is a "
                    f"derived size: which of its elements are padding is not known. Bring the dim to the size of "
                    f"{dim.names[0]!r} in a stage, or use no pad rule for {dim.names[0]!r}.",
                    edge=str(edge),
                    spec=spec,
                )

    def _is_padded(self, name: str) -> bool:
        """Tells whether a value may hold padding along a dim."""
        return name in self._padded_dims


def _is_finite(rule: Pad) -> bool:
    return isinstance(rule, str) or (rule is not None and math.isfinite(rule))
