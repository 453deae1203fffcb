"""Verify, fourth part: what hangs a loop's iterations together keeps its form and its place."""

from __future__ import annotations

import torch

from orchestrator.plan.model import Plan
from orchestrator.plan.records import PlannedValue
from orchestrator.plan.steps import HOST, PlannedLoop, Step
from orchestrator.planner.verify.edges import demand, same_spec
from orchestrator.specs import StepsDim, TensorSpec, combinations, plain_dims

__all__ = ["check_left", "check_loop"]


def check_loop(plan: Plan, step: Step) -> PlannedLoop:
    """Checks the record of a loop against the values it speaks of.

    Args:
        plan: The plan.
        step: The loop.

    Returns:
        The record.

    Raises:
        PlanError: They differ.
    """
    demand(plan, step.loop is not None and step.loop.name == step.name, f"loop {step.name!r} has no record")
    assert step.loop is not None
    _LoopChecker(plan, step, step.loop).run()
    return step.loop


def check_left(plan: Plan, step: Step, before: set[int], after: set[int]) -> None:
    """Checks what is alive after an iteration.

    Args:
        plan: The plan.
        step: The loop.
        before: What was alive before it, outside.
        after: What is alive after it.

    Raises:
        PlanError: The iteration frees what is not its own, lacks what the next one reads, or leaves something behind.
    """
    assert step.loop is not None
    lost, ends = before - after, set(step.loop.ends)
    demand(plan, not lost, f"loop {step.name!r} frees values {sorted(lost)[:3]}, which are not its own")
    demand(plan, ends <= after, f"loop {step.name!r} lacks values {sorted(ends - after)[:3]} at its end")
    left = after - before - ends
    idle = not step.body
    demand(plan, idle or not left, f"loop {step.name!r} leaves values {sorted(left)[:3]} behind")


class _LoopChecker:
    def __init__(self, plan: Plan, step: Step, loop: PlannedLoop) -> None:
        self.plan = plan
        self.step = step
        self.loop = loop

    def _demand(self, holds: bool, what: str) -> None:
        demand(self.plan, holds, f"loop {self.step.name!r} {what}")

    def _value(self, index: int) -> PlannedValue:
        self._demand(0 <= index < len(self.plan.values), f"speaks of value {index}, which there is not")
        return self.plan.values[index]

    def run(self) -> None:
        loop, finals = self.loop, self.step.outputs[: len(self.loop.carries)]
        stacked = self.step.outputs[len(loop.carries) :]
        self._demand(len(finals) == len(loop.carries), "does not give all its carries")
        self._demand(len(stacked) == len(loop.collects), "does not give all it collects")
        for final, (start, head, following) in zip(finals, loop.carries, strict=True):
            for index in (start, following, final):
                self._same(head, index)
        self._demand(loop.kind in ("loop", "map", "when"), f"is a {loop.kind!r}")
        for whole, part in loop.slices:
            check = {"loop": self._slice, "map": self._batch, "when": self._pass}[loop.kind]
            check(whole, part)
        for part, index in zip(loop.collects, stacked, strict=True):
            self._stack(part, index)
        if loop.kind == "loop":
            self._numbers()
        else:
            self._once()
        self._inputs()

    def _once(self) -> None:
        """A map and a branch have no end of their own, and a branch has something to hang on."""
        loop = self.loop
        plain = loop.until is None and loop.max_steps is None and loop.check_every == 1
        self._demand(plain, "is no loop, but ends like one")
        self._demand((loop.kind == "map") == bool(loop.dim), f"counts {loop.dim!r}")
        if loop.kind == "map":
            self._demand(loop.condition is None and not loop.carries, "is a map with a condition or a carry")
            return
        maybe = {index for index, (name, _) in enumerate(self.plan.inputs) if name in self.plan.optional}
        hangs = loop.condition is not None or any(whole in maybe for whole, _ in loop.slices)
        self._demand(hangs, "is a branch that nothing decides on")
        if loop.condition is not None:
            self._demand(self._boolean(loop.condition), "has a condition that is not one boolean on the host")

    def _boolean(self, index: int) -> bool:
        value = self._value(index)
        spec = value.spec
        one = isinstance(spec, TensorSpec) and spec.dtype is torch.bool and all(dim == 1 for dim in spec.dims)
        return (spec is bool or one) and value.memory == HOST

    def _batch(self, whole: int, part: int) -> None:
        one, other = self._value(whole), self._value(part)
        dims = other.spec.dims[:1] if isinstance(other.spec, TensorSpec) else ()
        listed = one.spec is list or isinstance(one.spec, TensorSpec)
        sound = listed and plain_dims(dims) == (self.loop.dim,) and one.memory == other.memory == HOST
        self._demand(sound and other.real, f"makes batches, value {part}, of value {whole}")

    def _pass(self, whole: int, part: int) -> None:
        one, other = self._value(whole), self._value(part)
        same = same_spec(one.spec, other.spec) and (one.memory, one.real) == (other.memory, other.real)
        self._demand(same, f"hands value {whole} on as value {part}")

    def _numbers(self) -> None:
        loop = self.loop
        ends = bool(loop.slices) or loop.max_steps is not None
        sound = ends and (loop.max_steps or 0) >= 0 and loop.check_every >= 1
        self._demand(sound, f"runs {loop.max_steps} times at most, and is checked every {loop.check_every}")
        if loop.until is not None:
            self._demand(self._boolean(loop.until), "is ended by what is not one boolean on the host")
        decided = loop.until is not None or (bool(loop.dim) and loop.max_steps is not None)
        name = next(
            (
                dim.name
                for dim in self.plan.dims
                if isinstance(dim.name, StepsDim) and dim.born == f"{loop.name}.steps"
            ),
            "",
        )
        self._demand(loop.dim == name, f"decides the dim {loop.dim!r}")
        self._demand(bool(name) == decided, "does not say who decides its iterations")

    def _same(self, head: int, index: int) -> None:
        one, other = self._value(head), self._value(index)
        same = (one.memory, one.real) == (other.memory, other.real) or (
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

    def _slice(self, whole: int, part: int) -> None:
        one, other = self._value(whole), self._value(part)
        compiled = {group.memory for group in self.plan.groups if group.compiled}
        sound = (
            isinstance(one.spec, TensorSpec)
            and isinstance(other.spec, TensorSpec)
            and same_spec(TensorSpec(one.spec.dims[1:], one.spec.dtype), other.spec)
            and one.memory == other.memory
            and one.memory not in compiled
        )
        named = isinstance(one.spec, TensorSpec) and bool(one.spec.names)
        self._demand(
            sound and (one.real or one.constant or not named), f"cuts value {part} out of value {whole}"
        )

    def _stack(self, part: int, index: int) -> None:
        one, other = self._value(part), self._value(index)
        if self.loop.kind == "map":
            sound = other.spec is list or isinstance(other.spec, TensorSpec)
            sound = sound and one.memory == HOST and one.real
        elif isinstance(one.spec, TensorSpec):
            sound = isinstance(other.spec, TensorSpec) and same_spec(
                TensorSpec(other.spec.dims[1:], other.spec.dtype), one.spec
            )
        else:
            sound = other.spec is list
        self._demand(sound and one.memory == other.memory, f"stacks value {part} to value {index}")

    def _inputs(self) -> None:
        loop, body = self.loop, self.step.body
        made = {index for step in body for index in step.outputs} | set(loop.heads)
        read = {index for step in body for index in step.inputs} | set(loop.ends)
        wanted = {start for start, _, _ in loop.carries} | {whole for whole, _ in loop.slices} | (read - made)
        wanted |= set() if loop.condition is None else {loop.condition}
        self._demand(sorted(wanted) == sorted(self.step.inputs), "reads other values than it says")
