"""What depends on a dim, so that it differs from chunk to chunk, and what of it cannot be cut or joined.

A value is *reached* by a dim that has the dim, or is made of a value that is reached: it may differ in each chunk.
Chunks can be joined where every output that is reached has the dim, once. What is reached and is no tensor stands in
the way: a Python value, the condition of a branch. What ends a loop does not: each chunk runs as many iterations as its
items need, which is all the same to items that are independent, and what the iterations collect cannot be joined.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from orchestrator.plan.records import DimPlan, PlannedValue
from orchestrator.plan.steps import BlockStep, BranchStep, LoopLikeStep, LoopStep, MapStep, Step, StepVisitor
from orchestrator.specs import TensorSpec, dim_names, plain_dims, show_spec

__all__ = ["Reach"]


class Reach(StepVisitor):
    """Follows one dim through steps.

    Args:
        dim: The dim.
        dims: All named dims.
        values: All values.
        inputs: Values that the steps are given.

    Attributes:
        values: Indices of values that are reached.
        obstacle: The first thing that stands in the way of chunks, a clause; empty: nothing does.
    """

    def __init__(
        self, dim: str, dims: Mapping[str, DimPlan], values: Sequence[PlannedValue], inputs: Iterable[int]
    ) -> None:
        self.dim = dim
        self.obstacle = ""
        self.values = {index for index in inputs if dim in _names(values[index])}
        self._dims = dims
        self._all = values
        self._loop_dims: set[str] = (
            set()
        )  # dims that are how often a loop runs, where what is reached ends it

    def visit_step(self, step: Step) -> None:
        """Follows the dim through one step: into a body, or from what it reads to what it gives."""
        match step:
            case BlockStep():
                super().visit_step(step)
            case _ if self.values & set(step.inputs):
                self._reach(step.outputs)
            case _:
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
            others = [other for other in spec.names if other != self.dim and self._is_decided(other)]
            if times != 1:
                self._object(f"{name} depends on it {'and has it twice' if times else 'but lacks it'}")
            elif others:
                self._object(f"{name} has {others[0]!r} beside it, whose size every chunk decides anew")

    def _is_decided(self, name: str) -> bool:
        """Tells whether the size of another dim is decided by what is reached."""
        origin = self._dims[name].decided_by
        return name in self._loop_dims or any(
            origin and self._all[index].origin == origin for index in self.values
        )

    def _object(self, clause: str) -> None:
        self.obstacle = self.obstacle or clause

    def _reach(self, indices: Iterable[int]) -> None:
        for index in indices:
            self.values.add(index)
            value = self._all[index]
            if not isinstance(value.spec, TensorSpec):
                self._object(f"{value.origin!r} depends on it and is a {show_spec(value.spec)}")

    def _check_unreached(self, step: Step) -> None:
        for index in step.outputs:
            value = self._all[index]
            if self.dim in _names(value) and not value.constant:
                self._object(f"{value.origin!r} has it, but is made of nothing that can be cut along it")

    def visit_loop(self, step: LoopStep) -> None:
        """Follows the dim through iterations; where the dim counts them, they cannot be cut."""
        for entry in step.slices:
            spec = self._all[entry.whole].spec
            if isinstance(spec, TensorSpec) and self.dim in dim_names(spec.dims[0]):
                self._object(f"it is how often loop {step.name!r} runs")
        self._iterate(step)
        # Each chunk runs as often as its items need, be it never.
        if {step.until, step.condition} & self.values:
            self._reach(step.outputs)
            self._loop_dims.add(step.steps_dim)
        self._leave(step)

    def visit_branch(self, step: BranchStep) -> None:
        """Follows the dim through a branch; what it hangs on must be the same in all chunks."""
        self._iterate(step)
        if step.condition is not None and step.condition in self.values:
            condition = self._all[step.condition].origin
            self._object(f"the condition of branch {step.name!r} ({condition!r}) depends on it")
        self._leave(step)

    def _iterate(self, step: LoopLikeStep) -> None:
        before = -1
        while len(self.values) != before:  # what a carry brings in an iteration reaches the next one
            before = len(self.values)
            for carry in step.carries:
                if {carry.initial, carry.yielded} & self.values:
                    self._reach((carry.argument,))
            self._reach(entry.part for entry in step.slices if entry.whole in self.values)
            self.visit(step.body)

    def _leave(self, step: LoopLikeStep) -> None:
        ends = [*(carry.argument for carry in step.carries), *step.collects]
        self._reach(out for out, end in zip(step.outputs, ends, strict=True) if end in self.values)

    def visit_map(self, step: MapStep) -> None:
        """Items are a batch by themselves: what is made of one hangs on no other."""
        per_item = False
        for entry in step.slices:
            if entry.whole not in self.values:
                continue
            spec = self._all[entry.whole].spec
            per_item = True
            if not isinstance(spec, TensorSpec) or plain_dims(spec.dims[:1]) != (self.dim,):
                self._reach((entry.part,))
        self.visit(step.body)
        pairs = zip(step.outputs, step.collects, strict=True)
        self._reach(out for out, end in pairs if per_item or end in self.values)


def _names(value: PlannedValue) -> tuple[str, ...]:
    return value.spec.names if isinstance(value.spec, TensorSpec) else ()
