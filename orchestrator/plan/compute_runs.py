"""Runs of steps that can be one program: calls of one torch device, and the adapters between them.

A run begins and ends with a call. What stands between two of its calls depends on no size of a request: it moves
nothing, and pads or cuts no named dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from orchestrator.adapter import MOVES
from orchestrator.plan.records import PlanData, PlannedCall
from orchestrator.plan.steps import HOST, AdaptStep, CallStep, Step, adapter_of, body_of, iter_steps
from orchestrator.plan.updated import updates_of
from orchestrator.specs import TensorSpec, combinations

__all__ = ["ComputeRun", "compute_runs", "obstacle", "runs_of", "sizes_of"]

#: Kinds of torch devices that regions are compiled for.
_KINDS = ("cpu", "cuda")


@dataclass(frozen=True)
class ComputeRun:
    """The steps of one run, and what crosses its ends.

    Attributes:
        steps: Its steps.
        inputs: Values that it reads and does not make.
        outputs: Values that it makes and that are read after it, without those that are an input, updated in place.
        updates: Values that it makes and that are read after it, each with the input that it is, updated in place.
        frees: Values that die in it and were there before it.
    """

    steps: tuple[Step, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    updates: tuple[tuple[int, int], ...]
    frees: tuple[int, ...]

    @property
    def calls(self) -> tuple[str, ...]:
        """Its calls, in order."""
        return tuple(step.name for step in iter_steps(self.steps, CallStep))

    def begins(self, steps: Sequence[Step]) -> bool:
        """Tells whether steps begin with those of this run, of the same values."""
        return len(steps) >= len(self.steps) and all(
            type(one) is type(other) and (one.inputs, one.outputs) == (other.inputs, other.outputs)
            for one, other in zip(self.steps, steps, strict=False)
        )


def obstacle(plan: PlanData, call: PlannedCall) -> str:
    """Returns why a call can be in no run, a clause; empty: nothing is in the way."""
    groups = {group.device: group for group in plan.groups}
    if call.device == HOST:
        return "it runs on the host"
    if groups[call.device].runs_programs:
        return f"{call.device!r} compiles every stage by itself"
    if call.device.partition(":")[0] not in _KINDS:
        return f"regions are compiled for {' and '.join(_KINDS)}, not for {call.device!r}"
    if call.is_declared:
        return "what it gives rests on its author's word, and is checked at each call"
    open_ended = {dim.name for dim in plan.dims if dim.unbounded}
    for port, spec in (*call.inputs, *call.outputs):
        if not isinstance(spec, TensorSpec):
            return f"its port {port!r} is a Python value"
        if spec.dtype.is_complex:
            return f"its port {port!r} is complex"
        if loose := sorted(open_ended & set(spec.names)):
            return f"dim {str(loose[0])!r} of its port {port!r} has any size; buckets would give it a few"
    return ""


def compute_runs(plan: PlanData, is_part: Callable[[str], bool]) -> Iterator[ComputeRun]:
    """Yields the longest runs of calls that are to be part of one, in the order of the steps.

    Args:
        plan: The plan.
        is_part: Tells whether a call is to be part of a run.
    """
    optional = {index for index, (name, _) in enumerate(plan.inputs) if name in plan.optional}

    def walk(steps: Sequence[Step]) -> Iterator[ComputeRun]:
        run: list[Step] = []
        for step in steps:
            match step:
                case CallStep(name=name, locks=(), unlocks=()) if is_part(name) and not optional & set(
                    step.inputs
                ):
                    if run and run[0].device != step.device:
                        yield from _finish(plan, run)
                        run = []
                    run.append(step)
                case AdaptStep(locks=(), unlocks=()) if run and _is_inner(plan, step, run[0].device):
                    run.append(step)
                case _:
                    yield from _finish(plan, run)
                    run = []
                    yield from walk(body_of(step))
        yield from _finish(plan, run)

    return walk(plan.steps)


def _is_inner(plan: PlanData, step: AdaptStep, device: str) -> bool:
    """Tells whether an adapter may stand within a run: it depends on neither sizes nor contents."""
    adapter = step.adapter
    memory = next(group.memory for group in plan.groups if group.device == device)
    source, target = (plan.values[index] for index in (step.inputs[0], step.outputs[0]))
    if adapter.kind in MOVES or step.program or {source.memory, target.memory} != {memory}:
        return False
    if not isinstance(source.spec, TensorSpec) or not isinstance(target.spec, TensorSpec):
        return False
    if adapter.kind == "cast":
        # One to integers looks at each number, whether it fits.
        return target.spec.dtype.is_floating_point
    return adapter.kind == "clone" or not (source.spec.names or target.spec.names)


def _finish(plan: PlanData, steps: list[Step]) -> Iterator[ComputeRun]:
    """The run of these steps, without the adapters after its last call."""
    while steps and adapter_of(steps[-1]) is not None:
        steps.pop()
    if steps:
        yield _describe(plan, tuple(steps))


def _describe(plan: PlanData, steps: tuple[Step, ...]) -> ComputeRun:
    calls = {call.name: call for call in plan.calls}
    own = [index for step in steps for index in step.outputs]
    inputs = dict.fromkeys(index for step in steps for index in step.inputs if index not in set(own))
    frees = dict.fromkeys(index for step in steps for index in step.frees)
    # A value that is another one, updated in place, is that one's memory: what began outside of the run stays there.
    memory: dict[int, int] = {}
    for step in iter_steps(steps, CallStep):
        for output, source in updates_of(calls[step.name], step).items():
            memory[output] = memory.get(source, source)
    results = [index for index in own if index not in frees]
    updates = {index: memory[index] for index in results if memory.get(index) in inputs}
    return ComputeRun(
        steps,
        tuple(inputs),
        tuple(index for index in results if index not in updates),
        tuple(updates.items()),
        tuple(index for index in frees if index in inputs),
    )


def runs_of(plan: PlanData) -> dict[str, ComputeRun]:
    """Returns the run of each compiled region, by the region's name."""
    names = {region.calls: region.name for region in plan.compiled}
    calls = {call for region in plan.compiled for call in region.calls}
    return {names[run.calls]: run for run in compute_runs(plan, calls.__contains__) if run.calls in names}


def sizes_of(plan: PlanData, run: ComputeRun) -> list[dict[str, int]]:
    """Returns the combinations of buckets that a run has a program for, the largest last."""
    specs = [plan.values[index].spec for index in run.inputs]
    names = dict.fromkeys(name for spec in specs if isinstance(spec, TensorSpec) for name in spec.names)
    return list(combinations(names, {dim.name: dim.buckets for dim in plan.dims}))
