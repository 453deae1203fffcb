"""Verify, third part, continued: the memory of programs, and what tells them apart."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.plan.model import Plan
from orchestrator.planner.verify.edges import demand

__all__ = ["check_buffers", "check_routes"]


def check_buffers(plan: Plan, owners: Mapping[int, object]) -> None:
    """Checks the bytes of output buffers, those of states and of every program at each combination of buckets.

    Args:
        plan: The plan.
        owners: Values that are in a buffer which other requests overwrite, at the end of a request.

    Raises:
        PlanError: They are not what it says, or one of the values is a result.
    """
    for name, index in plan.outputs:
        demand(plan, not owners.get(index), f"output {name!r} is in a buffer that other requests overwrite")
    # Each output of each combination is a buffer by itself, as long as the program is loaded.
    buckets = {dim.name: dim.buckets for dim in plan.dims}
    groups = {group.device: group for group in plan.groups}
    totals: dict[str, int] = {}
    for program in plan.programs:
        results = [item for item in program.outputs if not item.state]
        sizes = [item.spec.nbytes(at) for at in program.combinations(buckets) for item in results]
        if groups[program.device].output_buffers:
            totals[program.device] = totals.get(program.device, 0) + sum(sizes)
    for state in plan.states:
        totals[state.device] = totals.get(state.device, 0) + state.spec.nbytes({})
    plan_sizes = sorted(plan.buffers)
    program_sizes = sorted((device, size) for device, size in totals.items() if size)
    demand(
        plan,
        plan_sizes == program_sizes,
        f"it counts {plan_sizes} bytes of output buffers, its programs have {program_sizes}",
    )


def check_routes(plan: Plan) -> None:
    """Checks that a router, which knows programs by the shapes of their inputs, can tell those of an application apart.

    Raises:
        PlanError: It cannot.
    """
    buckets = {dim.name: dim.buckets for dim in plan.dims}
    application_of = {stage: item.name for item in plan.applications for stage in item.stages}
    program_names: dict[tuple[object, ...], str] = {}
    for program in plan.programs:
        for at in program.combinations(buckets):
            tensors = [item.spec for item in program.inputs if item.spec is not None and not item.state]
            shapes = [spec.shape(at) for spec in tensors]
            shapes += [(program.route,)] if program.route else []
            key = (program.device, application_of.get(program.stage, program.stage or program.name), *shapes)
            other = program_names.setdefault(key, program.name)
            demand(
                plan,
                other == program.name,
                f"programs {other!r} and {program.name!r} take the same shapes {shapes}",
            )
