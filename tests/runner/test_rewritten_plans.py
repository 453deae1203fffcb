"""Plans that a session rewrites: where outputs stay on a device, or values of iterations are handed out.

What comes out is never verified again while a session runs. Here the verifier follows the steps: what they read is
there, moves and conversions are what they say, what they make is freed or handed out, and nothing is freed twice.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator import Dim, Pipeline, Plan
from orchestrator.plan.steps import HOST, BlockStep, LoopStep, Step, body_of, with_body
from orchestrator.planner.verify.steps import _Verifier
from orchestrator.runner.device_outputs import keep_on_device
from orchestrator.runner.stream.progress import with_progress_outputs
from tests.bodies import DEVICES, new
from tests.kit import Double, batch, host, spec
from tests.runner.decoding import decoder, halving, loop_in_loop

everywhere = pytest.mark.parametrize("device", DEVICES)


def check_steps(plan: Plan) -> None:
    """Has the verifier follow the steps of a plan."""
    verifier = _Verifier(plan)
    inputs = set(range(len(plan.inputs)))
    constants = {index for index, value in enumerate(plan.values) if value.constant}
    alive = verifier._replay(plan.steps, inputs | verifier._replay_staging(constants))
    outputs = {index for _, index in plan.outputs}
    assert outputs <= alive, "an output is not there at the end"
    reads = {index for step in plan.steps for index in step.inputs}
    of_caller = {index for index in inputs if plan.values[index].memory != HOST}
    assert not alive - outputs - constants - of_caller - (inputs - reads), "a value is never freed"


def free_told_values(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Has the last step of a body free what generated code drops once a listener was told of it."""
    new_steps = []
    for step in steps:
        step = with_body(step, free_told_values(body_of(step)))
        match step:
            case LoopStep(body=(*first, last), progress_outputs=outputs):
                told = {index for _, index in outputs} - set(step.yields)
                step = with_body(step, (*first, replace(last, frees=(*last.frees, *sorted(told)))))
        new_steps.append(step)
    return tuple(new_steps)


def plan_on(pipeline: Pipeline, device: str) -> Plan:
    place, options = DEVICES[device]
    dims = {str(dim) for spec in dict(pipeline.freeze().inputs).values() for dim in getattr(spec, "dims", ())}
    return pipeline.plan(place, sizes={"batch": (2, 4)} if "batch" in dims else None, options=options)


def diamond() -> Pipeline:
    """``near`` is a result twice, and a host stage reads it too; ``whole`` comes out of a region."""
    pipeline = new("diamond")
    near = pipeline.add("near", Double())(pipeline.input("x", spec(batch("batch"), 4, pad=0)))
    pipeline.output("near", near)
    pipeline.output("far", pipeline.add("far", Double())(near))
    pipeline.output("twice", near)
    count = host(pipeline, "look", lambda v: v - 1, out=spec("batch", 4, pad=0))(near)
    pipeline.output("looked", count)
    crops = host(pipeline, "find", lambda v: v[:1], out=spec(Dim("n", (2, 4), batch=True), 4, pad=0))(near)
    pipeline.output("whole", pipeline.add("each", Double())(crops))
    return pipeline


@everywhere
@pytest.mark.parametrize(
    "names", [["near"], ["far"], ["near", "far"], ["near", "twice", "whole"], ["looked"]]
)
def test_outputs_that_stay_on_their_device(names: list[str], device: str):
    plan = plan_on(diamond(), device)
    check_steps(plan)
    check_steps(keep_on_device(plan, names))
    check_steps(keep_on_device(plan, names, [group.device for group in plan.groups]))


@everywhere
@pytest.mark.parametrize("build", [decoder, loop_in_loop])
def test_outputs_of_loops_that_stay_on_their_device(build: Any, device: str):
    plan = plan_on(build(), device)
    for copying in ([], [group.device for group in plan.groups]):
        check_steps(keep_on_device(plan, [name for name, _ in plan.outputs], copying))


PROGRESS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "what is collected": (decoder, ("tokens",)),
    "a carry, and what is collected": (decoder, ("decode.x", "decode.token")),
    "a loop in a loop": (loop_in_loop, ("sub/out/in.x", "sums")),
    "in a map": (lambda: halving("map"), ()),
    "in a branch": (lambda: halving("when"), ()),
    "in a region": (lambda: halving("region"), ()),
}


@everywhere
@pytest.mark.parametrize("kind", PROGRESS)
def test_values_of_iterations_that_are_handed_out(kind: str, device: str):
    build, names = PROGRESS[kind]
    pipeline = build()
    plan = plan_on(pipeline, device)
    if not names:
        loop = next(step for step in _loops(plan.steps))
        names = (f"{loop.name}.x",)
    rewritten = with_progress_outputs(plan, names, pipeline.graph.stages)
    assert any(loop.progress_outputs for loop in _loops(rewritten.steps))
    check_steps(replace(rewritten, steps=free_told_values(rewritten.steps)))


@everywhere
def test_both_at_once(device: str):
    pipeline = decoder()
    plan = keep_on_device(plan_on(pipeline, device), ["x"])
    rewritten = with_progress_outputs(plan, ["tokens"], pipeline.graph.stages)
    check_steps(replace(rewritten, steps=free_told_values(rewritten.steps)))


def _loops(steps: tuple[Step, ...]) -> list[LoopStep]:
    found: list[LoopStep] = []
    for step in steps:
        match step:
            case LoopStep():
                found.append(step)
            case BlockStep():
                pass
        found += _loops(body_of(step))
    return found
