"""Outputs that stay on their device: the plan without the downloads that only they would have needed.

A kept output is the value before its download. The download itself stays where somebody else reads what it brings:
a host stage, or the same value handed out under another name. Where a program owns its output buffer, the next request
overwrites it, and what a device of static shapes gives is cut on the host: there a kept output is what was downloaded,
put on the device again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from orchestrator.adapter import CLONE, MOVES, Adapter
from orchestrator.plan.model import Plan
from orchestrator.plan.records import PlannedCall, PlannedValue
from orchestrator.plan.steps import HOST, AdaptStep, RegionStep, Step, body_of, iter_steps, with_body
from orchestrator.plan.updated import updatable_inputs
from orchestrator.runner.sharing import Sharing
from orchestrator.specs import PortSpec, TensorSpec

__all__ = ["keep_on_device", "with_frees"]


def keep_on_device(plan: Plan, names: Collection[str]) -> Plan:
    """Returns the plan that hands these outputs out where they were made; those made in host memory stay there."""
    outputs_before, values_before = {index for _, index in plan.outputs}, len(plan.values)
    # Where the next request overwrites an output, it is downloaded and put on the device again.
    copies = _outputs_to_copy(plan, names)
    if copies:
        plan = _with_copies(plan, copies)
        names = [name for name in names if name not in copies]
    # What is updated in place after its download is handed out as it was then.
    plan = _with_clones(plan, {index for name, index in plan.outputs if name in names})
    # The others are handed out as they are before their download, which goes unless somebody else reads what it brings.
    before = {
        step.outputs[0]: step.inputs[0]
        for step in iter_steps(plan.steps, AdaptStep)
        if step.adapter.kind == "download"
    }
    outputs = tuple(
        (name, before.get(index, index) if name in names else index) for name, index in plan.outputs
    )
    unused_values = {index for _, index in plan.outputs} - {index for _, index in outputs}
    new_outputs = {index for _, index in outputs} - {index for _, index in plan.outputs}
    unused_values -= {index for step in _doers(plan.steps) for index in step.inputs}
    # Outputs are freed by nobody; those that are outputs no more, and what copying made on the way, die like any value.
    new_values = set(range(values_before, len(plan.values)))
    dying = (outputs_before | new_values) - {index for _, index in outputs} - unused_values
    return replace(
        plan, outputs=outputs, steps=with_frees(_steps(plan.steps, new_outputs, unused_values), dying)
    )


def _steps(steps: Iterable[Step], new_outputs: set[int], unused_values: set[int]) -> tuple[Step, ...]:
    """Steps that do not free new outputs and do not make values that nobody reads; regions hand new outputs out."""
    new_steps = []
    for step in steps:
        match step:
            case AdaptStep(outputs=(target,)) if target in unused_values:
                continue
        inner = {index for part in body_of(step) for index in part.outputs}
        outputs = [index for index in step.outputs if index not in unused_values]
        outputs += [index for index in sorted(new_outputs & inner) if index not in outputs]
        frees = tuple(index for index in step.frees if index not in new_outputs)
        block = with_body(step, _steps(body_of(step), new_outputs, unused_values))
        new_steps.append(replace(block, outputs=tuple(outputs), frees=frees))
    return tuple(new_steps)


def with_frees(steps: Sequence[Step], indices: set[int]) -> tuple[Step, ...]:
    """Has the last step that makes or reads a value free it."""
    last = {
        index: at
        for at, step in enumerate(steps)
        for index in (*step.outputs, *step.inputs)
        if index in indices
    }
    frees: dict[int, list[int]] = {}
    for index, at in sorted(last.items()):
        frees.setdefault(at, []).append(index)
    return tuple(
        replace(step, frees=(*step.frees, *frees[at])) if at in frees else step
        for at, step in enumerate(steps)
    )


def _with_clones(plan: Plan, indices: Collection[int]) -> Plan:
    """Puts a copy on the device before downloads, where a later step updates what they read."""
    calls = {call.name: call for call in plan.calls}
    if not any(call.aliases for call in plan.calls):
        return plan
    values = list(plan.values)
    steps = _cloning_steps(plan.steps, indices, calls, values, Sharing(plan))
    return replace(plan, steps=steps, values=tuple(values))


def _cloning_steps(
    steps: Sequence[Step],
    indices: Collection[int],
    calls: Mapping[str, PlannedCall],
    values: list[PlannedValue],
    sharing: Sharing,
) -> tuple[Step, ...]:
    """Steps in which the downloads that give these values read a copy, where a later step updates what they read."""
    # What is read later in these steps is told by their order alone; a body has values of its own.
    result: list[Step] = []
    for at, step in enumerate(steps):
        match step:
            case AdaptStep(inputs=(source,), outputs=(target,), adapter=adapter) if (
                target in indices and adapter.kind == "download"
            ):
                later = {index for other in steps[at + 1 :] for index in updatable_inputs(calls, other)}
                if any(sharing.is_joined(source, index) for index in later):
                    values.append(values[source])
                    clone = len(values) - 1
                    result.append(replace(step, outputs=(clone,), adapter=CLONE))
                    step = replace(step, inputs=(clone,), frees=())
        result.append(with_body(step, _cloning_steps(body_of(step), indices, calls, values, sharing)))
    return tuple(result)


def _doers(steps: Iterable[Step]) -> Iterator[Step]:
    """All steps that read and make values themselves; a region only hands on what its body reads and makes."""
    for step in iter_steps(steps):
        match step:
            case RegionStep():
                continue
        yield step


def _outputs_to_copy(plan: Plan, names: Collection[str]) -> dict[str, tuple[str, PortSpec]]:
    """Outputs to put on a device again, with the device and their spec there.

    Those in a buffer that the next request overwrites, and those that are cut or cast on the host after their download,
    as a device that computes at its buckets alone cannot.
    """
    makers = {index: step for step in _doers(plan.steps) for index in step.outputs}
    kinds = {step.outputs[0]: step.adapter.kind for step in iter_steps(plan.steps, AdaptStep)}
    groups = {group.memory: group for group in plan.groups if group.memory != HOST}
    copies: dict[str, tuple[str, PortSpec]] = {}
    for name, index in plan.outputs:
        if name not in names:
            continue
        # Back over the download and what follows it on the host, to the value as the device holds it.
        step, last_kind = makers.get(index), kinds.get(index, "download")
        while isinstance(step, AdaptStep) and plan.values[index].memory == HOST:
            index = step.inputs[0]
            step = makers.get(index)
        value = plan.values[index]
        group = groups.get(value.memory)
        if group is not None and (last_kind not in MOVES or group.overwrites_outputs):
            copies[name] = group.device, value.spec
    return copies


def _with_copies(plan: Plan, copies: Mapping[str, tuple[str, PortSpec]]) -> Plan:
    """Puts outputs on their device again, in the dtype that it holds."""
    values, steps, outputs = list(plan.values), list(plan.steps), []

    def add(source: int, adapter: Adapter, memory: str, spec: PortSpec) -> int:
        values.append(replace(values[source], memory=memory, spec=spec))
        steps.append(AdaptStep((source,), (len(values) - 1,), values[source].origin, adapter, device=memory))
        return len(values) - 1

    # The copy is of the result at its own size; only a dtype that the device does not hold is narrowed again.
    for name, index in plan.outputs:
        if name in copies:
            device, device_spec = copies[name]
            spec = values[index].spec
            if (
                isinstance(spec, TensorSpec)
                and isinstance(device_spec, TensorSpec)
                and spec.dtype != device_spec.dtype
            ):
                spec = replace(spec, dtype=device_spec.dtype)
                index = add(index, Adapter("cast", dtype=device_spec.dtype), HOST, spec)
            index = add(index, Adapter("upload", device=device), device, spec)
        outputs.append((name, index))
    return replace(plan, values=tuple(values), steps=tuple(steps), outputs=tuple(outputs))
