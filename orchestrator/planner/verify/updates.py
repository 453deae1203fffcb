"""Verify, sixth part: what is updated in place is nobody else's, and nobody reads what it was before.

The steps are run with cells in place of memory. Each cell counts how often it was written into, and a value is the
cells that it may lie in, each at the count that it was made at. A loop runs iteration after iteration, more often than
it has carries; regions and maps run twice, since another chunk or batch finds what the first one left.
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.plan.model import Plan
from orchestrator.plan.steps import (
    AdaptStep,
    BlockStep,
    BranchStep,
    CallStep,
    LoopStep,
    MapStep,
    RegionStep,
    Step,
)
from orchestrator.planner.verify.edges import demand

__all__ = ["check_updates"]

#: The cell of all memory that is not the plan's: of requests, constants, stages.
_FOREIGN = -1

#: Cells with the count of writes at which they hold a value.
_Cells = dict[int, int]


def check_updates(plan: Plan) -> None:
    """Checks every update in place.

    Args:
        plan: The plan; its steps were replayed already.

    Raises:
        PlanError: A call updates what is not the plan's own, or a step reads what was updated since.
    """
    devices = {group.device for group in plan.groups if not group.runs_programs}
    for call in plan.calls:
        inputs, outputs = dict(call.inputs), dict(call.outputs)
        sound = all(output in outputs and port in inputs for output, port in call.aliases)
        sound = sound and len({port for _, port in call.aliases}) == len(call.aliases)
        demand(
            plan,
            sound and (not call.aliases or call.device in devices),
            f"call {call.name!r} updates {dict(call.aliases)}, which it cannot",
        )
    if any(call.aliases for call in plan.calls):
        _Memory(plan).run()


class _Memory:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.calls = {call.name: call for call in plan.calls}
        self.counts: list[int] = []
        self.values: dict[int, _Cells] = {}

    def run(self) -> None:
        foreign = [index for index, value in enumerate(self.plan.values) if value.constant]
        for index in (*range(len(self.plan.inputs)), *foreign):
            self.values[index] = {_FOREIGN: 0}
        self._run(self.plan.steps)
        for name, index in self.plan.outputs:
            self._read(index, f"output {name!r}")

    def _new(self) -> _Cells:
        self.counts.append(0)
        return {len(self.counts) - 1: 0}

    def _read(self, index: int, reader: str) -> _Cells:
        """Returns the cells of a value, which must be as they were when it was made."""
        cells = self.values[index]
        fresh = all(cell == _FOREIGN or self.counts[cell] == count for cell, count in cells.items())
        origin = self.plan.values[index].origin
        demand(self.plan, fresh, f"{reader} reads {origin!r} after it was updated in place")
        return cells

    def _now(self, cells: Iterable[int]) -> _Cells:
        """Cells at their counts of this moment."""
        return {cell: 0 if cell == _FOREIGN else self.counts[cell] for cell in cells}

    def _run(self, steps: tuple[Step, ...]) -> None:
        for step in steps:
            match step:
                case CallStep():
                    self._call(step)
                case AdaptStep(inputs=(source,), outputs=(target,), adapter=adapter):
                    cells = self._read(source, f"adapter {adapter} of {step.origin!r}")
                    # These three hand a value on as it is where there is nothing to do.
                    views = cells if adapter.kind in ("pad", "slice", "cut") else {}
                    self.values[target] = {**views, **self._new()}
                case LoopStep():
                    self._loop(step)
                case BranchStep():
                    self._branch(step)
                case MapStep() | RegionStep():
                    self._twice(step)

    def _call(self, step: CallStep) -> None:
        call = self.calls[step.name]
        read: _Cells = {}
        for index in step.inputs:
            read |= self._read(index, f"call {step.name!r}")
        for index in step.outputs:
            foreign = {_FOREIGN: 0} if call.shares or call.is_declared else {}
            views = read if call.shares else {}
            self.values[index] = {**views, **foreign, **self._new()}
        # All that is updated is updated while the others of its inputs are read.
        inputs = dict(zip((port for port, _ in call.inputs), step.inputs, strict=True))
        outputs = dict(zip((port for port, _ in call.outputs), step.outputs, strict=True))
        for output, port in call.aliases:
            cells = self.values[inputs[port]]
            origin = self.plan.values[inputs[port]].origin
            demand(
                self.plan,
                _FOREIGN not in cells,
                f"call {step.name!r} updates {origin!r} in place, which may be somebody else's",
            )
            beside = {cell for name, index in inputs.items() if name != port for cell in self.values[index]}
            demand(
                self.plan,
                beside.isdisjoint(cells),
                f"call {step.name!r} updates {origin!r} in place and reads it by another port, too",
            )
            for cell in cells:
                self.counts[cell] += 1
            self.values[outputs[output]] = self._now(cells)

    def _loop(self, step: LoopStep) -> None:
        name = f"loop {step.name!r}"
        initials = [self._read(carry.initial, name) for carry in step.carries]
        states = initials
        parts: list[_Cells] = []
        for _ in range(len(step.carries) + 2 if _updates(self, step) else 1):
            for carry, cells in zip(step.carries, states, strict=True):
                self.values[carry.argument] = cells
            for entry in step.slices:
                self.values[entry.part] = self._read(entry.whole, name)
            self._run(step.body)
            states = [self._read(carry.yielded, name) for carry in step.carries]
            parts += [self._read(index, name) for index in step.collects]
        for cells in parts:
            whole = all(cell == _FOREIGN or self.counts[cell] == count for cell, count in cells.items())
            demand(self.plan, whole, f"{name} collects what it updates in place afterwards")
        # A loop that does not run gives what its carries start with, which nobody has written into then.
        for first, last, result in zip(initials, states, step.results, strict=True):
            self.values[result] = {**self._now(first), **last}
        for index in step.stacks:
            self.values[index] = self._new()

    def _branch(self, step: BranchStep) -> None:
        name = f"branch {step.name!r}"
        initials = [self._read(carry.initial, name) for carry in step.carries]
        for carry, cells in zip(step.carries, initials, strict=True):
            self.values[carry.argument] = cells
        for entry in step.slices:
            self.values[entry.part] = self._read(entry.whole, name)
        self._run(step.body)
        for carry, first, result in zip(step.carries, initials, step.results, strict=True):
            self.values[result] = {**self._now(first), **self._read(carry.yielded, name)}

    def _twice(self, step: MapStep | RegionStep) -> None:
        """What chunks and batches give is read once all have run."""
        # The body first, each time with ends of its own; then all ends together, as the step after it finds them.
        results: list[tuple[int, _Cells]] = []
        for _ in range(2):
            match step:
                case MapStep():
                    for entry in step.slices:
                        self._read(entry.whole, f"map {step.name!r}")
                        self.values[entry.part] = {_FOREIGN: 0}
                    ends = dict(zip(step.stacks, step.collects, strict=True))
                case RegionStep():
                    ends = {index: index for index in step.outputs}
            self._run(step.body)
            results += [(index, self._read(end, f"{step.op} {step.label!r}")) for index, end in ends.items()]
        for index in step.outputs:
            self.values[index] = self._new()
        for index, cells in results:
            self.values[index] |= cells
            self._read(index, f"{step.op} {step.label!r}")


def _updates(memory: _Memory, step: BlockStep) -> bool:
    """Tells whether a call in a body updates something."""
    for inner in step.body:
        match inner:
            case CallStep(name=name) if memory.calls[name].aliases:
                return True
            case BlockStep() if _updates(memory, inner):
                return True
    return False
