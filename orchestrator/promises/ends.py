"""Trying loops that end by a value: what an item gets must not hang on how long other items keep the loop going."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from orchestrator.graph import Edge, Graph, Loop, NodeKey, until_port
from orchestrator.plan.model import DimPlan, Plan
from orchestrator.promises.batches import Axes, enlarged
from orchestrator.promises.measure import difference
from orchestrator.promises.report import CheckRow
from orchestrator.promises.targets import Plain, Targets

__all__ = ["Ends", "ends_by_value"]

_Key = tuple[NodeKey, str]
#: What the items of a batch that is made of one are multiplied by, so that they end at different times.
_FACTORS = (1.0, 4.0, 0.25, 16.0)


def ends_by_value(graph: Graph, plan: Plan) -> bool:
    """Tells whether a loop ends by a value, and a batch may be cut."""
    return any(loop.until for loop in graph.loops.values()) and any(map(_is_cut, plan.dims))


class Ends(Plain):
    """A request by hand that runs each loop which ends by a value again on the halves of each batch.

    Args:
        graph: The graph.
        plan: Its plan.
        inputs: The request.
        targets: What runs the stages.
        tolerance: The largest relative difference that counts as equal; None: by dtype.

    Attributes:
        rows: What was found.
    """

    def __init__(
        self, graph: Graph, plan: Plan, inputs: Mapping[str, Any], targets: Targets, tolerance: float | None
    ) -> None:
        super().__init__(graph, plan, inputs, targets)
        self.rows: list[CheckRow] = []
        self._request = graph, plan, inputs, targets
        self._tolerance = tolerance
        self._dims = [dim for dim in plan.dims if _is_cut(dim)]
        self._edges = {str(edge): edge for edge in plan.edges}
        self._tried: set[str] = set()

    def loop(self, loop: Loop) -> None:
        """Runs a loop; the first time it is tried."""
        super().loop(loop)
        if not loop.until or loop.name in self._tried:
            return
        self._tried.add(loop.name)
        for dim in self._dims:
            self._try(loop, dim)

    def _try(self, loop: Loop, dim: DimPlan) -> None:
        """Tries a loop along one dim; where all items end together, also on a batch made of one whose items may not."""
        reads = self.read(NodeKey("enter", loop.name), loop.within)
        axes = self._axes(reads, dim.name)
        known = {key: axis for key, axis in axes.items() if axis is not None}
        if not known or len(known) < len(axes) or not self.sizes.get(dim.name):
            return
        if not self._halves(self, loop, known, dim):
            return
        pairs = enumerate(known.items())
        made = {key: _made_up(self.values[key], axis, seed) for seed, (key, axis) in pairs}
        try:
            whole = self._again(self, loop, {**self.values, **made}, {dim.name: len(_FACTORS)})
            self._halves(whole, loop, known, dim)
        except Exception:  # a stage need not take what was made up
            return

    def _halves(self, walk: Plain, loop: Loop, axes: Mapping[_Key, int], dim: DimPlan) -> bool:
        """Adds a row for each half of a batch, and tells whether both took as many iterations as the whole."""
        count, together = walk.sizes[dim.name], True
        gives = self._axes((edge for edge in self.graph.edges if edge.source == _leave(loop)), dim.name)
        same = self._again(walk, loop, walk.values, {})
        if not all(difference(same.values[key], walk.values[key], self._tolerance)[0] for key in gives):
            return False  # it draws random numbers or keeps state
        for start, size in ((0, count // 2), (count // 2, count - count // 2)):
            if not size:
                continue
            values = {key: _cut(value, axes.get(key), start, size) for key, value in walk.values.items()}
            part = self._again(walk, loop, values, {dim.name: size})
            together = together and part.counts[loop.name] == walk.counts[loop.name]
            whole = {key: _cut(walk.values[key], axis, start, size) for key, axis in gives.items()}
            self.rows.append(self._row(loop, dim, f"{size} of {count}", part.values, whole))
        return together

    def _again(self, walk: Plain, loop: Loop, values: Mapping[_Key, Any], sizes: Mapping[str, int]) -> Plain:
        """Runs a loop on other values."""
        again = Plain(*self._request)
        again.values, again.counts = dict(values), dict(walk.counts)
        again.sizes = {**walk.sizes, **sizes}
        again.loop(loop)
        return again

    def _row(
        self, loop: Loop, dim: DimPlan, at: str, found: Mapping[_Key, Any], whole: Mapping[_Key, Any]
    ) -> CheckRow:
        leave = self.graph.into(_leave(loop))
        source = next(edge.source for edge in leave if edge.target_port == until_port(loop.until))
        ender = self.graph.calls[source.name].stage.name if source.kind == "call" else loop.name
        promise = f"batch {dim.name!r} in chunks"
        worst = CheckRow(ender, promise, True, 0.0, at)
        for key, value in whole.items():
            holds, error = difference(found[key], value, self._tolerance)
            why = "" if holds else f"loop {loop.name!r} goes on with {key[1]!r} of items that are done"
            worst = worst.worse(CheckRow(ender, promise, holds, error, at, why))
        return worst

    def _axes(self, edges: Iterable[Edge], name: str) -> dict[_Key, int | None]:
        """Where values carry a dim; None: it is not known how to cut them."""
        axes: dict[_Key, int | None] = {}
        for edge in edges:
            planned = self._edges.get(str(edge))
            spec = None if planned is None else planned.spec
            found = Axes({}, {}) if spec is None else Axes.of((("", spec),), name)
            if found.plain or found.derived:
                axes[edge.source, edge.source_port] = found.plain.get("")
        return axes


def _is_cut(dim: DimPlan) -> bool:
    return dim.batch and dim.chunked


def _leave(loop: Loop) -> NodeKey:
    return NodeKey("exit", loop.name)


def _cut(value: Any, axis: int | None, start: int, size: int) -> Any:
    if axis is None or not isinstance(value, torch.Tensor):
        return value
    return value.narrow(axis, start, size).contiguous()


def _made_up(value: torch.Tensor, axis: int, seed: int) -> torch.Tensor:
    made = enlarged(value, axis, len(_FACTORS), seed)
    if not made.is_floating_point():
        return made
    factors = torch.tensor(_FACTORS, dtype=made.dtype, device=made.device)
    return made * factors.view(-1, *[1] * (made.dim() - axis - 1))
