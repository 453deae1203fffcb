"""Which values are an input of the call that gives them, updated in place, and which a step may update."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.plan.records import PlannedCall
from orchestrator.plan.steps import BranchStep, CallStep, LoopStep, Step, body_of, iter_steps

__all__ = ["updatable_inputs", "updates_of"]


def updates_of(call: PlannedCall, step: CallStep) -> dict[int, int]:
    """Returns the outputs of a call that are an input, updated, each with that input, by values."""
    inputs = dict(zip((port for port, _ in call.inputs), step.inputs, strict=True))
    outputs = dict(zip((port for port, _ in call.outputs), step.outputs, strict=True))
    return {outputs[output]: inputs[port] for output, port in call.aliases}


def updatable_inputs(calls: Mapping[str, PlannedCall], step: Step) -> tuple[int, ...]:
    """Returns the values that a step may update, itself or by what is in its body; of a chunk or batch there are none.

    Args:
        calls: All calls by name.
        step: The step.
    """
    has_updates = any(calls[inner.name].aliases for inner in iter_steps(body_of(step), CallStep))
    match step:
        case CallStep(name=name):
            return tuple(updates_of(calls[name], step).values())
        case LoopStep(carries=carries) if has_updates:
            return tuple(dict.fromkeys(carry.initial for carry in carries))
        case BranchStep(slices=slices) if has_updates:
            return tuple(dict.fromkeys(entry.whole for entry in slices))
    return ()
