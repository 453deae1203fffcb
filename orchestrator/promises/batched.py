"""Trying one call along a batch dim: parts of the batch against the whole, and the batch in another order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from orchestrator.plan.model import DimPlan
from orchestrator.promises.batches import Axes, Pick, chunk_of, enlarged, is_uniform, picks
from orchestrator.promises.calls import UNSTEADY, CallTrial, first_line
from orchestrator.promises.measure import span
from orchestrator.promises.report import CheckRow

__all__ = ["BatchTrial"]


@dataclass(frozen=True)
class BatchTrial:
    """One call along one batch dim.

    Attributes:
        call: The call with its exact values.
        dim: The dim.
    """

    call: CallTrial
    dim: DimPlan

    def run(self) -> None:
        """Notes two rows: for chunks, and for another order."""
        reads = Axes.of(self.call.planned.inputs, self.dim.name).present(self.call.fed)
        gives = Axes.of(self.call.planned.outputs, self.dim.name)
        if not reads.plain and not reads.derived:
            return
        count = self.call.sizes.get(self.dim.name, 0)
        fed, whole, why = self.call.fed, self.call.given, self._untried(reads, gives, count)
        if not why and all(is_uniform(fed[port], axis) for port, axis in reads.axes.items()):
            count, fed, whole, why = self._made_up(reads)
        promises = {permuted: self._promise(permuted) for permuted in (False, True)}
        if why:
            for promise in promises.values():
                self.call.note(promise, None, why=why)
            return
        # Where a size only follows from the dim, its items are in blocks (the batch, and the batch once more) or side
        # by side; whichever of the two holds is how they are.
        ways = (True, False) if reads.derived or gives.derived else (True,)
        found = [
            [self._picked(pick, count, reads, gives, blocks, fed, whole) for pick in picks(count)]
            for blocks in ways
        ]
        right = next((rows for rows in found if all(row.holds for row in rows)), found[0])
        self.call.trials.rows += right

    def _promise(self, permuted: bool) -> str:
        return f"batch {self.dim.name!r} {'permuted' if permuted else 'in chunks'}"

    def _untried(self, reads: Axes, gives: Axes, count: int) -> str:
        """Why a batch is not tried; empty: it can be."""
        if self.call.unsteady:
            return UNSTEADY
        if not count:
            return "there is no item"
        values = {**self.call.given, **self.call.fed}
        sizes = [
            (port, axis, values.get(port)) for side in (reads, gives) for port, axis in side.derived.items()
        ]
        for port, axis, value in sizes:
            if axis is None or (isinstance(value, torch.Tensor) and value.shape[axis] % count):
                return f"the size of {port!r} follows from {self.dim.name!r}, but is no multiple of it"
        return ""

    def _made_up(self, reads: Axes) -> tuple[int, Mapping[str, Any], Mapping[str, Any], str]:
        """A batch made of one item, where all of them are equal: its size, inputs and outputs, or why there is none."""
        if reads.derived:
            return 0, {}, {}, "all items of the request are equal"
        made = {
            port: enlarged(self.call.fed[port], axis, 3, at)
            for at, (port, axis) in enumerate(reads.plain.items())
        }
        fed = {**self.call.fed, **made}
        try:
            return 3, fed, self.call.run(fed), ""
        except Exception as error:
            why = f"all items of the request are equal, and a batch made of one raises {first_line(error)}"
            return 0, {}, {}, why

    def _picked(
        self,
        pick: Pick,
        count: int,
        reads: Axes,
        gives: Axes,
        blocks: bool,
        fed: Mapping[str, Any],
        whole: Mapping[str, Any],
    ) -> CheckRow:
        """Compares what some items of a batch give with what they give in the whole batch."""

        def picked(value: Any, axes: Axes, port: str) -> Any:
            if port in axes.axes and isinstance(value, torch.Tensor):
                return pick.of(value, axes.axes[port], count, blocks=blocks)
            return chunk_of(value, pick, count)

        at = f"{count} in another order" if pick.permuted else f"{len(pick.items)} of {count}"
        row = CheckRow(self.call.stage.name, self._promise(pick.permuted), False, sizes=at)
        try:
            found = self.call.run({port: picked(value, reads, port) for port, value in fed.items()})
        except Exception as error:
            return CheckRow(row.stage, row.promise, False, sizes=at, why=f"it raises {first_line(error)}")
        floor, name = span(fed), self.call.planned.name
        holds, error_, port = self.call.worst(
            (*self.call.difference(found.get(port), picked(value, gives, port), floor), port)
            for port, value in whole.items()
            if pick.permuted or not self.call.trials.only_ends(name, port)
        )
        return CheckRow(row.stage, row.promise, holds, error_, at, "" if holds else f"in {port!r}")
