"""Verify, seventh part: a carry that lives in an application is written and read by its programs alone."""

from __future__ import annotations

from orchestrator.plan.model import Plan
from orchestrator.plan.records import PlannedProgram, PlannedState
from orchestrator.plan.steps import CallStep, LoopStep, iter_steps
from orchestrator.planner.verify.edges import demand
from orchestrator.program import ProgramInput, ProgramOutput
from orchestrator.specs import TensorSpec

__all__ = ["check_states"]


def check_states(plan: Plan) -> None:
    """Checks every state, and that programs speak of no other.

    Raises:
        PlanError: One may be read before it was written, or by somebody else, or after it was overwritten.
    """
    names = [state.name for state in plan.states]
    uses = {item.state for program in plan.programs for item in _ends(program)} - {""}
    demand(plan, len(set(names)) == len(names), "two states have one name")
    demand(plan, uses == set(names), f"its programs use the states {sorted(uses)}, not {names}")
    for state in plan.states:
        _check_state(plan, state)


def _check_state(plan: Plan, state: PlannedState) -> None:
    """Follows a state through the steps: written once, then read and written once in each iteration, then forgotten."""

    def check(holds: bool, what: str) -> None:
        demand(plan, holds, f"the state {state.name!r} {what}")

    loops = [
        (step, carry)
        for step in iter_steps(plan.steps, LoopStep)
        for carry in step.carries
        if plan.values[carry.argument].origin == state.name
    ]
    check(
        len(loops) == 1 and loops[0][0] in plan.steps,
        "is the carry of no loop, or of several, or of one that may run several times",
    )
    (loop, carry), *_ = loops
    # Who makes each of its values: a call before the loop, directly in the plan, and one directly in the body.
    before = plan.steps[: plan.steps.index(loop)]
    starts = [step for step in iter_steps(before, CallStep) if carry.initial in step.outputs]
    updates = [step for step in iter_steps(loop.body, CallStep) if carry.yielded in step.outputs]
    check(
        {*starts} <= {*before} and {*updates} <= {*loop.body},
        "is made or updated in something that may repeat",
    )
    check(len(starts) == 1 and len(updates) == 1, "is not made by one call and updated by another")
    origins = [plan.values[index].origin for index in (carry.initial, carry.yielded)]
    check(origins == [state.start, state.output], f"is said to be {state.start!r}, then {state.output!r}")
    # Who reads them: the loop its start, the one call its carry, the next iteration what that gives.
    for index, readers in ((carry.initial, 1), (carry.argument, 1), (carry.yielded, 0)):
        reads = sum(step.inputs.count(index) for step in iter_steps(plan.steps))
        check(reads == readers, "is read by somebody else")
    check(carry.argument in updates[0].inputs, "is not read by the call that updates it")
    ends = [result for other, result in zip(loop.carries, loop.results, strict=True) if other is carry]
    results = {index for _, index in plan.outputs}
    check(
        not any(end in step.inputs for end in ends for step in iter_steps(plan.steps)), "is read at its end"
    )
    check(not results & {*ends, carry.initial}, "is an output")
    check(loop.yields.count(carry.yielded) == 1, "is carried or collected twice")
    # What the programs of these calls do with it, and nobody else; a call in turns has two.
    writers = {
        starts[0].program: 0,
        **dict.fromkeys(filter(None, (updates[0].program, updates[0].alternate)), 1),
    }
    applications = {plan.application(plan.program(name)) for name in writers}
    check(len(applications) == 1, f"is of several applications, {sorted(applications)}")
    for program in plan.programs:
        taken = [item for item in program.inputs if item.state == state.name]
        given = [item for item in program.outputs if item.state == state.name]
        expected = (writers[program.name], 1) if program.name in writers else (0, 0)
        check(
            (len(taken), len(given)) == expected,
            f"is not taken and given by {program.name!r} as it should be",
        )
        check(not taken or program.device == state.device, f"is not on {program.device!r}")
        ports = [f"{updates[0].name}.{item.port}" for item in taken]
        check(ports in ([], [state.port]), f"comes in by {ports}")
        for item in _ends(program):
            if item.state == state.name:
                check(not item.adapters and _has_form(plan, item.spec, state.spec), "has several forms")


def _has_form(plan: Plan, spec: TensorSpec | None, state: TensorSpec) -> bool:
    """Tells whether a value has the one form of a state, at every bucket of its dims."""
    buckets = {dim.name: dim.buckets for dim in plan.dims}
    if spec is None or state.names or any(len(buckets[name]) > 1 for name in spec.names):
        return False
    sizes = {name: buckets[name][0] for name in spec.names}
    return spec.shape(sizes) == state.shape({}) and spec.dtype == state.dtype


def _ends(program: PlannedProgram) -> tuple[ProgramInput | ProgramOutput, ...]:
    return (*program.inputs, *program.outputs)
