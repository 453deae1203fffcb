"""Loops on a device whose programs own one output buffer: what leaves a loop in the buffer it came in, or none.

Each was found by `tests/properties/test_loops.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from orchestrator import Dim, Pipeline, Plan, PlanError
from orchestrator.plan.steps import CallStep, Step, body_of, with_body
from orchestrator.planner.verify.steps import verify
from orchestrator.testing import assert_same, run_reference
from tests.kit import Double, host, linear, refuses, spec
from tests.planner.devices import DEVICE, Plus
from tests.planner.devices import ranked as new

pytestmark = pytest.mark.usefixtures("shared_store", "shared_trials")


def same(pipeline: Pipeline, *requests: dict[str, Any]) -> Plan:
    """Runs requests on the emulated device, each twice, and by hand; returns the plan."""
    plan = pipeline.plan(DEVICE)
    with plan.load() as session:
        for inputs in (*requests, *requests):
            assert_same(session.run(inputs), run_reference(pipeline.freeze(), inputs), exact=False)
    return plan


def handing_on(carry_of: Callable[[Any, Any], Any]) -> Pipeline:
    """An inner loop whose carry goes on with something old, in an outer one whose stage then overwrites it."""
    deep = new("deep")
    x, by = deep.input("x", spec(2)), deep.input("by", spec(2))
    deep.output("saw", deep.add("see", Double())(x))
    deep.output("x", carry_of(x, by))
    body = new("body")
    x, by = body.input("x", spec(2)), body.input("by", spec(2))
    old = body.loop("deep", deep, carry={"x": by}, inputs={"by": x}, max_steps=2)
    new_ = body.add("next", lambda x: x + 1)(x)
    body.output("x", new_)
    body.output("by", body.add("late", lambda old, new: old + 10 * new)(old, new_))
    pipeline = new()
    carry = {"x": pipeline.input("x", spec(2)), "by": torch.zeros(2)}
    for name, value in zip("xy", pipeline.loop("loop", body, carry=carry, max_steps=3), strict=True):
        pipeline.output(name, value)
    return pipeline


@pytest.mark.parametrize("carry_of", [lambda x, by: x, lambda x, by: by], ids=["itself", "the outer carry"])
def test_what_an_inner_loop_hands_on_as_it_is_is_not_overwritten(carry_of: Callable[[Any, Any], Any]):
    pipeline, inputs = handing_on(carry_of), {"x": torch.tensor([1.0, 2.0])}
    same(pipeline, inputs)


def skipping(steps: int | str) -> Pipeline:
    """An inner loop that may give the outer carry it starts with, to the stage that makes the next one."""
    deep = new("deep")
    x, t = deep.input("x", spec(2)), deep.input("t", spec(2))
    deep.output("x", deep.add("add", lambda x, t: x + t)(x, t))
    body = new("body")
    x, ts = body.input("x", spec(2)), body.input("ts", spec(steps, 2))
    body.output("x", body.add("mix", linear(2, 2))(body.loop("deep", deep, carry={"x": x}, each={"t": ts})))
    pipeline = new()
    x, count = pipeline.input("x", spec(2)), pipeline.input("count", int)
    size = Dim("n", (1, 2)) if steps == "n" else steps
    ts = host(pipeline, "times", lambda count: torch.ones(count, 2), ts=spec(size, 2))(count)
    pipeline.output("y", pipeline.loop("loop", body, carry={"x": x}, inputs={"ts": ts}, max_steps=3))
    return pipeline


def test_a_stage_does_not_read_its_own_buffer_through_a_loop_that_did_not_run():
    pipeline = skipping("n")
    plan = same(pipeline, *({"x": torch.tensor([1.0, 2.0]), "count": count} for count in (0, 2, 1)))
    calls = [step for step in body_of(plan.steps[-2]) if isinstance(step, CallStep)]
    assert any(step.alternate for step in calls), "it takes turns with another program"
    safe = same(skipping(2), {"x": torch.ones(2), "count": 2})
    calls = [step for step in body_of(safe.steps[-2]) if isinstance(step, CallStep)]
    assert calls
    assert not any(step.alternate for step in calls)


def untwinned(steps: tuple[Step, ...], name: str) -> tuple[Step, ...]:
    return tuple(
        replace(step, alternate="")
        if isinstance(step, CallStep) and step.name == name
        else with_body(step, untwinned(body_of(step), name))
        for step in steps
    )


def test_verify_sees_the_buffer_that_a_skipped_loop_hands_on():
    plan = skipping("n").plan(DEVICE)
    broken = replace(plan, steps=untwinned(plan.steps, "loop/mix"))
    refuses(PlanError, "'loop/mix' reads the buffer that it writes", lambda: verify(broken))


def test_what_a_branch_is_otherwise_outlives_its_program():
    body = new("body")
    body.output("y", body.add("double", Double())(body.input("image", spec(2))))
    pipeline = new()
    x, image = pipeline.input("x", spec(2)), pipeline.input("image", spec(2), optional=True)
    plus = pipeline.add("plus", Plus())
    first = plus(x)
    y = pipeline.when("see", body, inputs={"image": image}, otherwise={"y": first})
    again = plus(plus(first))
    pipeline.output("z", pipeline.add("join", lambda y, again: y + 10 * again)(y, again))
    plan = pipeline.plan(DEVICE)
    x = torch.ones(2)
    with plan.load() as session:
        for _ in range(2):
            assert session(x=x)["z"].tolist() == [42.0] * 2
            assert session(x=x, image=3 * x)["z"].tolist() == [46.0] * 2


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_loop_that_is_inlined_twice_is_read_by_another_loop(steps: int):
    body, inner = new("body"), new("inner")
    body.output("x", body.add("net", linear(2, 2))(body.input("x", spec(2))))
    inner.output("y", inner.loop("run", body, carry={"x": inner.input("x", spec(2))}, max_steps=steps))
    last = new("last")
    x, by = last.input("x", spec(2)), last.input("by", spec(2))
    last.output("x", last.add("add", lambda x, by: x + by)(x, by))
    pipeline = new()
    x = pipeline.input("x", spec(2))
    twice = pipeline.add("twice", inner)
    one = twice(x)
    two = twice(pipeline.add("plus", Plus())(x))
    y = pipeline.loop("last", last, carry={"x": one}, inputs={"by": two}, max_steps=2)
    pipeline.output("y", y)
    same(pipeline, {"x": torch.tensor([1.0, -1.0])})
