"""What depends on a dim, so that it differs from chunk to chunk, and what of it cannot be cut or joined.

A value is *reached* by a dim that has the dim, or is made of a value that is reached: it may differ in each chunk.
Chunks can be joined where every output that is reached has the dim, once. What is reached and is no tensor stands in
the way: a Python value, the condition of a branch. What ends a loop does not: each chunk runs as many iterations as its
items need, which is all the same to items that are independent, and what the iterations collect cannot be joined.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from orchestrator.plan.records import DimPlan, PlannedValue
from orchestrator.plan.steps import PlannedLoop, Step
from orchestrator.specs import TensorSpec, dim_names, plain_dims, show_spec

__all__ = ["Reach"]


class Reach:
    """Follows one dim through steps.

    Args:
        dim: The dim.
        dims: All named dims.
        values: All values.
        given: Values that the steps are given.

    Attributes:
        values: Indices of values that are reached.
        obstacle: The first thing that stands in the way of chunks, a clause; empty: nothing does.
    """

    def __init__(
        self, dim: str, dims: Mapping[str, DimPlan], values: Sequence[PlannedValue], given: Iterable[int]
    ) -> None:
        self.dim = dim
        self.obstacle = ""
        self.values = {index for index in given if dim in _names(values[index])}
        self._dims = dims
        self._all = values
        self._counted: set[str] = set()  # dims that are how often a loop runs, where what is reached ends it

    def follow(self, steps: Iterable[Step]) -> None:
        """Follows the dim through steps, in order."""
        for step in steps:
            if step.loop is not None:
                follow = {"loop": self._loop, "map": self._map, "when": self._loop}[step.loop.kind]
                follow(step, step.loop)
            elif step.op == "region":
                self.follow(step.body)
            elif self.values & set(step.inputs):
                self._reach(step.outputs)
            else:
                self._check_unreached(step)

    def check_outputs(self, outputs: Mapping[str, int]) -> None:
        """Makes sure that chunks of every output that is reached can be joined.

        Args:
            outputs: What they are called, and their values.
        """
        for name, index in outputs.items():
            spec = self._all[index].spec
            if index not in self.values or not isinstance(spec, TensorSpec):
                continue
            times = plain_dims(spec.dims).count(self.dim)
            ragged = [other for other in spec.names if other != self.dim and self._is_decided(other)]
            if times != 1:
                self._object(f"{name} depends on it {'and has it twice' if times else 'but lacks it'}")
            elif ragged:
                self._object(f"{name} has {ragged[0]!r} beside it, whose size every chunk decides anew")

    def _is_decided(self, name: str) -> bool:
        """Tells whether the size of another dim is decided by what is reached."""
        born = self._dims[name].born
        return name in self._counted or any(born and self._all[index].origin == born for index in self.values)

    def _object(self, clause: str) -> None:
        self.obstacle = self.obstacle or clause

    def _reach(self, made: Iterable[int]) -> None:
        for index in made:
            self.values.add(index)
            value = self._all[index]
            if not isinstance(value.spec, TensorSpec):
                self._object(f"{value.origin!r} depends on it and is a {show_spec(value.spec)}")

    def _check_unreached(self, step: Step) -> None:
        for index in step.outputs:
            value = self._all[index]
            if self.dim in _names(value) and not value.constant:
                self._object(f"{value.origin!r} has it, but is made of nothing that can be cut along it")

    def _loop(self, step: Step, loop: PlannedLoop) -> None:
        for whole, _ in loop.slices if loop.kind == "loop" else ():
            spec = self._all[whole].spec
            if isinstance(spec, TensorSpec) and self.dim in dim_names(spec.dims[0]):
                self._object(f"it is how often loop {loop.name!r} runs")
        before = -1
        while len(self.values) != before:  # what a carry brings in an iteration reaches the next one
            before = len(self.values)
            for start, head, following in loop.carries:
                if {start, following} & self.values:
                    self._reach((head,))
            self._reach(part for whole, part in loop.slices if whole in self.values)
            self.follow(step.body)
        if loop.condition is not None and loop.condition in self.values:
            self._object(
                f"the condition of branch {loop.name!r} ({self._all[loop.condition].origin!r}) depends on it"
            )
        if loop.until is not None and loop.until in self.values:  # each chunk runs as often as its items need
            self._reach(step.outputs)
            self._counted.add(loop.dim)
        ends = [*(head for _, head, _ in loop.carries), *loop.collects]
        self._reach(out for out, end in zip(step.outputs, ends, strict=True) if end in self.values)

    def _map(self, step: Step, loop: PlannedLoop) -> None:
        """Items are a batch by themselves: what is made of one hangs on no other."""
        per_item = False
        for whole, part in loop.slices:
            if whole not in self.values:
                continue
            spec = self._all[whole].spec
            per_item = True
            if not isinstance(spec, TensorSpec) or plain_dims(spec.dims[:1]) != (self.dim,):
                self._reach((part,))
        self.follow(step.body)
        pairs = zip(step.outputs, loop.collects, strict=True)
        self._reach(out for out, end in pairs if per_item or end in self.values)


def _names(value: PlannedValue) -> tuple[str, ...]:
    return value.spec.names if isinstance(value.spec, TensorSpec) else ()
