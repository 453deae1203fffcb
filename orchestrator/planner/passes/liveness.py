"""Liveness: a value is freed right after the last step that reads it.

Values of a region's body live and die in the body, those it hands out excepted. Results of the pipeline and
constants are not freed. An output nobody reads dies with the step that made it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from orchestrator.plan.model import Step
from orchestrator.planner.draft import Draft

__all__ = ["free_values"]


def free_values(draft: Draft) -> Draft:
    """Writes into every step which values die after it."""
    kept = {index for _, index in draft.outputs}
    kept |= {index for index, value in enumerate(draft.values) if value.constant}
    return replace(draft, steps=_with_frees(draft.steps, kept, range(len(draft.graph.inputs))))


def _with_frees(steps: tuple[Step, ...], kept: set[int], given: Iterable[int]) -> tuple[Step, ...]:
    """Frees what these steps make, or are given, and do not keep."""
    last: dict[int, int] = {}
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
        replace(
            step,
            frees=tuple(sorted(frees.get(position, ()))),
            body=_with_frees(step.body, kept | set(step.outputs), ()),
        )
        for position, step in enumerate(steps)
    )
