"""One request in chunks: each part of the plan runs once for each chunk of the dims that it depends on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from orchestrator.plan.chunks import SizeAssignment, run_chunks
from orchestrator.plan.parts import Part, Parts
from orchestrator.plan.records import DimPlan
from orchestrator.plan.run_record import RunRecord
from orchestrator.runner.codegen.codegen import Code
from orchestrator.runner.load.load import Executable
from orchestrator.runner.regions.pending import PendingHandles, chunk_of
from orchestrator.specs import TensorSpec, plain_dims

__all__ = ["Chunks", "PartCodes"]

#: A value, and which chunk of it.
Slot = tuple[int, tuple[int, ...]]


@dataclass(frozen=True)
class PartCodes:
    """Functions for a request in chunks.

    Attributes:
        split: The parts.
        codes: The function of each part; it returns the part's results.
        locks: What a request holds from begin to end; the functions take and give back the other ones.
    """

    split: Parts
    codes: tuple[Code, ...]
    locks: tuple[str, ...]


class Chunks:
    """The state of one request in chunks; leaving its block frees what is still kept.

    Args:
        executable: The loaded plan.
        codes: The functions of the parts.
        outer: Dims that a request decides, in order.
        record: Sizes of the whole request.
        values: The request's inputs, in order.

    Attributes:
        runs: Which part ran, by number, and at which sizes, in order.
    """

    def __init__(
        self,
        executable: Executable,
        codes: PartCodes,
        outer: Iterable[DimPlan],
        record: RunRecord,
        values: tuple[Any, ...],
    ) -> None:
        self._executable = executable
        self._codes = codes
        self._parts = codes.split
        self._plan = codes.split.plan
        self._record = record
        self._values = values
        self._dims = [dim for dim in outer if dim.name in record.sizes]
        # Per part and chunk what its stages decided; per value and chunk the handle and how many runs still read it.
        # One handle may be in several slots (a part handed it on), so it is freed with the last of them.
        self._new_sizes: dict[tuple[int, tuple[int, ...]], dict[str, int]] = {}
        self._slots: dict[Slot, tuple[Any, int]] = {}
        self._holders: Counter[int] = Counter()
        self.runs: list[tuple[int, SizeAssignment]] = []

    def run(self) -> dict[str, Any]:
        """Runs all parts and joins the results."""
        # Parts of fewer dims come first for each chunk: what another part reads is in its slot by then.
        for number, run in self._parts.runs(self._dims, self._record.sizes, SizeAssignment()):
            self._run_part(number, run)
        # Joining leaves the slots alone, so a join that fails frees only what joins made; the slots go with the block.
        with PendingHandles(self._executable) as pending:
            indices = dict.fromkeys(index for _, index in self._plan.outputs)
            results = {index: self._result(index, pending) for index in indices}
        for index in results:
            if index in self._parts.owners and not self._join_dims(index):
                del self._slots[self._slot(index, SizeAssignment())]  # the caller's now
        return {name: results[index] for name, index in self._plan.outputs}

    def _run_part(self, number: int, run: SizeAssignment) -> None:
        part, code = self._parts.items[number], self._codes.codes[number]
        record = self._record.inner({**run.actual, **self._sizes_before(part, run)})
        arguments = [self._read(index, run) for index in part.reads]
        handles = (
            code.function(record, dict(run.bucket), *arguments)
            if code.takes_sizes
            else code.function(*arguments)
        )
        # The record of this run holds what its stages decided on the way; later parts of the chunk need it.
        self.runs.append((number, SizeAssignment(record.sizes, run.bucket, run.offset, record)))
        new_sizes = {name: size for name, size in record.sizes.items() if name not in run.actual}
        self._new_sizes[number, run.key(part.dims)] = new_sizes
        # Results are in their slots before what was read is freed: a part may hand a value on under another name.
        for index, handle in zip(part.gives, handles, strict=True):
            self._slots[self._slot(index, run)] = handle, self._parts.uses(index, self._record.sizes)
            self._holders[id(handle)] += 1
        for index in part.reads:
            if index >= len(self._values):
                self._use(self._slot(index, run))

    def _sizes_before(self, part: Part, run: SizeAssignment) -> dict[str, int]:
        """Sizes that earlier parts decided for this chunk."""
        sizes: dict[str, int] = {}
        for number, other in enumerate(self._parts.items):
            if set(other.dims) <= set(part.dims):
                sizes |= self._new_sizes.get((number, run.key(other.dims)), {})
        return sizes

    def _read(self, index: int, run: SizeAssignment) -> Any:
        if index >= len(self._values):
            return self._slots[self._slot(index, run)][0]
        return chunk_of(self._executable, self._plan.values[index], self._values[index], run)

    def _slot(self, index: int, run: SizeAssignment) -> Slot:
        return index, run.key(self._parts.owners[index].dims)

    def _use(self, slot: Slot) -> None:
        """Notes that a value was read; the last reader frees it."""
        handle, uses = self._slots[slot]
        self._slots[slot] = handle, uses - 1
        if uses == 1:
            self._drop(slot)

    def _drop(self, slot: Slot) -> None:
        handle, _ = self._slots.pop(slot)
        self._holders[id(handle)] -= 1
        if not self._holders[id(handle)]:
            self._executable.free(self._plan.values[slot[0]], handle)

    def _result(self, index: int, pending: PendingHandles) -> Any:
        """A result: an input as it is, chunks joined, or the first chunk's, where all chunks have the same."""
        if index < len(self._values):
            return self._values[index]
        value = self._plan.values[index]
        dims = plain_dims(value.spec.dims) if isinstance(value.spec, TensorSpec) else ()
        return run_chunks(
            self._join_dims(index),
            self._record.sizes,
            SizeAssignment(),
            lambda run: self._slots[self._slot(index, run)][0],
            lambda handles, name: pending.join(value, handles, dims.index(name)),
        )

    def _join_dims(self, index: int) -> list[DimPlan]:
        """The dims along which chunks of a result are joined."""
        names = self._parts.join_dims(index)
        return [dim for dim in self._dims if dim.name in names]

    def __enter__(self) -> Chunks:
        return self

    def __exit__(self, *_: object) -> None:
        for slot in list(self._slots):
            self._drop(slot)
        self._values = ()
