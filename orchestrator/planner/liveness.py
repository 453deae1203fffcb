"""Liveness: a value is freed right after the last step that reads it.

Values of a region's body live and die in the body, those it hands out excepted. So do those of a loop's body, this
iteration's carries and slices among them, but not what the next iteration or the end of the loop reads. Results of the
pipeline and constants are not freed. An output nobody reads dies with the step that made it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from orchestrator.plan.steps import LoopLikeStep, Step, body_of, with_body
from orchestrator.planner.context import PlanContext

__all__ = ["free_values"]


def free_values(context: PlanContext) -> PlanContext:
    """Writes into every step which values die after it."""
    survivors = {index for _, index in context.outputs}
    survivors |= {index for index, value in enumerate(context.values) if value.constant}
    return replace(context, steps=_with_frees(context.steps, survivors, range(len(context.graph.inputs))))


def _with_frees(
    steps: tuple[Step, ...], survivors: set[int], arguments: Iterable[int], within: bool = False
) -> tuple[Step, ...]:
    """Frees outputs and arguments of these steps that do not survive them.

    Args:
        steps: The steps of the plan or of a body.
        survivors: Values that are read after them.
        arguments: Values that are there before them and are theirs to free.
        within: They are a body, whose arguments are freed also if no step reads them.
    """
    # Last use by position. Arguments of a body begin with position 0, so that one that is never read is freed after the
    # first step; an input of the plan that no step reads is not freed.
    last: dict[int, int] = dict.fromkeys(arguments if within else (), 0)
    own = set(arguments)
    for position, step in enumerate(steps):
        own.update(step.outputs)
        for index in (*step.outputs, *step.inputs):
            last[index] = position
    # Only values that these steps own are freed here: those read from outside of a body die outside.
    frees: dict[int, list[int]] = {}
    for index, position in last.items():
        if index in own and index not in survivors:
            frees.setdefault(position, []).append(index)
    return tuple(
        replace(with_body(step, _inner_frees(step, survivors)), frees=tuple(sorted(frees.get(position, ()))))
        for position, step in enumerate(steps)
    )


def _inner_frees(step: Step, survivors: set[int]) -> tuple[Step, ...]:
    """The body of a step with frees; its results are read after its last step, and die outside."""
    match step:
        case LoopLikeStep():
            return _with_frees(step.body, {*survivors, *step.outputs, *step.yields}, step.arguments, True)
    return _with_frees(body_of(step), survivors | set(step.outputs), (), True)
