"""Verify, compiled regions: each is a run of calls with nothing but adapters between them, and no call is in two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.plan.compute_runs import obstacle, runs_of
from orchestrator.plan.model import Plan
from orchestrator.plan.steps import CallStep, Step, adapter_of, body_of, iter_steps
from orchestrator.planner.verify.edges import demand

__all__ = ["check_compiled"]


def check_compiled(plan: Plan) -> None:
    """Checks the compiled regions of a plan.

    Raises:
        PlanError: One is no run, or holds a call that cannot be compiled.
    """
    names = [region.name for region in plan.compiled]
    names_of_calls = {call.name for call in plan.calls}
    calls = [name for region in plan.compiled for name in region.calls]
    demand(plan, len(set(names)) == len(names), "two compiled regions have one name")
    demand(plan, len(set(calls)) == len(calls), "a call is in two compiled regions")
    for region in plan.compiled:
        what = f"the compiled region {region.name!r}"
        demand(plan, bool(region.calls), f"{what} has no call")
        demand(plan, 0.0 <= region.tolerance < float("inf"), f"{what} has the tolerance {region.tolerance}")
        for name in region.calls:
            demand(plan, name in names_of_calls, f"{what} holds {name!r}, which is no call")
            call = plan.call(name)
            reason = obstacle(plan, call)
            demand(plan, not reason, f"{what} holds {name!r}, but {reason}")
            demand(plan, call.device == region.device, f"{what} holds {name!r}, which is on {call.device!r}")
        bodies = [steps for steps in _bodies(plan.steps) if _position(steps, region.calls[0]) is not None]
        demand(plan, len(bodies) == 1 and _is_run(bodies[0], region.calls), f"{what} is no run of its calls")
        demand(plan, region.name in runs_of(plan), f"{what} is more or less than one run")


def _bodies(steps: Sequence[Step]) -> Iterator[Sequence[Step]]:
    """Yields the steps themselves, and those of every body below them."""
    yield steps
    for step in steps:
        if body_of(step):
            yield from _bodies(body_of(step))


def _position(steps: Sequence[Step], call: str) -> int | None:
    for at, step in enumerate(steps):
        match step:
            case CallStep(name=name) if name == call:
                return at
    return None


def _is_run(steps: Sequence[Step], calls: tuple[str, ...]) -> bool:
    """Tells whether these calls follow one another, with adapters between them at most."""
    first, last = _position(steps, calls[0]), _position(steps, calls[-1])
    if first is None or last is None:
        return False
    between = steps[first : last + 1]
    adapters = sum(adapter_of(step) is not None for step in between)
    names = tuple(step.name for step in iter_steps(between, CallStep))
    return names == calls and len(names) + adapters == len(between)
