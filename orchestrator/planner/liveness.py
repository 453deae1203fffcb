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
    kept = {index for _, index in context.outputs}
    kept |= {index for index, value in enumerate(context.values) if value.constant}
    return replace(context, steps=_with_frees(context.steps, kept, range(len(context.graph.inputs))))


def _with_frees(
    steps: tuple[Step, ...], kept: set[int], given: Iterable[int], within: bool = False
) -> tuple[Step, ...]:
    """Frees what these steps make, or are given, and do not keep; in a loop also what is given and not read."""
    last: dict[int, int] = dict.fromkeys(given if within else (), 0)
    own = set(given)
    for position, step in enumerate(steps):
        own.update(step.outputs)
        for index in (*step.outputs, *step.inputs):
            last[index] = position
    frees: dict[int, list[int]] = {}
    for index, position in last.items():
        if index in own and index not in kept:
            frees.setdefault(position, []).append(index)
    return tuple(
        replace(with_body(step, _inner_frees(step, kept)), frees=tuple(sorted(frees.get(position, ()))))
        for position, step in enumerate(steps)
    )


def _inner_frees(step: Step, kept: set[int]) -> tuple[Step, ...]:
    """The body of a step with frees; what it hands out is read after its last step, and dies outside."""
    match step:
        case LoopLikeStep():
            return _with_frees(step.body, {*kept, *step.outputs, *step.yields}, step.arguments, True)
    return _with_frees(body_of(step), kept | set(step.outputs), (), True)
