"""Outputs that stay on their device: the plan without the downloads that only they would have needed.

A kept output is the value before its download. The download itself stays where somebody else reads what it brings:
a host stage, or the same value handed out under another name. Where a program owns its output buffer, the next request
overwrites it: there a kept output is what was downloaded, put on the device again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from orchestrator.adapter import Adapter
from orchestrator.plan.model import Plan
from orchestrator.plan.steps import HOST, Step, walk
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
        for step in walk(plan.steps)
        if step.adapter is not None and step.adapter.kind == "download"
    }
    outputs = tuple(
        (name, before.get(index, index) if name in names else index) for name, index in plan.outputs
    )
    dropped = {index for _, index in plan.outputs} - {index for _, index in outputs}
    kept = {index for _, index in outputs} - {index for _, index in plan.outputs}
    dropped -= {index for step in walk(plan.steps) if step.op != "region" for index in step.inputs}
    return replace(plan, outputs=outputs, steps=_steps(plan.steps, kept, dropped))


def _steps(steps: Iterable[Step], kept: set[int], dropped: set[int]) -> tuple[Step, ...]:
    """Steps that neither free what is kept nor make what is dropped; regions hand out what is kept."""
    made = []
    for step in steps:
        if step.op == "adapt" and step.outputs[0] in dropped:
            continue
        inner = {index for part in step.body for index in part.outputs}
        outputs = [index for index in step.outputs if index not in dropped]
        outputs += [index for index in sorted(kept & inner) if index not in outputs]
        frees = tuple(index for index in step.frees if index not in kept)
        body = _steps(step.body, kept, dropped)
        made.append(replace(step, outputs=tuple(outputs), frees=frees, body=body))
    return tuple(made)


def _copied(plan: Plan, names: Collection[str]) -> dict[str, tuple[str, PortSpec]]:
    """Outputs in a buffer that the next request overwrites, with the device to copy them to and what it holds."""
    made_by = {index: step for step in walk(plan.steps) if step.op != "region" for index in step.outputs}
    buffered = {
        group.memory: group.device for group in plan.groups if group.compiled and group.output_buffers
    }
    found: dict[str, tuple[str, PortSpec]] = {}
    for name, index in plan.outputs:
        step = made_by.get(index)
        while step is not None and step.op == "adapt" and plan.values[index].memory == HOST:
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
        steps.append(Step("adapt", values[source].origin, (source,), (len(values) - 1,), adapter, memory))
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
