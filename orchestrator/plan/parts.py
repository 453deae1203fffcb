"""A request in chunks, in parts: what depends on the same cut dims runs together, once for each chunk of these alone.

What no cut dim reaches runs once for the whole request. A value that one part gives and another reads is kept from
run to run; where its device has one output buffer for each program, and the program may run again in between, a copy of
it is kept: what a chunk reads must not be what another call left there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from orchestrator.adapter import CLONE, MOVES, Adapter
from orchestrator.plan.chunks import SizeAssignment, chunk_sizes, combine
from orchestrator.plan.programs import place_of
from orchestrator.plan.records import DimPlan, PlanData, PlannedValue
from orchestrator.plan.steps import (
    HOST,
    AdaptStep,
    BranchStep,
    CallStep,
    LeafStep,
    LoopStep,
    Step,
    adapter_of,
    iter_steps,
)
from orchestrator.plan.updated import updatable_inputs
from orchestrator.specs import TensorSpec

__all__ = ["Part", "Parts", "split"]


@dataclass(frozen=True)
class Part:
    """Steps that depend on the same cut dims.

    Attributes:
        dims: These dims, in the order of the plan.
        steps: The steps, in order.
        reads: Values that it is given: inputs, and what other parts give.
        gives: Values that other parts read, or that are results.
        results: What it returns for each of these: the value, or its copy.
    """

    dims: tuple[str, ...]
    steps: tuple[Step, ...]
    reads: tuple[int, ...]
    gives: tuple[int, ...]
    results: tuple[int, ...]


@dataclass(frozen=True)
class Parts:
    """All parts of a plan for one set of cut dims.

    Attributes:
        plan: The plan, with the values that copies add.
        items: The parts; what one reads is given by an earlier one.
    """

    plan: PlanData
    items: tuple[Part, ...]

    @cached_property
    def owners(self) -> Mapping[int, Part]:
        """The part that gives each value that is kept."""
        return {index: part for part in self.items for index in part.gives}

    def join_dims(self, index: int) -> tuple[str, ...]:
        """Returns the dims along which chunks of a result are joined.

        A step that gives several values, as a loop does, runs once for each chunk of all that it reads; what it gives
        that has a cut dim not is the same in each of them (:class:`~orchestrator.plan.reach.Reach` saw to that).
        """
        spec = self.plan.values[index].spec
        names = spec.names if isinstance(spec, TensorSpec) else ()
        return tuple(name for name in self.owners[index].dims if name in names)

    def runs(
        self, dims: Sequence[DimPlan], sizes: Mapping[str, int], run: SizeAssignment
    ) -> Iterator[tuple[int, SizeAssignment]]:
        """Yields which part runs, by number, and at which sizes, in order.

        Args:
            dims: Dims of the request.
            sizes: Whole sizes.
            run: Sizes of all other names.
        """
        keys: set[tuple[int, tuple[int, ...]]] = set()
        for chunk in combine(dims, sizes, run):
            for number, part in enumerate(self.items):
                key = number, chunk.key(part.dims)
                if key not in keys:
                    keys.add(key)
                    yield number, chunk

    def uses(self, index: int, sizes: Mapping[str, int]) -> int:
        """Returns how many runs read one chunk of a value that is kept; being a result counts as one."""
        counts = {
            dim.name: len(chunk_sizes(sizes[dim.name], dim.buckets))
            for dim in self.plan.dims
            if dim.name in sizes and dim.can_chunk
        }
        own = self.owners[index].dims
        readers = (part.dims for part in self.items if index in part.reads)
        times = sum(prod(counts[name] for name in dims if name not in own) for dims in readers)
        return times + any(index == result for _, result in self.plan.outputs)


def split(plan: PlanData, cut: frozenset[str]) -> Parts:
    """Parts the steps of a plan by the cut dims that they depend on.

    Args:
        plan: The plan.
        cut: Dims that need more than one chunk.
    """
    order = [dim.name for dim in plan.dims if dim.name in cut]
    reach = {
        index: frozenset(spec.names) & cut if isinstance(spec, TensorSpec) else frozenset()
        for index, (_, spec) in enumerate(plan.inputs)
    }
    # Steps that read what the same cut dims reach are one group; what one gives is reached by all of these dims.
    groups: dict[frozenset[str], list[Step]] = {}
    for step in plan.steps:
        dims = frozenset[str]().union(*(reach.get(index, frozenset()) for index in step.inputs))
        reach.update(dict.fromkeys(step.outputs, dims))
        groups.setdefault(dims, []).append(step)
    aliases = {step.outputs[0]: step for step in plan.steps if place_of(step) == "consumer"}
    values = list(plan.values)
    for dims, steps in groups.items():
        _name_again(steps, aliases)
        groups[dims] = _with_clones(plan, values, steps)
    # From here on a group reads nothing that is no input, its own, or given by a group of fewer dims.
    products = {dims: {index for step in steps for index in step.outputs} for dims, steps in groups.items()}
    outside = {
        dims: {index for step in steps for index in step.inputs if index in reach} - products[dims]
        for dims, steps in groups.items()
    }
    read_outside = {index for _, index in plan.outputs}.union(*outside.values())
    # What another group reads is kept, as a copy where a later run would overwrite it.
    parts = []
    for dims in sorted(groups, key=len):
        gives = tuple(sorted(products[dims] & read_outside))
        read_later = {index for index in gives if any(index in other for other in outside.values())}
        copier = _Copier(plan, values, once=not dims)
        steps_with_copies, copies = copier.add_copies(groups[dims], read_later)
        results = tuple(copies.get(index, index) for index in gives)
        names = tuple(name for name in order if name in dims)
        parts.append(Part(names, steps_with_copies, tuple(sorted(outside[dims])), gives, results))
    return Parts(replace(plan, values=tuple(values)), tuple(parts))


def _name_again(steps: list[Step], aliases: Mapping[int, Step]) -> None:
    """Puts what gives a value another name, for the program that reads it, where that program runs."""
    while True:
        products = {index for step in steps for index in step.outputs}
        lacking = [
            aliases[index]
            for step in steps
            for index in step.inputs
            if index in aliases and index not in products
        ]
        if not lacking:
            return
        steps[:0] = [replace(lacking[0], frees=())]


def _with_clones(plan: PlanData, values: list[PlannedValue], steps: Sequence[Step]) -> list[Step]:
    """Gives every step of a part that may update a value in place a copy of it, for this run alone.

    Chunks share what they do not cut, and parts run in another order than the plan's steps, so that its proof that
    nobody needs the old value does not hold here.

    Args:
        plan: The plan.
        values: Its values; added to.
        steps: The steps of the part.
    """
    calls = {call.name: call for call in plan.calls}
    makers = {index: step for step in steps for index in step.outputs}
    result: list[Step] = []
    for step in steps:
        for index in updatable_inputs(calls, step):
            value, adapter = values[index], adapter_of(makers.get(index, step))
            is_own = index >= len(plan.inputs) and not value.constant and isinstance(value.spec, TensorSpec)
            if is_own and (adapter is None or adapter.kind != "clone"):
                values.append(replace(value, constant=False))
                clone = len(values) - 1
                result.append(AdaptStep((index,), (clone,), value.origin, CLONE, device=value.memory))
                step = _with_input(step, index, clone)
        result.append(step)
    return result


def _with_input(step: Step, index: int, other: int) -> Step:
    """A step that reads another value where it updates one, and frees that one afterwards."""
    inputs = tuple(other if item == index else item for item in step.inputs)
    frees = (*step.frees, other)
    match step:
        case LoopStep():
            carries = tuple(
                replace(carry, initial=other) if carry.initial == index else carry for carry in step.carries
            )
            return replace(step, inputs=tuple(sorted({*step.inputs, other})), carries=carries, frees=frees)
        case BranchStep():
            slices = tuple(
                replace(entry, whole=other) if entry.whole == index else entry for entry in step.slices
            )
            return replace(step, inputs=tuple(sorted({*step.inputs, other})), slices=slices, frees=frees)
    return replace(step, inputs=inputs, frees=frees)


class _Copier:
    """Adds copies of what lies in an output buffer that another run may overwrite.

    Args:
        plan: The plan.
        values: Its values; added to.
        once: The part runs once in a request.
    """

    def __init__(self, plan: PlanData, values: list[PlannedValue], *, once: bool) -> None:
        self._plan = plan
        self._values = values
        self._once = once
        self._device_of = {
            group.memory: group.device
            for group in plan.groups
            if group.output_buffers and group.memory != HOST
        }

    def add_copies(
        self, steps: Sequence[Step], read_later: set[int]
    ) -> tuple[tuple[Step, ...], dict[int, int]]:
        """Returns the steps with copies, and the copy of each value that has one."""
        makers = {index: step for step in steps for index in step.outputs}
        # What is unsafe lives until its copy is made, and until its last reader in this part is done.
        unsafe = {index for index in read_later if self._is_overwritten(index, makers)}
        last = {index: at for at, step in enumerate(steps) for index in step.inputs if index in unsafe}
        new_steps: list[Step] = []
        copies: dict[int, int] = {}
        for at, step in enumerate(steps):
            dies = tuple(index for index in unsafe if last.get(index) == at)
            frees = tuple(index for index in step.frees if index not in unsafe)
            new_steps.append(replace(step, frees=(*frees, *dies)))
            for index in sorted(unsafe & set(step.outputs)):
                copies[index] = self._copy(index, new_steps, dies=index not in last)
        return tuple(new_steps), copies

    def _copy(self, index: int, steps: list[Step], *, dies: bool) -> int:
        value = self._values[index]
        device, home = self._device_of[value.memory], len(self._values)
        self._values += [replace(value, memory=HOST), value]
        down, up = Adapter("download", device=HOST), Adapter("upload", device=device)
        frees = (index,) if dies else ()
        origin = value.origin
        steps.append(AdaptStep((index,), (home,), origin, down, device=value.memory, frees=frees))
        steps.append(AdaptStep((home,), (home + 1,), origin, up, device=device, frees=(home,)))
        return home + 1

    def _is_overwritten(self, index: int, makers: Mapping[int, Step]) -> bool:
        """Tells whether a value may lie in a buffer that a later run of this request writes to."""
        value = self._values[index]
        step = makers.get(index)
        if value.memory not in self._device_of or not isinstance(value.spec, TensorSpec) or step is None:
            return False
        match step:
            case AdaptStep(program="", adapter=adapter):
                # A move makes a tensor of its own; what else does nothing by itself is another name of the same.
                return adapter.kind not in MOVES and self._is_overwritten(step.inputs[0], makers)
            case LeafStep() if self._once:
                name = _program(step)
                return sum(_program(other) == name for other in iter_steps(self._plan.steps, LeafStep)) > 1
        return True


def _program(step: LeafStep) -> str:
    match step:
        case CallStep(program="", name=name):
            return name.partition("#")[0]
    return step.program
