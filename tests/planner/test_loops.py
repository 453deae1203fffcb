"""Planning loops: what is moved once and what never, what is refused, and what `verify` makes of broken loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from orchestrator import Dim, Pipeline, Plan, PlanError
from orchestrator.plan.steps import (
    AdaptStep,
    Carry,
    LoopLikeStep,
    LoopStep,
    RegionStep,
    Slice,
    Step,
    iter_steps,
)
from orchestrator.planner.verify.steps import verify
from orchestrator.testing import run_reference
from tests.kit import COMPUTE, Double, host, linear, refuses, spec
from tests.planner.broken import item
from tests.planner.devices import DEVICE as NEURON
from tests.planner.devices import ranked as new

pytestmark = pytest.mark.usefixtures("shared_store")


def steps_of(plan: Plan, name: str = "loop") -> tuple[Step, ...]:
    """The steps of a loop's body."""
    return next(step.body for step in iter_steps(plan.steps, LoopLikeStep) if step.name == name)


def denoise(steps: int = 4, *, twice: bool = False, each: bool = False) -> Pipeline:
    """A carry that goes through two stages, and an invariant that both read."""
    body = new("step")
    x, text = body.input("x", spec(2, 4)), body.input("text", spec(2, 4))
    mixed = body.add("mix", lambda x, text: x + text)(x, text)
    y = body.add("net", linear(4, 4))(mixed)
    last = body.add("last", lambda y, text: y * text)(y, text)
    body.output("x", last)
    pipeline = new()
    text = pipeline.add("encode", Double())(pipeline.input("text", spec(2, 4)))
    asked: dict[str, Any] = {"carry": {"x": pipeline.input("noise", spec(2, 4))}, "inputs": {"text": text}}
    pipeline.output("y", pipeline.loop("loop", body, **asked, max_steps=steps))
    return pipeline


@pytest.mark.parametrize("device", [NEURON, "null"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_carry_and_an_invariant_cross_the_link_once_however_long_the_loop_is(device: str, steps: int):
    pipeline = denoise(steps)
    plan = pipeline.plan(device, options=COMPUTE if device == "null" else {})
    assert all(step.op == "call" for step in steps_of(plan)), "nothing is moved or fitted in an iteration"
    tensor = 2 * 4 * 4
    link = {"uploads": 2, "upload_bytes": 2 * tensor, "downloads": 1, "download_bytes": tensor}
    inputs = {"noise": torch.rand(2, 4), "text": torch.rand(2, 4)}
    with plan.load() as session:
        found = session.run(inputs)
        stats = session.stats
    torch.testing.assert_close(found, run_reference(pipeline.freeze(), inputs))
    assert {name: stats[name] for name in link} == link == {name: plan.summary[name] for name in link}
    assert stats["dispatches"] == 1 + 3 * steps
    if device == NEURON:
        assert {name: stats["measured"][NEURON][name] for name in link} == link


def test_an_invariant_from_the_host_is_staged_once():
    body = new("body")
    x, by = body.input("x", spec("b", 4, pad=0)), body.input("by", spec("b", 4, pad=0))
    one = body.add("one", lambda x, by: x + by)(x, by)
    body.output("x", body.add("two", lambda x, by: x * by)(one, by))
    pipeline = new()
    x, by = pipeline.input("x", spec("b", 4, pad=0)), pipeline.input("by", spec("b", 4, pad=0))
    pipeline.output("y", pipeline.loop("loop", body, carry={"x": x}, inputs={"by": by}, max_steps=5))
    plan = pipeline.plan(NEURON, sizes={"b": (2, 4)})
    assert [step.op for step in steps_of(plan)] == ["call", "call"]
    outside = [step.adapter.kind for step in plan.steps if isinstance(step, AdaptStep)]
    assert sorted(outside) == ["cut", "download", "pad", "pad", "upload", "upload"]


def test_a_constant_is_put_in_place_at_load_for_all_iterations():
    body = new("body")
    body.output("x", body.add("add", lambda x, by: x + by)(body.input("x", spec(2)), torch.ones(2)))
    pipeline = new()
    pipeline.output("y", pipeline.loop("loop", body, carry={"x": torch.zeros(2)}, max_steps=3))
    plan = pipeline.plan(NEURON)
    assert plan.summary["uploads"] == 0
    assert [step.op for step in steps_of(plan)] == ["call"]
    with plan.load() as session:
        assert session()["y"].tolist() == [3.0, 3.0]
        assert session()["y"].tolist() == [3.0, 3.0]


def test_a_host_stage_in_the_body_costs_a_round_trip_in_each_iteration():
    body = new("body")
    x = body.add("net", linear(4, 4))(body.input("x", spec(2, 4)))
    body.output("x", host(body, "clip", lambda x: x.clamp(-1, 1), y=spec(2, 4))(x))
    pipeline = new()
    pipeline.output(
        "y", pipeline.loop("loop", body, carry={"x": pipeline.input("x", spec(2, 4))}, max_steps=5)
    )
    plan = pipeline.plan(NEURON)
    assert (plan.summary["uploads"], plan.summary["downloads"]) == (5, 5)
    with plan.load() as session:
        inputs = {"x": torch.rand(2, 4)}
        torch.testing.assert_close(session.run(inputs), run_reference(pipeline.freeze(), inputs))


@pytest.mark.parametrize("outer", [0, 1, 3])
@pytest.mark.parametrize("inner", [0, 1, 2])
def test_what_is_the_same_in_an_outer_loop_is_moved_before_it(outer: int, inner: int):
    deep = new("deep")
    x, by = deep.input("x", spec(2)), deep.input("by", spec(2))
    deep.output("x", deep.add("add", lambda x, by: x + by)(x, by))
    body = new("body")
    x, by = body.input("x", spec(2)), body.input("by", spec(2))
    x = body.loop("deep", deep, carry={"x": x}, inputs={"by": by}, max_steps=inner)
    body.output("x", body.add("double", Double())(x))
    pipeline = new()
    asked = {"carry": {"x": pipeline.input("x", spec(2))}, "inputs": {"by": pipeline.input("by", spec(2))}}
    pipeline.output("y", pipeline.loop("loop", body, **asked, max_steps=outer))
    plan = pipeline.plan("null", options=COMPUTE)
    moved = [step.origin for step in iter_steps(steps_of(plan), AdaptStep) if step.adapter.kind == "upload"]
    assert moved == []
    with plan.load() as session:
        expected = 1.0
        for _ in range(outer):
            expected = 2 * (expected + inner)
        assert session(x=torch.ones(2), by=torch.ones(2))["y"].tolist() == [expected] * 2


def test_what_a_named_number_of_iterations_collects_is_padded_for_who_reads_it():
    body = new("body")
    t = body.input("t", spec(3))
    body.output("double", body.add("double", Double())(t))
    pipeline = new()
    parts = pipeline.loop(
        "loop", body, each={"t": pipeline.input("times", spec("steps", 3, pad=0))}, collect="double"
    )
    read = pipeline.add("read", Double(), inputs={"x": spec("steps", 3, pad=0)})(parts)
    pipeline.output("y", read)
    for device, options in (("cpu", {}), ("null", COMPUTE), (NEURON, {})):
        with pipeline.plan(device, sizes={"steps": (2, 4)}, options=options).load() as session:
            for count in (1, 2, 3, 4):
                assert torch.equal(session(times=torch.ones(count, 3))["y"], torch.full((count, 3), 4.0))


def looped(body: Pipeline, **asked: Any) -> Pipeline:
    """A pipeline of that loop alone."""
    pipeline = new()
    pipeline.output("y", pipeline.loop("loop", body, **asked))
    return pipeline


def carrying(function: Callable[[torch.Tensor], torch.Tensor]) -> Pipeline:
    body = new("body")
    body.output("x", body.add("change", function)(body.input("x", spec(2, 3))))
    return body


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (lambda x: torch.cat([x, x]), "[4, 3] float32"),
        (lambda x: x.double(), "[2, 3] float64"),
        (lambda x: x[0], "[3] float32"),
        (lambda x: x[:, :2], "[2, 2] float32"),
    ],
    ids=["shape", "dtype", "rank", "width"],
)
def test_a_carry_that_changes_is_refused_with_both_forms(function: Callable[..., Any], given: str):
    pipeline = looped(carrying(function), carry={"x": torch.zeros(2, 3)}, max_steps=2)
    words = (
        "A carry keeps its shape and dtype, but 'x' of loop 'loop' starts as [2, 3] float32 and "
        f"'loop/change.output' gives {given} for the next iteration.",
        "Give state that grows a fixed size and a position",
    )
    error = refuses(PlanError, words, pipeline.plan)
    assert (error.loop, error.port) == ("loop", "x")


@pytest.mark.parametrize(
    ("until", "shown"),
    [
        (lambda x: x > 0, "[2, 3] bool"),
        (lambda x: x.sum(), "[] float32"),
        (lambda x: (x > 0).all().reshape(1).int(), "[1] int32"),
    ],
    ids=["several", "a number", "an int"],
)
def test_an_end_that_is_not_one_boolean_is_refused(until: Callable[..., Any], shown: str):
    body = carrying(lambda x: x + 1)
    body.output("done", body.add("judge", until)(body.input("by", spec(2, 3))))
    asked = {"carry": {"x": torch.zeros(2, 3)}, "inputs": {"by": torch.zeros(2, 3)}}
    pipeline = looped(body, **asked, until="done", max_steps=2)
    words = (
        f"until of loop 'loop' is one boolean, but 'loop/judge.output' gives {shown}.",
        "e.g. finished.all()",
    )
    error = refuses(PlanError, words, pipeline.plan)
    assert error.edge == "loop/judge.output -> loop.done[until]"


def each_of(one: Any, other: Any) -> Pipeline:
    body = new("body")
    t, u = body.input("t", spec(2)), body.input("u", spec(2))
    body.output("sum", body.add("add", lambda t, u: t + u)(t, u))
    pipeline = new()
    values = {"t": pipeline.input("ts", one), "u": pipeline.input("us", other)}
    pipeline.output("y", pipeline.loop("loop", body, each=values, collect=("sum",)))
    return pipeline


@pytest.mark.parametrize(
    ("one", "other"), [(3, 4), ("steps", 4), ("steps", "other")], ids=["two numbers", "a name", "two names"]
)
def test_slices_that_are_not_equally_many_are_refused(one: int | str, other: int | str):
    pipeline = each_of(spec(one, 2), spec(other, 2))
    words = (
        f"Slices of one loop are equally many, but 'us' at 'loop.u' has {other} and 'ts' at 'loop.t' has {one} "
        f"along dim 0. Cut the longer one.",
    )
    sizes = {name: 4 for name in (one, other) if isinstance(name, str)}
    error = refuses(PlanError, words, lambda: pipeline.plan(sizes=sizes))
    assert (error.loop, error.ports) == ("loop", ("t", "u"))


def test_what_has_no_dim_to_slice_is_refused():
    body = new("body")
    body.output("y", body.add("double", Double())(body.input("t", spec())))
    pipeline = new()
    pipeline.output("y", pipeline.loop("loop", body, each={"t": pipeline.input("t", spec())}, collect=("y",)))
    words = ("'loop.t' gets one slice for each iteration, but 't' is [] float32, which has no dim to slice.",)
    refuses(PlanError, words, pipeline.plan)


def test_a_size_that_is_born_in_a_body_is_refused():
    body = new("body")
    x = body.input("x", spec(2))
    found = host(body, "find", lambda x: x[x > 0], found=spec(Dim("n", (2, 4)), pad=0))(x)
    body.output("total", host(body, "total", lambda found: found.sum().reshape(1), y=spec(1))(found))
    body.output("x", x)
    pipeline = looped(body, carry={"x": torch.zeros(2)}, max_steps=2, collect=("total",))
    words = ("Stage 'loop/find' (call 'loop/find') decides the size of 'n' in the body of loop 'loop'",)
    refuses(PlanError, words, pipeline.plan)


# Broken on purpose.


def sample() -> Pipeline:
    """A loop with two carries, slices, an invariant, something collected and an end."""
    body = new("body")
    x, k, t, by = (body.input(name, spec(2, 4)) for name in ("x", "k", "t", "by"))
    made = body.add(
        "net", lambda x, k, t, by: (x + t * by, k + 1, (k > 2).all().reshape(1)), outputs=("x", "k", "done")
    )
    for name, value in zip(("x", "k", "done"), made(x, k, t, by), strict=True):
        body.output(name, value)
    pipeline = new()
    asked: dict[str, Any] = {
        "carry": {"x": pipeline.input("x", spec(2, 4)), "k": torch.zeros(2, 4)},
        "each": {"t": pipeline.input("times", spec(3, 2, 4))},
        "inputs": {"by": pipeline.input("by", spec(2, 4))},
    }
    x, parts = pipeline.loop("loop", body, **asked, until="done", collect=("x",), outputs=("x[]", "x"))
    pipeline.output("x", x)
    pipeline.output("parts", parts)
    return pipeline


def loop(**changes: Callable[[Any], Any]) -> Callable[[Plan], Plan]:
    """Changes fields of the loop."""

    def change(plan: Plan) -> Plan:
        at = next(at for at, step in enumerate(plan.steps) if isinstance(step, LoopStep))
        made = {name: value(getattr(plan.steps[at], name)) for name, value in changes.items()}
        return item(plan, "steps", at, **made)

    return change


def carries(**pick: Callable[[Carry, Carry], int]) -> Callable[[Plan], Plan]:
    """Changes fields of both carries, each told by the carry and the other one."""

    def change(given: tuple[Carry, Carry]) -> tuple[Carry, ...]:
        pairs = (given, given[::-1])
        return tuple(
            replace(one, **{name: value(one, other) for name, value in pick.items()}) for one, other in pairs
        )

    return loop(carries=change)


def as_region(plan: Plan) -> Plan:
    """The loop is said to be a region."""
    at = next(at for at, step in enumerate(plan.steps) if isinstance(step, LoopStep))
    step = plan.steps[at]
    region = RegionStep(step.inputs, step.outputs, step.body, ("n",), frees=step.frees)
    return replace(plan, steps=(*plan.steps[:at], region, *plan.steps[at + 1 :]))


def without_first_free(body: tuple[Step, ...]) -> tuple[Step, ...]:
    at = next(at for at, step in enumerate(body) if step.frees)
    return (*body[:at], replace(body[at], frees=body[at].frees[1:]), *body[at + 1 :])


def free_next(plan: Plan) -> Plan:
    """The body frees what the next iteration reads."""
    gone = next(iter_steps(plan.steps, LoopStep)).carries[0].yielded
    return loop(body=lambda body: (*body[:-1], replace(body[-1], frees=(*body[-1].frees, gone))))(plan)


BROKEN: dict[str, Callable[[Plan], Plan]] = {
    "a region in its place": as_region,
    "the name of another loop": loop(name=lambda _: "pool"),
    "a carry too few": loop(carries=lambda given: given[1:]),
    "carries that start with one another": carries(initial=lambda _, other: other.initial),
    "carries that change their next values": carries(yielded=lambda _, other: other.yielded),
    "a carry that starts as what it was": loop(
        carries=lambda given: (replace(given[0], initial=given[0].argument), given[1])
    ),
    "a carry that is not there": loop(carries=lambda given: (replace(given[0], initial=999), given[1])),
    "no slices": loop(slices=lambda _: ()),
    "a slice of another value": loop(slices=lambda given: (Slice(0, given[0].part),)),
    "a slice that is the whole": loop(slices=lambda given: (Slice(given[0].whole, given[0].whole),)),
    "nothing collected": loop(collects=lambda _: ()),
    "something else collected": loop(collects=lambda given: (given[0] + 1,)),
    "no end": loop(until=lambda _: None),
    "an end that is a carry": loop(until=lambda _: 0),
    "a negative limit": loop(max_steps=lambda _: -1),
    "a check that never comes": loop(check_every=lambda _: 0),
    "another dim": loop(steps_dim=lambda _: ""),
    "an input too few": loop(inputs=lambda given: given[1:]),
    "an output too few": loop(outputs=lambda given: given[1:]),
    "outputs that change places": loop(outputs=lambda given: given[::-1]),
    "an empty body": loop(body=lambda _: ()),
    "a body that runs twice": loop(body=lambda body: body * 2),
    "a value that lives on": loop(body=without_first_free),
    "a next value that is freed": free_next,
}


@pytest.mark.parametrize("device", ["cpu", NEURON])
@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_a_broken_loop_is_refused(change: Callable[[Plan], Plan], device: str):
    pipeline = sample()
    plan = pipeline.plan(device)
    assert verify(plan) is plan
    assert pipeline.bind(Plan.from_json(plan.to_json())) == plan
    broken = change(plan)
    assert broken != plan
    error = refuses(PlanError, "", lambda: pipeline.bind(broken))
    assert len(str(error)) > 30
