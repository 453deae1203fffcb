"""Trying loops that end by a value: the result of an item must not hang on how long other items keep the loop going."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from orchestrator.difference import difference
from orchestrator.graph import Edge, Graph, Loop, NodeKey, until_port
from orchestrator.plan.model import Plan
from orchestrator.plan.records import DimPlan
from orchestrator.promises.batches import Axes, make_batch
from orchestrator.promises.report import CheckRow
from orchestrator.promises.stage_runner import PlainRun, StageRunner

__all__ = ["LoopEndTrial", "ends_by_value"]

_Key = tuple[NodeKey, str]
#: What the items of a batch that is made of one are multiplied by, so that they end at different times.
_FACTORS = (1.0, 4.0, 0.25, 16.0)


def ends_by_value(graph: Graph, plan: Plan) -> bool:
    """Tells whether a loop ends by a value, and a batch may be cut."""
    return any(loop.until for loop in graph.loops.values()) and any(map(_is_cut, plan.dims))


class LoopEndTrial(PlainRun):
    """A request by hand that runs each loop which ends by a value again on the halves of each batch.

    Args:
        graph: The graph.
        plan: Its plan.
        inputs: The request.
        stage_runner: Runs the stages.
        tolerance: The largest relative difference that counts as equal; None: by dtype.

    Attributes:
        rows: A row for each half of a batch.
    """

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        inputs: Mapping[str, Any],
        stage_runner: StageRunner,
        tolerance: float | None,
    ) -> None:
        super().__init__(graph, plan, inputs, stage_runner)
        # Each half is a run of its own, so what makes one is kept.
        self.rows: list[CheckRow] = []
        self._request = graph, plan, inputs, stage_runner
        self._tolerance = tolerance
        self._dims = [dim for dim in plan.dims if _is_cut(dim)]
        self._edges = {str(edge): edge for edge in plan.edges}
        self._loop_names: set[str] = set()

    def loop(self, loop: Loop) -> None:
        """Runs a loop; the first time it is tried."""
        super().loop(loop)
        if not loop.until or loop.name in self._loop_names:
            return
        self._loop_names.add(loop.name)
        for dim in self._dims:
            self._try(loop, dim)

    def _try(self, loop: Loop, dim: DimPlan) -> None:
        """Tries a loop along one dim; where all items end together, also on a batch made of one whose items may not."""
        reads = self.read(NodeKey("enter", loop.name), loop.within)
        axes = self._axes(reads, dim.name)
        known_axes = {key: axis for key, axis in axes.items() if axis is not None}
        if not known_axes or len(known_axes) < len(axes) or not self.sizes.get(dim.name):
            return
        if not self._halves(self, loop, known_axes, dim):
            return
        pairs = enumerate(known_axes.items())
        batches = {key: _batch_of_one(self.values[key], axis, seed) for seed, (key, axis) in pairs}
        try:
            whole = self._again(self, loop, {**self.values, **batches}, {dim.name: len(_FACTORS)})
            self._halves(whole, loop, known_axes, dim)
        except Exception:  # a stage need not take made-up values
            return

    def _halves(self, walk: PlainRun, loop: Loop, axes: Mapping[_Key, int], dim: DimPlan) -> bool:
        """Adds a row for each half of a batch, and tells whether both took as many iterations as the whole."""
        count, together = walk.sizes[dim.name], True
        gives = self._axes((edge for edge in self.graph.edges if edge.source == _exit(loop)), dim.name)
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

    def _again(
        self, walk: PlainRun, loop: Loop, values: Mapping[_Key, Any], sizes: Mapping[str, int]
    ) -> PlainRun:
        """Runs a loop on other values."""
        again = PlainRun(*self._request)
        again.values, again.counts = dict(values), dict(walk.counts)
        again.sizes = {**walk.sizes, **sizes}
        again.loop(loop)
        return again

    def _row(
        self, loop: Loop, dim: DimPlan, at: str, outputs: Mapping[_Key, Any], whole: Mapping[_Key, Any]
    ) -> CheckRow:
        results = self.graph.into(_exit(loop))
        source = next(edge.source for edge in results if edge.target_port == until_port(loop.until))
        ender = self.graph.calls[source.name].stage.name if source.kind == "call" else loop.name
        promise = f"batch {dim.name!r} in chunks"
        worst = CheckRow(ender, promise, True, 0.0, at)
        for key, value in whole.items():
            holds, error = difference(outputs[key], value, self._tolerance)
            why = "" if holds else f"loop {loop.name!r} goes on with {key[1]!r} of items that are done"
            worst = worst.worse(CheckRow(ender, promise, holds, error, at, why))
        return worst

    def _axes(self, edges: Iterable[Edge], name: str) -> dict[_Key, int | None]:
        """Where values carry a dim; None: it is not known how to cut them."""
        axes: dict[_Key, int | None] = {}
        for edge in edges:
            plan_edge = self._edges.get(str(edge))
            spec = None if plan_edge is None else plan_edge.spec
            axes_of_value = Axes({}, {}) if spec is None else Axes.of((("", spec),), name)
            if axes_of_value.plain_axes or axes_of_value.derived_axes:
                axes[edge.source, edge.source_port] = axes_of_value.plain_axes.get("")
        return axes


def _is_cut(dim: DimPlan) -> bool:
    return dim.batch and dim.can_chunk


def _exit(loop: Loop) -> NodeKey:
    return NodeKey("exit", loop.name)


def _cut(value: Any, axis: int | None, start: int, size: int) -> Any:
    if axis is None or not isinstance(value, torch.Tensor):
        return value
    return value.narrow(axis, start, size).contiguous()


def _batch_of_one(value: torch.Tensor, axis: int, seed: int) -> torch.Tensor:
    batch = make_batch(value, axis, len(_FACTORS), seed)
    if not batch.is_floating_point():
        return batch
    factors = torch.tensor(_FACTORS, dtype=batch.dtype, device=batch.device)
    return batch * factors.view(-1, *[1] * (batch.dim() - axis - 1))
