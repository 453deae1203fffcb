"""Outputs that stay on their device: the plan without the downloads that only they would have needed.

A kept output is the value before its download. The download itself stays where somebody else reads what it brings:
a host stage, or the same value handed out under another name. Where a program owns its output buffer, the next request
overwrites it: there a kept output is what was downloaded, put on the device again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from orchestrator.adapter import Adapter
from orchestrator.plan.model import Plan
from orchestrator.plan.steps import HOST, AdaptStep, RegionStep, Step, body_of, iter_steps, with_body
from orchestrator.specs import PortSpec, TensorSpec

__all__ = ["keep_on_device"]


def keep_on_device(plan: Plan, names: Collection[str]) -> Plan:
    """Returns the plan that hands these outputs out where they were made; those made in host memory stay there."""
    copied = _copied(plan, names)
    if copied:
        plan = _with_copies(plan, copied)
        names = [name for name in names if name not in copied]
    before = {
        step.outputs[0]: step.inputs[0]
        for step in iter_steps(plan.steps, AdaptStep)
        if step.adapter.kind == "download"
    }
    outputs = tuple(
        (name, before.get(index, index) if name in names else index) for name, index in plan.outputs
    )
    dropped = {index for _, index in plan.outputs} - {index for _, index in outputs}
    kept = {index for _, index in outputs} - {index for _, index in plan.outputs}
    dropped -= {index for step in _doers(plan.steps) for index in step.inputs}
    return replace(plan, outputs=outputs, steps=_steps(plan.steps, kept, dropped))


def _steps(steps: Iterable[Step], kept: set[int], dropped: set[int]) -> tuple[Step, ...]:
    """Steps that neither free what is kept nor make what is dropped; regions hand out what is kept."""
    made = []
    for step in steps:
        match step:
            case AdaptStep(outputs=(target,)) if target in dropped:
                continue
        inner = {index for part in body_of(step) for index in part.outputs}
        outputs = [index for index in step.outputs if index not in dropped]
        outputs += [index for index in sorted(kept & inner) if index not in outputs]
        frees = tuple(index for index in step.frees if index not in kept)
        block = with_body(step, _steps(body_of(step), kept, dropped))
        made.append(replace(block, outputs=tuple(outputs), frees=frees))
    return tuple(made)


def _doers(steps: Iterable[Step]) -> Iterator[Step]:
    """All steps that read and make values themselves; a region only hands on what its body reads and makes."""
    for step in iter_steps(steps):
        match step:
            case RegionStep():
                continue
        yield step


def _copied(plan: Plan, names: Collection[str]) -> dict[str, tuple[str, PortSpec]]:
    """Outputs in a buffer that the next request overwrites, with the device to copy them to and what it holds."""
    made_by = {index: step for step in _doers(plan.steps) for index in step.outputs}
    buffered = {
        group.memory: group.device for group in plan.groups if group.runs_programs and group.output_buffers
    }
    found: dict[str, tuple[str, PortSpec]] = {}
    for name, index in plan.outputs:
        step = made_by.get(index)
        while isinstance(step, AdaptStep) and plan.values[index].memory == HOST:
            index = step.inputs[0]
            step = made_by.get(index)
        value = plan.values[index]
        if name in names and value.memory in buffered:
            found[name] = buffered[value.memory], value.spec
    return found


def _with_copies(plan: Plan, copied: Mapping[str, tuple[str, PortSpec]]) -> Plan:
    """Puts outputs on their device again, in the dtype that it holds."""
    values, steps, outputs = list(plan.values), list(plan.steps), []

    def add(source: int, adapter: Adapter, memory: str, spec: PortSpec) -> int:
        values.append(replace(values[source], memory=memory, spec=spec))
        steps.append(AdaptStep((source,), (len(values) - 1,), values[source].origin, adapter, device=memory))
        return len(values) - 1

    for name, index in plan.outputs:
        if name in copied:
            device, held = copied[name]
            spec = values[index].spec
            if isinstance(spec, TensorSpec) and isinstance(held, TensorSpec) and spec.dtype != held.dtype:
                spec = replace(spec, dtype=held.dtype)
                index = add(index, Adapter("cast", dtype=held.dtype), HOST, spec)
            index = add(index, Adapter("upload", device=device), device, spec)
        outputs.append((name, index))
    return replace(plan, values=tuple(values), steps=tuple(steps), outputs=tuple(outputs))
