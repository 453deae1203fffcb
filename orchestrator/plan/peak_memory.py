"""The most bytes that are alive at once, by replaying the life of every value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.plan.chunks import SizeAssignment
from orchestrator.plan.iterations import most_repeats, region_parts, repeats
from orchestrator.plan.parts import Part, Parts
from orchestrator.plan.programs import place_of
from orchestrator.plan.records import PlanData, PlannedValue
from orchestrator.plan.run_record import RunRecord
from orchestrator.plan.steps import (
    AdaptStep,
    BranchStep,
    CallStep,
    LeafStep,
    LoopStep,
    MapStep,
    RegionStep,
    Step,
    dead_initials,
    iter_steps,
)
from orchestrator.plan.updated import updates_of
from orchestrator.specs import TensorSpec

__all__ = ["ChunkPeaks", "Peaks"]


@dataclass(eq=False)
class _Storage:
    """Bytes in a memory, until nothing holds them any more."""

    memory: str
    size: int
    holders: int = 0


class Peaks:
    """Replays the life of every value and finds the most bytes alive at once in each memory, one rank.

    An adapter that has nothing to add and nothing to cut off shares its source's storage. Constants
    and weights are not values of a request. What a program gives lives in a buffer that is there since load; it is
    counted in :attr:`Plan.buffers`.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: PlanData) -> None:
        self.plan = plan
        self._dims = {dim.name: dim for dim in plan.dims}
        devices = {group.device for group in plan.groups if group.overwrites_outputs}
        self._program_outputs = {
            index
            for step in iter_steps(plan.steps, LeafStep)
            if (step.program and step.device in devices) or place_of(step) in ("producer", "consumer")
            for index in step.outputs
        }

        self._calls = {call.name: call for call in plan.calls}

    def run(self, run: SizeAssignment) -> dict[str, int]:
        """Returns the peak of each device group at these sizes."""
        self._begin()
        absent = frozenset() if run.record is None else run.record.absent
        for index, (name, _) in enumerate(self.plan.inputs):
            if name not in absent:
                self._make(index, run)
        self._steps(self.plan.steps, run)
        return self._peaks()

    def _begin(self) -> None:
        self._alive: dict[str, int] = {}
        self._peak: dict[str, int] = {}
        self._at: dict[int, _Storage] = {}

    def _peaks(self) -> dict[str, int]:
        return {group.device: self._peak.get(group.memory, 0) for group in self.plan.groups}

    def _bytes(self, value: PlannedValue, run: SizeAssignment) -> int:
        if value.constant or not isinstance(value.spec, TensorSpec):
            return 0
        return value.spec.nbytes(run.sizes(value))

    def _own_bytes(self, index: int, run: SizeAssignment) -> int:
        """Bytes that come and go with a value."""
        return 0 if index in self._program_outputs else self._bytes(self.plan.values[index], run)

    def _make(self, index: int, run: SizeAssignment) -> None:
        """Gives a value storage of its own."""
        memory = self.plan.values[index].memory
        self._share(index, _Storage(memory, self._own_bytes(index, run)))

    def _share(self, index: int, storage: _Storage) -> None:
        """Gives a value a storage; what it had before loses a holder."""
        storage.holders += 1
        if storage.holders == 1:
            self._add(storage.memory, storage.size)
        self._drop(index)
        self._at[index] = storage

    def _drop(self, index: int) -> None:
        storage = self._at.pop(index, None)
        if storage is not None:
            self._release(storage)

    def _release(self, storage: _Storage) -> None:
        storage.holders -= 1
        if not storage.holders:
            self._add(storage.memory, -storage.size)

    def _add(self, memory: str, size: int) -> None:
        self._alive[memory] = self._alive.get(memory, 0) + size
        self._peak[memory] = max(self._peak.get(memory, 0), self._alive[memory])

    def _steps(self, steps: Iterable[Step], run: SizeAssignment) -> None:
        for step in steps:
            match step:
                case RegionStep():
                    self._region(step, run)
                case MapStep():
                    self._map(step, run)
                case LoopStep() | BranchStep():
                    self._loop(step, run)
                case LeafStep():
                    for index in step.outputs:
                        self._output(step, index, run)
            for index in step.frees:
                self._drop(index)

    def _output(self, step: LeafStep, index: int, run: SizeAssignment) -> None:
        """A step's output shares an adapter's input's storage, or that of the input it is an update of; or its own."""
        source = self._at.get(step.inputs[0]) if step.inputs else None
        match step:
            case CallStep(name=name) if self._calls[name].aliases:
                source = self._at.get(updates_of(self._calls[name], step).get(index, -1))
                if source is not None:
                    self._share(index, source)
                    return
        if source is not None and self._is_view(step, index, run):
            self._share(index, source)
        else:
            self._make(index, run)

    def _is_view(self, step: LeafStep, index: int, run: SizeAssignment) -> bool:
        match step:
            case AdaptStep(adapter=adapter) if adapter.kind in ("pad", "slice", "cut"):
                source, target = self.plan.values[step.inputs[0]], self.plan.values[index]
                return self._bytes(source, run) == self._bytes(target, run)
        return place_of(step) == "consumer"

    def _loop(self, step: LoopStep | BranchStep, run: SizeAssignment) -> None:
        """Replays as many iterations as differ, and the last one with all that was collected by then."""
        count = most_repeats(self.plan, step, run)
        # A value can hand its storage on through every carry once; from then on iterations are alike.
        replays = min(count, len(step.carries) + 2)
        self._rename([(carry.argument, carry.initial) for carry in step.carries])
        for index in dead_initials(step):
            self._drop(index)
        parts: list[_Storage] = []
        for at in range(replays):
            if at == replays - 1:
                parts += [self._parts(index, count - replays, run) for index in step.collects]
            parts += self._iteration(step, run)
        # The results take over from the arguments before anything of the body is dropped.
        self._rename(
            [(result, carry.argument) for result, carry in zip(step.results, step.carries, strict=True)]
        )
        names = {*step.arguments, *step.yields}
        match step:
            case LoopStep(progress_outputs=outputs):
                names |= {index for _, index in outputs}
        for index in names - {carry.initial for carry in step.carries}:
            self._drop(index)
        for index in step.stacks:
            self._make(index, run)
        for part in parts:
            self._release(part)

    def _iteration(self, step: LoopStep | BranchStep, run: SizeAssignment) -> list[_Storage]:
        """Replays one iteration; returns what it adds to what is collected, held once more."""
        for entry in step.slices:
            self._rename([(entry.part, entry.whole)])
        self._steps(step.body, run)
        parts = [self._at[index] for index in step.collects if index in self._at]
        for storage in parts:
            storage.holders += 1
        self._rename([(carry.argument, carry.yielded) for carry in step.carries])
        own = {index for inner in step.body for index in inner.outputs}
        for index in own & {*(carry.yielded for carry in step.carries), *step.collects}:
            self._drop(index)
        return parts

    def _rename(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Gives values the storage of others, all at once; a constant's is none of a request."""
        storages = [(index, self._at.get(source)) for index, source in pairs]
        for index, storage in storages:
            self._share(index, storage or _Storage(self.plan.values[index].memory, 0))

    def _parts(self, index: int, times: int, run: SizeAssignment) -> _Storage:
        """What iterations that are not replayed collected."""
        storage = _Storage(self.plan.values[index].memory, times * self._own_bytes(index, run), 1)
        self._add(storage.memory, storage.size)
        return storage

    def _map(self, step: MapStep, run: SizeAssignment) -> None:
        """Replays batches that differ."""
        for batch, _ in repeats(self.plan, step, run):
            for entry in step.slices:
                self._make(entry.part, batch)
            self._steps(step.body, batch)
            for index in {*step.arguments, *step.yields}:
                self._drop(index)
        for index in step.outputs:
            self._make(index, run)

    def _region(self, step: RegionStep, run: SizeAssignment) -> None:
        largest = max(
            region_parts([self._dims[name] for name in step.dims], step, run),
            default=None,
            key=lambda part: sum(part.bucket.values()),
        )
        if largest is not None:
            self._steps(step.body, largest)
        # What is at its bucket still comes of the only chunk, and is not joined.
        for index in step.outputs:
            if self.plan.values[index].unpadded:
                self._drop(index)
                self._make(index, run)


class ChunkPeaks(Peaks):
    """Replays a request in chunks, part by part; see :class:`~orchestrator.plan.parts.Parts`.

    Args:
        parts: What runs.
        record: Of the whole request.
    """

    def __init__(self, parts: Parts, record: RunRecord) -> None:
        super().__init__(parts.plan)
        self._split = parts
        self._sizes = record.sizes
        self._slots: dict[tuple[int, tuple[int, ...]], tuple[_Storage, int]] = {}
        self._begin()
        whole = SizeAssignment(record.sizes, record.sizes)
        for index, (name, _) in enumerate(self.plan.inputs):
            if name in record.absent:
                self._share(index, _Storage(self.plan.values[index].memory, 0))
            else:
                self._make(index, whole)
        self._inputs = dict(self._at)

    def part(self, part: Part, run: SizeAssignment) -> None:
        """Replays one run of a part: what it reads is there, what it gives stays until it was read."""
        for index in part.reads:
            storage = self._inputs.get(index) or self._slots[self._slot(index, run)][0]
            self._share(index, storage)
        self._steps(part.steps, run)
        for index, result in zip(part.gives, part.results, strict=True):
            storage = self._at.get(result) or _Storage(self.plan.values[result].memory, 0)
            storage.holders += 1
            self._slots[self._slot(index, run)] = storage, self._split.uses(index, self._sizes)
        for index in set(self._at) - set(self._inputs):
            self._drop(index)
        for index in set(part.reads) - set(self._inputs):
            self._use(self._slot(index, run))

    def join(self) -> dict[str, int]:
        """Joins the results and returns the peak of each device group."""
        for index in {index for _, index in self.plan.outputs if index in self._split.owners}:
            names = self._split.join_dims(index)
            if names:
                pieces = self._pieces(index, names)
                self._add(pieces[0].memory, sum(piece.size for piece in pieces))
        return self._peaks()

    def _pieces(self, index: int, names: Sequence[str]) -> list[_Storage]:
        """The chunks of a result that are joined: the first ones of all dims but these."""
        dims = self._split.owners[index].dims
        others = [at for at, name in enumerate(dims) if name not in names]
        return [
            storage
            for (other, starts), (storage, _) in self._slots.items()
            if other == index and not any(starts[at] for at in others)
        ]

    def _slot(self, index: int, run: SizeAssignment) -> tuple[int, tuple[int, ...]]:
        return index, run.key(self._split.owners[index].dims)

    def _use(self, slot: tuple[int, tuple[int, ...]]) -> None:
        storage, uses = self._slots.pop(slot)
        if uses > 1:
            self._slots[slot] = storage, uses - 1
        else:
            self._release(storage)
