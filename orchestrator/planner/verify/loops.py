"""Verify, fourth part: what hangs a loop's iterations together keeps its form and its place."""

from __future__ import annotations

import torch

from orchestrator.plan.model import Plan
from orchestrator.plan.records import PlannedValue
from orchestrator.plan.steps import HOST, BranchStep, LoopLikeStep, LoopStep, MapStep, Slice
from orchestrator.planner.verify.edges import demand, same_spec
from orchestrator.specs import StepsDim, TensorSpec, combinations, plain_dims

__all__ = ["check_left", "check_loop"]


def check_loop(plan: Plan, step: LoopLikeStep) -> None:
    """Checks what a loop says of itself against the values it speaks of.

    Args:
        plan: The plan.
        step: The loop.

    Raises:
        PlanError: They differ.
    """
    _LoopChecker(plan, step).run()


def check_left(plan: Plan, step: LoopLikeStep, before: set[int], after: set[int]) -> None:
    """Checks what is alive after an iteration.

    Args:
        plan: The plan.
        step: The loop.
        before: What was alive before it, outside.
        after: What is alive after it.

    Raises:
        PlanError: The iteration frees what is not its own, lacks what the next one reads, or leaves something behind.
    """
    missing, yields = before - after, set(step.yields)
    demand(plan, not missing, f"loop {step.name!r} frees values {sorted(missing)[:3]}, which are not its own")
    demand(plan, yields <= after, f"loop {step.name!r} lacks values {sorted(yields - after)[:3]} at its end")
    left = after - before - yields
    idle = not step.body
    demand(plan, idle or not left, f"loop {step.name!r} leaves values {sorted(left)[:3]} behind")


class _LoopChecker:
    def __init__(self, plan: Plan, step: LoopLikeStep) -> None:
        self.plan = plan
        self.step = step

    def _demand(self, holds: bool, what: str) -> None:
        demand(self.plan, holds, f"loop {self.step.name!r} {what}")

    def _value(self, index: int) -> PlannedValue:
        self._demand(0 <= index < len(self.plan.values), f"speaks of value {index}, which there is not")
        return self.plan.values[index]

    def run(self) -> None:
        # Results and stacks pair up with carries and collects by place: first that there are as many.
        step = self.step
        self._demand(len(step.results) == len(step.carries), "does not give all its carries")
        self._demand(len(step.stacks) == len(step.collects), "does not give all it collects")
        own_names = all(self._value(index).origin.startswith(f"{step.name}.") for index in step.arguments)
        self._demand(own_names, "has the arguments of another loop")
        # A carry is one buffer's form over its whole life: what it starts with, what the body gives, what the loop
        # gives.
        for carry, result in zip(step.carries, step.results, strict=True):
            for index in (carry.initial, carry.yielded, result):
                self._same(carry.argument, index)
        match step:
            case MapStep():
                self._map(step)
            case BranchStep():
                self._branch(step)
            case LoopStep():
                self._loop(step)
        self._inputs()

    def _map(self, step: MapStep) -> None:
        for entry in step.slices:
            self._batch(entry, step.items_dim)
        for part, index in zip(step.collects, step.stacks, strict=True):
            one, other = self._value(part), self._value(index)
            sound = other.spec is list or isinstance(other.spec, TensorSpec)
            sound = sound and one.memory == other.memory == HOST and one.unpadded
            self._demand(sound, f"stacks value {part} to value {index}")
        self._demand(bool(step.items_dim), f"counts {step.items_dim!r}")
        self._demand(not step.carries, "is a map with a carry")

    def _branch(self, step: BranchStep) -> None:
        """A branch has something to hang on."""
        for entry in step.slices:
            one, other = self._value(entry.whole), self._value(entry.part)
            same = same_spec(one.spec, other.spec) and (one.memory, one.unpadded) == (
                other.memory,
                other.unpadded,
            )
            self._demand(same, f"hands value {entry.whole} on as value {entry.part}")
        self._demand(not step.collects, "is a branch that collects")
        maybe = {index for index, (name, _) in enumerate(self.plan.inputs) if name in self.plan.optional}
        hangs = step.condition is not None or any(entry.whole in maybe for entry in step.slices)
        self._demand(hangs, "is a branch that nothing decides on")
        if step.condition is not None:
            self._demand(self._boolean(step.condition), "has a condition that is not one boolean on the host")

    def _loop(self, step: LoopStep) -> None:
        for entry in step.slices:
            self._slice(entry)
        for part, index in zip(step.collects, step.stacks, strict=True):
            self._stack(part, index)
        self._numbers(step)

    def _boolean(self, index: int) -> bool:
        value = self._value(index)
        spec = value.spec
        one = isinstance(spec, TensorSpec) and spec.dtype is torch.bool and all(dim == 1 for dim in spec.dims)
        return (spec is bool or one) and value.memory == HOST

    def _batch(self, entry: Slice, dim: str) -> None:
        one, other = self._value(entry.whole), self._value(entry.part)
        dims = other.spec.dims[:1] if isinstance(other.spec, TensorSpec) else ()
        has_items = one.spec is list or isinstance(one.spec, TensorSpec)
        sound = has_items and plain_dims(dims) == (dim,) and one.memory == other.memory == HOST
        self._demand(sound and other.unpadded, f"makes batches, value {entry.part}, of value {entry.whole}")

    def _numbers(self, step: LoopStep) -> None:
        """How often it runs, and the dim that is this number where it is the loop that decides it."""
        ends = bool(step.slices) or step.max_steps is not None
        sound = ends and (step.max_steps or 0) >= 0 and step.check_every >= 1
        self._demand(sound, f"runs {step.max_steps} times at most, and is checked every {step.check_every}")
        if step.until is not None:
            self._demand(self._boolean(step.until), "is ended by what is not one boolean on the host")
        if step.condition is not None:
            self._demand(self._boolean(step.condition), "has a condition that is not one boolean on the host")
            self._demand(step.until is not None, "has a condition, but nothing ends it")
        decides = step.until is not None or (bool(step.steps_dim) and step.max_steps is not None)
        births = (dim for dim in self.plan.dims if dim.decided_by == f"{step.name}.steps")
        name = next((dim.name for dim in births if isinstance(dim.name, StepsDim)), "")
        self._demand(step.steps_dim == name, f"decides the dim {step.steps_dim!r}")
        self._demand(bool(name) == decides, "does not say who decides its iterations")

    def _same(self, head: int, index: int) -> None:
        one, other = self._value(head), self._value(index)
        same = (one.memory, one.unpadded) == (other.memory, other.unpadded) or (
            other.constant and one.memory == other.memory
        )
        if isinstance(one.spec, TensorSpec) and isinstance(other.spec, TensorSpec):
            fits = one.spec.dtype == other.spec.dtype and self._equal(one.spec, other.spec)
        else:
            fits = one.spec is other.spec
        self._demand(same and fits, f"carries {one.origin!r} in another form or place than value {index}")

    def _equal(self, one: TensorSpec, other: TensorSpec) -> bool:
        if plain_dims(one.dims) == plain_dims(other.dims):
            return True
        buckets = {dim.name: dim.buckets for dim in self.plan.dims}
        names = dict.fromkeys((*one.names, *other.names))
        return all(one.shape(sizes) == other.shape(sizes) for sizes in combinations(names, buckets))

    def _slice(self, entry: Slice) -> None:
        one, other = self._value(entry.whole), self._value(entry.part)
        # A slice is a view, which only a device with eager compute (or the host) can read; and it must be cut from a
        # value at its own size, or from one that has no other, lest an iteration gets nothing but padding.
        program_memories = {group.memory for group in self.plan.groups if group.runs_programs}
        sound = (
            isinstance(one.spec, TensorSpec)
            and isinstance(other.spec, TensorSpec)
            and same_spec(TensorSpec(one.spec.dims[1:], one.spec.dtype), other.spec)
            and one.memory == other.memory
            and one.memory not in program_memories
        )
        has_names = isinstance(one.spec, TensorSpec) and bool(one.spec.names)
        self._demand(
            sound and (one.unpadded or one.constant or not has_names),
            f"cuts value {entry.part} out of value {entry.whole}",
        )

    def _stack(self, part: int, index: int) -> None:
        one, other = self._value(part), self._value(index)
        if isinstance(one.spec, TensorSpec):
            sound = isinstance(other.spec, TensorSpec) and same_spec(
                TensorSpec(other.spec.dims[1:], other.spec.dtype), one.spec
            )
        else:
            sound = other.spec is list
        self._demand(sound and one.memory == other.memory, f"stacks value {part} to value {index}")

    def _inputs(self) -> None:
        """It reads what enters it, and what its body reads and does not make; no more."""
        step = self.step
        own = {index for inner in step.body for index in inner.outputs} | set(step.arguments)
        read = {index for inner in step.body for index in inner.inputs} | set(step.yields)
        entries = {*(carry.initial for carry in step.carries), *(entry.whole for entry in step.slices)}
        inputs = entries | (read - own)
        match step:
            case BranchStep(condition=int(condition)) | LoopStep(condition=int(condition)):
                inputs.add(condition)
        self._demand(sorted(inputs) == sorted(step.inputs), "reads other values than it says")
