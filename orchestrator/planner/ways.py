"""Ways: the adapters that bring a producer's value to one consumer, in order.

What makes a value smaller comes before a move and what makes it larger after it, where the device computes eagerly;
elsewhere both happen on the host, or, on the way from a device to itself, in a program. Consumers in one memory share
one move: if they want different cuts, the whole value moves once and is cut there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from orchestrator.adapter import Adapter
from orchestrator.errors import PlanError
from orchestrator.graph import Edge, NodeKey
from orchestrator.plan.model import HOST, Residency
from orchestrator.planner.draft import Draft
from orchestrator.planner.held import is_gathered
from orchestrator.planner.homes import End, Homes
from orchestrator.planner.regions import Region, leaving
from orchestrator.specs import Derived, Pad, PortSpec, TensorSpec, plain_dims

__all__ = ["Ways"]


@dataclass(frozen=True)
class _Parts:
    shrinks: tuple[Adapter, ...]
    moves: tuple[Adapter, ...]
    grows: tuple[Adapter, ...]


class Ways:
    """Finds the way of every edge.

    Args:
        draft: The plan so far, with residencies.
        regions: Call, or entry of a loop, to region.
    """

    def __init__(self, draft: Draft, regions: dict[NodeKey, Region]) -> None:
        self.draft = draft
        self.homes = Homes(draft)
        self.regions = regions
        self._items = {
            name
            for loop in draft.graph.loops.values()
            for _, spec in loop.over
            for name in TensorSpec(spec.dims[1:]).names
        }
        self._ways: dict[Edge, tuple[Adapter, ...]] = {}
        self._parts = {edge: self._split(edge) for edge in draft.graph.edges}
        self._cuts: dict[tuple[object, ...], set[tuple[Adapter, ...]]] = {}
        for edge, parts in self._parts.items():
            if parts.moves:
                self._cuts.setdefault(self._journey(edge), set()).add(parts.shrinks)

    def way(self, edge: Edge) -> tuple[Adapter, ...]:
        """Returns the adapters of an edge, in order."""
        if edge not in self._ways:
            self._ways[edge] = self._join(edge)
        return self._ways[edge]

    def _join(self, edge: Edge) -> tuple[Adapter, ...]:
        parts = self._parts[edge]
        none: tuple[Adapter, ...] = ()
        if not parts.moves:
            return self._placed(edge, (*parts.shrinks, *parts.grows))
        first, rest = parts.moves[:1], parts.moves[1:]
        grows_after = self._grows_after(edge)
        shared = len(self._cuts[self._journey(edge)]) > 1
        if first[0].kind == "gather" or self._is_compiled(self.source(edge)) or (shared and grows_after):
            before, after = none, parts.shrinks
        else:
            before, after = parts.shrinks, none
        if grows_after:
            return (*before, *first, *after, *rest, *parts.grows)
        if rest:
            return (*before, *first, *after, *parts.grows, *rest)
        return (*before, *after, *parts.grows, *first)

    def _placed(self, edge: Edge, adapters: tuple[Adapter, ...]) -> tuple[Adapter, ...]:
        """Says where adapters between two stages of a device without eager compute are compiled in."""
        if edge not in self.draft.folds:
            return adapters
        place = self.draft.folds[edge].place
        if place != "program":
            return tuple(replace(adapter, place=place) for adapter in adapters)
        *others, last = adapters
        return (*(replace(adapter, place="consumer") for adapter in others), replace(last, place="program"))

    def _is_compiled(self, end: End) -> bool:
        return end.memory != HOST and self.draft.compiled(end.device)

    def source(self, edge: Edge) -> End:
        """Returns the producing end."""
        if edge.source.kind != "call":
            return self.homes.source(edge)
        return self.produced(edge.source.name, self.draft.sources[edge])

    def produced(self, call: str, spec: PortSpec) -> End:
        """Returns the end at which a call gives an output."""
        end = self.homes.call(call)
        births = isinstance(spec, TensorSpec) and self._births(call, spec)
        return End(end.device, end.memory, True) if births else end

    def target(self, edge: Edge) -> End:
        """Returns the consuming end."""
        return self.homes.target(edge)

    def leaves(self, edge: Edge) -> tuple[str, ...]:
        """Returns the region dims that an edge's value carries out of its region."""
        return leaving(self.draft, edge, self.regions)

    def bucketed(self, spec: TensorSpec) -> bool:
        """Tells whether named dims of a value are compiled for buckets."""
        return any(not self.draft.dims[name].any for name in spec.names)

    def _births(self, call: str, spec: TensorSpec) -> bool:
        own = [name for name in spec.names if self.draft.dims[name].born.split(".")[0] == call]
        others = [name for name in spec.names if name not in own and not self.draft.dims[name].any]
        if own and others and not self.draft.graph.calls[call].stage.host:
            raise PlanError(
                f"An output of {call!r} has the born dim {own[0]!r} and the bucketed dim {others[0]!r}: one is at its "
                f"own size and the other padded. Let a host stage (device='host') decide {own[0]!r}.",
                call=call,
            )
        return bool(own)

    def _journey(self, edge: Edge) -> tuple[object, ...]:
        return (edge.source, edge.source_port, self.target(edge).memory, self._is_forced(edge))

    def _is_forced(self, edge: Edge) -> bool:
        same = self.source(edge).memory == self.target(edge).memory != HOST
        return same and self.draft.residencies[edge][0] is Residency.HOST

    def _grows_after(self, edge: Edge) -> bool:
        target = self.target(edge)
        return target.memory == HOST or self.draft.groups[target.device].capabilities.eager

    def _moves(self, edge: Edge) -> tuple[Adapter, ...]:
        source, target = self.source(edge), self.target(edge)
        down, up = Adapter("download", device=HOST), Adapter("upload", device=target.device)
        if is_gathered(self.draft, edge):
            gather = self.draft.forms[edge].fits[0]
            return (gather,) if target.memory == HOST else (gather, up)
        if source.memory == target.memory:
            return (down, up) if self._is_forced(edge) else ()
        if source.memory == HOST:
            return (up,)
        if target.memory == HOST:
            return (down,)
        if self.draft.residencies[edge][0] is Residency.DEVICE:
            return (Adapter("copy", device=target.device),)
        return (down, up)

    def _split(self, edge: Edge) -> _Parts:
        given, form = self.draft.sources[edge], self.draft.forms[edge]
        if not isinstance(given, TensorSpec) or not isinstance(form.spec, TensorSpec):
            return _Parts((), (), ())
        if is_gathered(self.draft, edge):
            given = form.fits[0].result(given)
        source, target = self.source(edge), self.target(edge)
        shrinks: list[Adapter] = []
        grows: list[Adapter] = []
        leaves = bool(self.leaves(edge))
        if not source.real and (target.real or leaves) and self.bucketed(given):
            self._check_cut(edge, given)
            shrinks.append(Adapter("cut", plain_dims(given.dims)))
        for fit in form.fits:
            if fit.kind == "gather":
                continue
            narrow = (
                fit.kind == "cast" and fit.dtype is not None and fit.dtype.itemsize <= given.dtype.itemsize
            )
            # What shrinks after something has grown (a port inside an inlined pipeline) stays after it.
            (shrinks if (fit.kind == "slice" or narrow) and not grows else grows).append(fit)
        settled = edge.source.kind == "constant"  # its sizes are those of buckets already
        if not target.real and (source.real or leaves) and self.bucketed(form.spec) and not settled:
            rule = form.rule
            if rule is None and (leaves or self._is_of_loop(edge)):
                rule = self._promise(form.spec)
            if grows and grows[-1].kind == "pad" and grows[-1].rule == rule:
                grows.pop()
            grows.append(Adapter("pad", plain_dims(form.spec.dims), rule, to_bucket=True))
        return _Parts(tuple(shrinks), self._moves(edge), tuple(grows))

    def _is_of_loop(self, edge: Edge) -> bool:
        """Tells whether a value is a carry or what a loop joined: at its own size it is if the planner keeps it so."""
        if edge.source.kind not in ("enter", "leave"):
            return False
        loop = self.draft.graph.loops[edge.source.name]
        return edge.source.kind == "leave" or edge.source_port in loop.carry

    def _promise(self, spec: TensorSpec) -> Pad:
        """The rule that a named dim was declared with: it holds for what the planner cuts and has to grow again."""
        rules = [rule for name in spec.names for rule in self._rules(name)]
        return rules[0] if rules and None not in rules else None

    def _rules(self, name: str) -> list[Pad]:
        graph = self.draft.graph
        call, _, port = self.draft.dims[name].born.rpartition(".")
        if call in graph.calls:
            specs = [item.spec for item in graph.calls[call].stage.outputs if item.name == port]
        else:
            specs = [spec for spec in graph.inputs.values() if name in getattr(spec, "names", ())]
        return [spec.pad for spec in specs if isinstance(spec, TensorSpec)]

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
        dim = self.draft.dims[name]
        if dim.any or name in self._items:
            return False
        return bool(dim.born) or all(
            isinstance(spec, TensorSpec) and spec.pad is not None
            for spec in self.draft.graph.inputs.values()
            if isinstance(spec, TensorSpec) and name in spec.names
        )
