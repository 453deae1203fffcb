"""Trying one call along a batch dim: parts of the batch against the whole, and the batch in another order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from orchestrator.difference import span
from orchestrator.plan.records import DimPlan
from orchestrator.promises.batches import Axes, Pick, chunk_of, is_uniform, make_batch, picks
from orchestrator.promises.call_trial import UNSTEADY, CallTrial, first_line
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
        reads = Axes.of(self.call.plan_call.inputs, self.dim.name).present(self.call.inputs)
        gives = Axes.of(self.call.plan_call.outputs, self.dim.name)
        if not reads.plain_axes and not reads.derived_axes:
            return
        count = self.call.sizes.get(self.dim.name, 0)
        inputs, whole, why = self.call.inputs, self.call.outputs, self._obstacle(reads, gives, count)
        if not why and all(is_uniform(inputs[port], axis) for port, axis in reads.axes.items()):
            count, inputs, whole, why = self._batch_of_one(reads)
        promises = {is_permuted: self._promise(is_permuted) for is_permuted in (False, True)}
        if why:
            for promise in promises.values():
                self.call.note(promise, None, why=why)
            return
        # Where a size only follows from the dim, its items are in blocks (the batch, and the batch once more) or side
        # by side; whichever of the two holds is how they are.
        ways = (True, False) if reads.derived_axes or gives.derived_axes else (True,)
        rows_by_layout = [
            [self._compare_items(pick, count, reads, gives, blocks, inputs, whole) for pick in picks(count)]
            for blocks in ways
        ]
        right = next((rows for rows in rows_by_layout if all(row.holds for row in rows)), rows_by_layout[0])
        self.call.context.rows += right

    def _promise(self, is_permuted: bool) -> str:
        return f"batch {self.dim.name!r} {'permuted' if is_permuted else 'in chunks'}"

    def _obstacle(self, reads: Axes, gives: Axes, count: int) -> str:
        """Why a batch is not tried; empty: it can be."""
        # A size that follows from the batch can be cut only where it is a whole number of items.
        if self.call.unsteady:
            return UNSTEADY
        if not count:
            return "there is no item"
        values = {**self.call.outputs, **self.call.inputs}
        sizes = [
            (port, axis, values.get(port))
            for side in (reads, gives)
            for port, axis in side.derived_axes.items()
        ]
        for port, axis, value in sizes:
            if axis is None or (isinstance(value, torch.Tensor) and value.shape[axis] % count):
                return f"the size of {port!r} follows from {self.dim.name!r}, but is no multiple of it"
        return ""

    def _batch_of_one(self, reads: Axes) -> tuple[int, Mapping[str, Any], Mapping[str, Any], str]:
        """A batch made of one item, where all of them are equal: its size, inputs and outputs, or why there is none."""
        if reads.derived_axes:
            return 0, {}, {}, "all items of the request are equal"
        batches = {
            port: make_batch(self.call.inputs[port], axis, 3, at)
            for at, (port, axis) in enumerate(reads.plain_axes.items())
        }
        inputs = {**self.call.inputs, **batches}
        try:
            return 3, inputs, self.call.run(inputs), ""
        except Exception as error:
            why = f"all items of the request are equal, and a batch made of one raises {first_line(error)}"
            return 0, {}, {}, why

    def _compare_items(
        self,
        pick: Pick,
        count: int,
        reads: Axes,
        gives: Axes,
        blocks: bool,
        inputs: Mapping[str, Any],
        whole: Mapping[str, Any],
    ) -> CheckRow:
        """Compares the outputs for some items of a batch with those of the same items in the whole batch."""

        def items_of(value: Any, axes: Axes, port: str) -> Any:
            if port in axes.axes and isinstance(value, torch.Tensor):
                return pick.of(value, axes.axes[port], count, blocks=blocks)
            return chunk_of(value, pick, count)

        # What comes out for some items has to be what the whole batch gave at their places.
        at = f"{count} in another order" if pick.is_permuted else f"{len(pick.items)} of {count}"
        row = CheckRow(self.call.stage.name, self._promise(pick.is_permuted), False, sizes=at)
        try:
            outputs = self.call.run({port: items_of(value, reads, port) for port, value in inputs.items()})
        except Exception as error:
            return CheckRow(row.stage, row.promise, False, sizes=at, why=f"it raises {first_line(error)}")
        floor, name = span(inputs), self.call.plan_call.name
        holds, largest_error, port = self.call.worst(
            (*self.call.difference(outputs.get(port), items_of(value, gives, port), floor), port)
            for port, value in whole.items()
            if pick.is_permuted or not self.call.context.only_ends(name, port)
        )
        return CheckRow(row.stage, row.promise, holds, largest_error, at, "" if holds else f"in {port!r}")
