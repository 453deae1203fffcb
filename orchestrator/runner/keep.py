"""Outputs that stay on their device: the plan without the downloads that only they would have needed.

A kept output is the value before its download. The download itself stays where somebody else reads what it brings:
a host stage, or the same value handed out under another name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from orchestrator.plan.model import Plan, Step, walk

__all__ = ["keep_on_device"]


def keep_on_device(plan: Plan, names: Collection[str]) -> Plan:
    """Returns the plan that hands these outputs out where they were made; those made in host memory stay there."""
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
