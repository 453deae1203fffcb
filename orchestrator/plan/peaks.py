"""The most bytes that are alive at once, by replaying the life of every value."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from orchestrator.plan.chunks import Run, combine
from orchestrator.plan.model import Plan, PlannedLoop, PlannedValue, Step
from orchestrator.plan.programs import place_of
from orchestrator.plan.repeats import ABSENT, repeats
from orchestrator.plan.steps import spent_starts, walk
from orchestrator.specs import TensorSpec

__all__ = ["Peaks"]


class Peaks:
    """Replays the life of every value and finds the most bytes alive at once in each memory, one rank.

    A slice or cut is a view and shares its source's storage; so does a pad that has nothing to add. Constants
    and weights are not values of a request. What a program gives lives in a buffer that is there since load; it is
    counted in :attr:`Plan.buffers`.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._dims = {dim.name: dim for dim in plan.dims}
        buffered = {group.device for group in plan.groups if group.compiled and group.output_buffers}
        self._owned = {
            index
            for step in walk(plan.steps)
            if (step.program and step.device in buffered) or place_of(step) in ("producer", "consumer")
            for index in step.outputs
        }

    def run(self, run: Run) -> dict[str, int]:
        """Returns the peak of each device group at these sizes."""
        self._alive: dict[str, int] = {}
        self._peak: dict[str, int] = {}
        self._root: dict[int, int] = {}
        self._holders: dict[int, int] = {}
        absent: Any = run.real.get(ABSENT, ())
        for index, (name, _) in enumerate(self.plan.inputs):
            if name not in absent:
                self._make(index, index, run)
        self._steps(self.plan.steps, run)
        return {group.device: self._peak.get(group.memory, 0) for group in self.plan.groups}

    def _bytes(self, value: PlannedValue, run: Run) -> int:
        if value.constant or not isinstance(value.spec, TensorSpec):
            return 0
        return value.spec.nbytes(run.sizes(value))

    def _own_bytes(self, index: int, run: Run) -> int:
        """Bytes that come and go with a value."""
        return 0 if index in self._owned else self._bytes(self.plan.values[index], run)

    def _make(self, index: int, root: int, run: Run) -> None:
        self._root[index] = root
        self._holders[root] = self._holders.get(root, 0) + 1
        if root == index:
            value = self.plan.values[index]
            self._alive[value.memory] = self._alive.get(value.memory, 0) + self._own_bytes(index, run)
            self._peak[value.memory] = max(self._peak.get(value.memory, 0), self._alive[value.memory])

    def _drop(self, index: int, run: Run) -> None:
        root = self._root.pop(index, None)
        if root is None:
            return
        self._holders[root] -= 1
        if not self._holders[root]:
            value = self.plan.values[root]
            self._alive[value.memory] -= self._own_bytes(root, run)

    def _steps(self, steps: Iterable[Step], run: Run) -> None:
        for step in steps:
            if step.op == "region":
                self._region(step, run)
            elif step.loop is not None and step.loop.kind == "map":
                self._map(step, step.loop, run)
            elif step.loop is not None:
                self._loop(step, step.loop, run)
            else:
                for index in step.outputs:
                    self._make(index, self._source(step, index, run), run)
            for index in step.frees:
                self._drop(index, run)

    def _source(self, step: Step, index: int, run: Run) -> int:
        """The value whose storage an output shares: itself, or an adapter's input."""
        if step.op != "adapt" or step.adapter is None:
            return index
        source, target = self.plan.values[step.inputs[0]], self.plan.values[index]
        view = step.adapter.kind in ("slice", "cut") or step.adapter.place == "consumer"
        view = view or (step.adapter.kind == "pad" and self._bytes(source, run) == self._bytes(target, run))
        return self._root.get(step.inputs[0], index) if view else index

    def _loop(self, step: Step, loop: PlannedLoop, run: Run) -> None:
        """Replays the first iteration, and the last one with all that was collected by then."""
        count = sum(times for _, times in repeats(self.plan, loop, run))
        starts = [start for start, _, _ in loop.carries]
        for start, head, _ in loop.carries:
            self._make(head, self._root.get(start, head), run)
        for index in spent_starts(step):
            self._drop(index, run)
        passes = list(dict.fromkeys((0, count - 1))) if count else []
        for at in passes:
            if at:
                self._hand_over(loop, run)
            for whole, part in loop.slices:
                self._make(part, self._root.get(whole, part), run)
            self._hold(loop, max(0, at - 1), run)
            self._steps(step.body, run)
            self._hold(loop, -max(0, at - 1), run)
        last = [following for _, _, following in loop.carries] if count else starts
        for final, index in zip(step.outputs, last, strict=False):
            self._make(final, self._root.get(index, final), run)
        seen = {index for _, index in loop.watched}
        for index in {*loop.heads, *loop.ends, *seen} - set(starts):
            for _ in passes:
                self._drop_again(index, run)
        for index in step.outputs[len(loop.carries) :]:
            self._make(index, index, run)

    def _map(self, step: Step, loop: PlannedLoop, run: Run) -> None:
        """Replays the largest batch."""
        parts = [part for part, _ in repeats(self.plan, loop, run)]
        largest = max(parts, default=None, key=lambda part: sum(part.bucket.values()))
        if largest is not None:
            for _, part in loop.slices:
                self._make(part, part, largest)
            self._steps(step.body, largest)
            for index in {*loop.heads, *loop.ends}:
                self._drop(index, largest)
        for index in step.outputs:
            self._make(index, index, run)

    def _hand_over(self, loop: PlannedLoop, run: Run) -> None:
        """What an iteration gave becomes the next one's carry."""
        for _, head, following in loop.carries:
            if following not in loop.heads:
                self._drop(head, run)
                self._drop(following, run)
                self._make(head, head, run)

    def _hold(self, loop: PlannedLoop, times: int, run: Run) -> None:
        """Adds what earlier iterations collected."""
        for index in loop.collects:
            memory = self.plan.values[index].memory
            self._alive[memory] = self._alive.get(memory, 0) + times * self._own_bytes(index, run)

    def _drop_again(self, index: int, run: Run) -> None:
        """Drops a value that may have been made once in each pass."""
        if index in self._root or self._holders.get(index):
            self._root.setdefault(index, index)
            self._drop(index, run)

    def _region(self, step: Step, run: Run) -> None:
        largest = max(
            combine([self._dims[name] for name in step.dims], run.real, run),
            default=None,
            key=lambda part: sum(part.bucket.values()),
        )
        if largest is not None:
            self._steps(step.body, largest)
        for index in step.outputs:
            self._drop(index, largest or run)
            self._make(index, index, run)
