"""Which regions of a plan are compiled: the longest runs of calls on one torch device that the user asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from orchestrator.errors import PlanOptionError, nearest
from orchestrator.plan.compute_runs import ComputeRun, compute_runs, obstacle
from orchestrator.plan.model import Plan
from orchestrator.plan.records import CompiledRegion
from orchestrator.plan.steps import HOST, LoopLikeStep, iter_steps

__all__ = ["choose_regions"]

#: Compiled where that can be done, else eager with a note; and compiled, or the plan is refused.
AOT, REQUIRE = "aot", "require"


def choose_regions(plan: Plan, option: str | Mapping[str, str] | None, tolerance: float | None) -> Plan:
    """Returns a plan with the regions that are to be compiled, and a note of each call that runs eagerly after all.

    Args:
        plan: The plan.
        option: A mode for all, or for some by name of a stage, a call or a loop; None: nothing is compiled.
        tolerance: See :attr:`~orchestrator.plan.records.CompiledRegion.tolerance`; None: by dtype.

    Raises:
        PlanOptionError: A mode, a name or the tolerance is none, or a call that is required cannot be compiled.
    """
    if tolerance is not None and not (
        isinstance(tolerance, (int, float)) and math.isfinite(tolerance) and tolerance > 0
    ):
        raise PlanOptionError(
            f"A tolerance is a difference above 0, relative to the largest magnitude of a result, not {tolerance!r}.",
            tolerance=tolerance,
        )
    if option is None:
        return plan
    # What is in the way of a call is known before any run is looked for: a run goes around it.
    modes = _modes(plan, option)
    obstacles = {call.name: obstacle(plan, call) for call in plan.calls if call.name in modes}
    for name, reason in obstacles.items():
        if reason and modes[name] == REQUIRE and not (option == REQUIRE and plan.call(name).device == HOST):
            raise PlanOptionError(
                f"Call {name!r} cannot be compiled: {reason}. Leave it out of compile=, or say {AOT!r} for it, which "
                f"runs eagerly what cannot be compiled.",
                stage=plan.call(name).stage,
            )
    notes = [
        f"Call {name!r} runs eagerly: {reason}."
        for name, reason in obstacles.items()
        if reason and (plan.call(name).device != HOST or not isinstance(option, str))
    ]
    # Sizes of requests, and what depends on them, end a run as well; what is left is one region each.
    runs = list(compute_runs(plan, lambda name: name in modes and not obstacles[name]))
    regions = tuple(_region(run, modes, tolerance or 0.0) for run in runs)
    return replace(plan, compiled=regions, notes=tuple(dict.fromkeys((*plan.notes, *notes))))


def _modes(plan: Plan, option: str | Mapping[str, str]) -> dict[str, str]:
    """The mode of each call that is asked for."""
    if isinstance(option, str):
        return dict.fromkeys((call.name for call in plan.calls), _mode(option))
    if not isinstance(option, Mapping):
        raise PlanOptionError(
            f"compile takes {AOT!r}, {REQUIRE!r}, or one of them by name of a stage or loop, not {option!r}.",
            option="compile",
        )
    # A name may be that of a stage, of one of its calls, or of a loop, which has calls in its body.
    loops = [step.name for step in iter_steps(plan.steps, LoopLikeStep)]
    modes: dict[str, str] = {}
    for name, mode in option.items():
        calls = [
            call.name
            for call in plan.calls
            if name in (call.name, call.stage) or (name in loops and call.name.startswith(f"{name}/"))
        ]
        if not calls:
            names = [*dict.fromkeys((*(call.stage for call in plan.calls), *loops))]
            raise PlanOptionError(
                f"compile names {name!r}, which is no stage, call or loop of {plan.pipeline!r}."
                f"{nearest(str(name), names)}",
                stage=name,
            )
        modes.update(dict.fromkeys(calls, _mode(mode)))
    return modes


def _mode(mode: object) -> str:
    if mode not in (AOT, REQUIRE):
        raise PlanOptionError(
            f"compile takes {AOT!r} (what cannot be compiled runs eagerly, with a note) or {REQUIRE!r} (it is "
            f"refused), not {mode!r}.",
            option="compile",
        )
    return str(mode)


def _region(run: ComputeRun, modes: Mapping[str, str], tolerance: float) -> CompiledRegion:
    calls = run.calls
    name = " + ".join(calls) if len(calls) <= 3 else f"{calls[0]} + {len(calls) - 2} calls + {calls[-1]}"
    is_required = any(modes[call] == REQUIRE for call in calls)
    return CompiledRegion(name, run.steps[0].device, calls, is_required, float(tolerance))
