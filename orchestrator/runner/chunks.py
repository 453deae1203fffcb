"""One request in chunks: each part of the plan runs once for each chunk of the dims that it depends on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from orchestrator.adapter import part_of
from orchestrator.plan.chunks import Run, run_chunks
from orchestrator.plan.parts import Part, Parts
from orchestrator.plan.records import DimPlan, PlannedValue
from orchestrator.plan.run_record import RunRecord
from orchestrator.plan.steps import HOST
from orchestrator.runner.codegen.codegen import Code
from orchestrator.runner.load.load import Executable
from orchestrator.runner.regions.pending import PendingHandles
from orchestrator.specs import TensorSpec, plain_dims

__all__ = ["Chunks", "PartCodes"]

#: A value, and which chunk of it.
Slot = tuple[int, tuple[int, ...]]


@dataclass(frozen=True)
class PartCodes:
    """Functions for a request in chunks.

    Attributes:
        split: The parts.
        codes: The function of each, which returns what it gives.
    """

    split: Parts
    codes: tuple[Code, ...]


class Chunks:
    """The state of one request in chunks; leaving its block frees what is still kept.

    Args:
        programs: The loaded plan.
        codes: The functions of the parts.
        outer: Dims that a request decides, in order.
        record: Sizes of the whole request.
        values: The request's inputs, in order.

    Attributes:
        runs: Which part ran, by number, and at which sizes, in order.
    """

    def __init__(
        self,
        programs: Executable,
        codes: PartCodes,
        outer: Iterable[DimPlan],
        record: RunRecord,
        values: tuple[Any, ...],
    ) -> None:
        self._programs = programs
        self._codes = codes
        self._parts = codes.split
        self._plan = codes.split.plan
        self._record = record
        self._values = values
        self._dims = [dim for dim in outer if dim.name in record.sizes]
        self._decided: dict[tuple[int, tuple[int, ...]], dict[str, int]] = {}
        self._kept: dict[Slot, tuple[Any, int]] = {}
        self._holders: Counter[int] = Counter()
        self.runs: list[tuple[int, Run]] = []

    def run(self) -> dict[str, Any]:
        """Runs all parts and joins the results."""
        for number, run in self._parts.runs(self._dims, self._record.sizes, Run()):
            self._once(number, run)
        held = PendingHandles(self._programs.free)
        with held:
            wanted = dict.fromkeys(index for _, index in self._plan.outputs)
            results = {index: self._result(index, held) for index in wanted}
        for index in results:
            if index in self._parts.owners and not self._joined(index):
                del self._kept[self._slot(index, Run())]  # the caller's now
        return {name: results[index] for name, index in self._plan.outputs}

    def _once(self, number: int, run: Run) -> None:
        part, code = self._parts.items[number], self._codes.codes[number]
        record = self._record.inner({**run.real, **self._born(part, run)})
        read = [self._read(index, run) for index in part.reads]
        given = code.function(record, dict(run.bucket), *read) if code.sized else code.function(*read)
        self.runs.append((number, Run(record.sizes, run.bucket, run.start, record)))
        born = {name: size for name, size in record.sizes.items() if name not in run.real}
        self._decided[number, run.key(part.dims)] = born
        for index, handle in zip(part.gives, given, strict=True):
            self._kept[self._slot(index, run)] = handle, self._parts.uses(index, self._record.sizes)
            self._holders[id(handle)] += 1
        for index in part.reads:
            if index >= len(self._values):
                self._use(self._slot(index, run))

    def _born(self, part: Part, run: Run) -> dict[str, int]:
        """Sizes that earlier parts decided for this chunk."""
        sizes: dict[str, int] = {}
        for number, other in enumerate(self._parts.items):
            if set(other.dims) <= set(part.dims):
                sizes |= self._decided.get((number, run.key(other.dims)), {})
        return sizes

    def _read(self, index: int, run: Run) -> Any:
        if index >= len(self._values):
            return self._kept[self._slot(index, run)][0]
        return _part(self._values[index], self._plan.values[index].spec, run)

    def _slot(self, index: int, run: Run) -> Slot:
        return index, run.key(self._parts.owners[index].dims)

    def _use(self, slot: Slot) -> None:
        """Notes that a value was read; the last reader frees it."""
        handle, uses = self._kept[slot]
        self._kept[slot] = handle, uses - 1
        if uses == 1:
            self._drop(slot)

    def _drop(self, slot: Slot) -> None:
        handle, _ = self._kept.pop(slot)
        self._holders[id(handle)] -= 1
        if not self._holders[id(handle)]:
            self._programs.free(self._plan.values[slot[0]], handle)

    def _result(self, index: int, held: PendingHandles) -> Any:
        """A result: an input as it is, chunks joined, or what each chunk gave alike, of the first one."""
        if index < len(self._values):
            return self._values[index]
        value = self._plan.values[index]
        return run_chunks(
            self._joined(index),
            self._record.sizes,
            Run(),
            lambda run: self._kept[self._slot(index, run)][0],
            lambda pieces, name: self._join(value, pieces, name, held),
        )

    def _joined(self, index: int) -> list[DimPlan]:
        """The dims along which chunks of a result are joined."""
        names = self._parts.joined(index)
        return [dim for dim in self._dims if dim.name in names]

    def _join(self, value: PlannedValue, pieces: list[Any], name: str, held: PendingHandles) -> Any:
        assert isinstance(value.spec, TensorSpec)
        axis = plain_dims(value.spec.dims).index(name)
        if value.memory == HOST:
            return torch.cat(pieces, axis)
        joined = self._programs.backend_of(value.memory).join(pieces, axis)
        held.keep((value,), (joined,))
        for piece in pieces:
            held.spend(value, piece)
        return joined

    def __enter__(self) -> Chunks:
        return self

    def __exit__(self, *_: object) -> None:
        for slot in list(self._kept):
            self._drop(slot)
        self._values = ()


def _part(value: Any, spec: Any, run: Run) -> Any:
    """The chunk of an input; the input itself where this run has all of it."""
    if not isinstance(spec, TensorSpec) or not isinstance(value, torch.Tensor):
        return value
    for axis, name in enumerate(plain_dims(spec.dims)):
        if isinstance(name, str) and value.shape[axis] != run.real[name]:
            value = part_of(value, axis, run.start[name], run.real[name])
    return value
