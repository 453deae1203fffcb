"""Aliases: an output that is an input, updated in place; where somebody needs the old value, one copy is made."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from orchestrator import GraphError, ModelWrapper, Plan, PlanError
from orchestrator.planner.verify.steps import verify
from tests.aliases import LENGTH, by_hand, clones, looped, requests, zeros
from tests.kit import chain, new, refuses, spec

PAST = {"past_next": "past"}


def add_one(past):
    past.add_(1)
    return past


def single(stage, takes=None, aliases=None, **add):
    return chain(stage, takes=takes or spec(2, 4), aliases=aliases or {"output": "past"}, **add)


# What is refused.


@pytest.mark.parametrize(
    ("aliases", "parts"),
    [
        ({"past_nxt": "past"}, ("'past_nxt'", "Did you mean 'past_next'")),
        ({"past_next": "pst"}, ("'pst'", "Did you mean 'past'")),
        ({"past_next": "past", "y": "past"}, ("two outputs", "'past_next' and 'y'", "'past'")),
        ("past", ("is a dict", "not 'past'")),
    ],
)
def test_an_alias_names_ports_each_once(aliases, parts):
    stage = lambda x, past: (x, past)  # noqa: E731
    refuses(GraphError, parts, lambda: new().add("a", stage, outputs=("y", "past_next"), aliases=aliases))


def test_a_host_stage_and_a_pipeline_have_no_aliases():
    declared = {"y": spec(2, 4)}
    add = lambda: new().add("a", add_one, device="host", outputs=declared, aliases={"y": "past"})  # noqa: E731
    refuses(GraphError, ("host stage", "aliases="), add)
    refuses(
        GraphError,
        ("aliases= is for a stage",),
        lambda: new().add("a", chain(nn.ReLU()), aliases={"y": "x"}),
    )


def test_an_output_of_another_shape_or_dtype_is_refused_with_both():
    short = lambda past: past[:, :2].clone()  # noqa: E731
    refuses(PlanError, ("'a.output'", "[2, 2] float32", "'a.past'", "[2, 4] float32"), single(short).plan)
    half = lambda past: past.half()  # noqa: E731
    refuses(PlanError, ("[2, 4] float16", "[2, 4] float32"), single(half).plan)


@pytest.mark.parametrize(
    "stage",
    [lambda past: past + 1, lambda past: past.clone(), lambda past: past.view(4, 2).t().reshape(2, 4)],
)
def test_an_output_that_is_another_tensor_is_refused(stage):
    refuses(PlanError, ("another tensor", "return past itself"), single(stage).plan)


def test_a_write_anywhere_else_is_refused_as_before():
    def both(past, other):
        other.add_(1)
        return past.add_(1)

    pipeline = new()
    past, other = (pipeline.input(name, spec(2)) for name in ("past", "other"))
    pipeline.output("y", pipeline.add("a", both, aliases={"output": "past"})(past, other))
    refuses(PlanError, ("writes into its input 'other'", "aliases="), pipeline.plan)


def test_an_output_that_is_not_given_or_an_input_that_is_none_is_refused():
    refuses(PlanError, ("'past_next'", "which it does not give"), single(add_one, aliases=PAST).plan)
    pipeline = new()
    stage = pipeline.add("a", lambda past, n=2: past.add_(n), aliases={"output": "n"})
    pipeline.output("y", stage(pipeline.input("past", spec(2))))
    refuses(PlanError, ("'n'", "is not fed"), pipeline.plan)


class Opaque(ModelWrapper):
    opaque = True
    outputs = {"y": spec(2, 4)}  # noqa: RUF012

    def forward(self, past):
        return past.add_(1)


def test_what_cannot_be_tried_cannot_be_proven():
    refuses(PlanError, ("cannot be tried", "'y'", "'past'"), single(Opaque(), aliases={"y": "past"}).plan)


# Where no copy is needed, and where one is.


def test_a_value_of_the_plans_own_that_nobody_else_reads_is_updated_as_it_is():
    pipeline = looped(lambda p, x: p.add("zeros", zeros)(x))
    plan = pipeline.plan()
    assert not clones(plan)
    assert "updated in place" in str(plan)
    x = requests()["x"]
    with plan.load() as session:
        for _ in range(2):
            result = session(x=x)
            want = by_hand(x, zeros(x))
            assert all(torch.equal(one, other) for one, other in zip(result.values(), want, strict=True))


def test_its_bytes_count_once():
    size = 2 * LENGTH * 4
    plan = looped(lambda p, x: p.add("zeros", zeros)(x)).plan()
    assert plan.summary["peak_bytes"]["cpu"] < 2 * size
    copying = looped().plan()
    assert 2 * size <= copying.summary["peak_bytes"]["cpu"] < 3 * size


def test_the_requests_own_tensor_is_copied_once_before_the_loop():
    plan = looped().plan()
    assert list(clones(plan)) == ["cache -> loop.cache"]
    assert "request's own tensor 'cache'" in clones(plan)["cache -> loop.cache"]
    request = requests()
    before = {name: value.clone() for name, value in request.items()}
    with plan.load() as session:
        result = session(**request)
    assert torch.equal(result["cache"], by_hand(**before)[1])
    assert all(torch.equal(request[name], before[name]) for name in request)


def test_a_constant_is_copied_for_each_request():
    start = torch.arange(2.0 * LENGTH).reshape(2, LENGTH)
    plan = looped(lambda _, __: start).plan()
    assert "it is a constant" in clones(plan)["constant#1 -> loop.cache"]
    x = requests()["x"]
    with plan.load() as session:
        for _ in range(2):
            assert torch.equal(session(x=x)["cache"], by_hand(x, start)[1])


def test_a_host_stage_may_keep_what_it_gave():
    pipeline = new()
    made = pipeline.add("make", lambda x: x * 2, device="host", outputs={"y": spec(2)})
    value = made(pipeline.input("x", spec(2)))
    pipeline.output("y", pipeline.add("one", add_one, aliases={"output": "past"})(value))
    assert "stage 'make' may keep" in clones(pipeline.plan())["make.y -> one.past"]


def straight(*, reader_first):
    """A value that is updated, with another reader before or after."""
    pipeline = new()
    value = pipeline.add("make", lambda x: x * 2)(pipeline.input("x", spec(2)))
    one, reader = (
        pipeline.add("one", add_one, aliases={"output": "past"}),
        pipeline.add("read", lambda x: x * 3),
    )
    if reader_first:
        read = reader(value)
        updated = one(value)
    else:
        updated, read = one(value), reader(value)
    pipeline.output("updated", updated)
    pipeline.output("read", read)
    return pipeline


@pytest.mark.parametrize("reader_first", [True, False])
def test_a_later_reader_gets_the_old_value_and_is_named(reader_first):
    plan = straight(reader_first=reader_first).plan()
    if reader_first:
        assert not clones(plan)
    else:
        assert "'read.x' reads the old value afterwards" in clones(plan)["make.output -> one.past"]
    with plan.load() as session:
        result = session(x=torch.ones(2))
    assert result["updated"].tolist() == [3, 3]
    assert result["read"].tolist() == [6, 6]


def test_an_output_of_the_pipeline_is_a_reader():
    pipeline = new()
    value = pipeline.add("make", lambda x: x * 2)(pipeline.input("x", spec(2)))
    pipeline.output("old", value)
    pipeline.output("new", pipeline.add("one", add_one, aliases={"output": "past"})(value))
    plan = pipeline.plan()
    assert "output 'old' reads" in clones(plan)["make.output -> one.past"]
    with plan.load() as session:
        assert {name: value.tolist() for name, value in session(x=torch.ones(2)).items()} == {
            "old": [2, 2],
            "new": [3, 3],
        }


def test_a_reader_in_the_body_and_what_is_collected_cost_a_copy_in_each_iteration():
    def read(inner, values, results):
        inner.output("old", inner.add("read", lambda cache: cache.sum(1))(values["cache"]))

    make = lambda p, x: p.add("zeros", zeros)(x)  # noqa: E731
    plan = looped(make, read, collect=("old",), outputs=("x", "old[]")).plan()
    assert "'loop/read.cache' reads" in clones(plan)["loop.cache -> loop/write.cache"]
    collected = looped(make, collect=("cache",), outputs=("cache[]", "cache")).plan()
    assert "collects" in clones(collected)["loop.cache -> loop/write.cache"]


def test_one_value_by_two_ports_is_copied():
    pipeline = new()
    value = pipeline.add("make", lambda x: x * 2)(pipeline.input("x", spec(2)))
    stage = pipeline.add(
        "two", lambda past, other: past.add_(1) * 1 if False else past.add_(other), aliases={"output": "past"}
    )
    pipeline.output("y", stage(value, value))
    assert "'two.other' reads it, too" in clones(pipeline.plan())["make.output -> two.past"]


# The plan as data, and the proof of it.


def test_a_plan_with_updates_is_data_and_binds_again():
    pipeline = looped()
    plan = pipeline.plan()
    read = Plan.from_json(plan.to_json())
    assert read == plan
    with pipeline.bind(read).load() as session:
        request = requests()
        assert torch.equal(session(**request)["cache"], by_hand(**request)[1])


def test_the_verifier_finds_a_copy_that_is_missing():
    cases = [(looped(), "may be somebody else's"), (straight(reader_first=False), "after it was updated")]
    for pipeline, words in cases:
        plan = pipeline.plan()
        broken = _without(plan, _clone_steps(plan.steps)[0])
        refuses(PlanError, words, lambda broken=broken: verify(broken))


def _clone_steps(steps):
    return [step for step in steps if getattr(step, "adapter", None) and step.adapter.kind == "clone"]


def _without(plan, clone):
    """The plan without a copy: whoever read it reads its source."""
    source, target = clone.inputs[0], clone.outputs[0]
    steps = []
    for step in plan.steps:
        if step is clone:
            continue
        inputs = tuple(sorted({source if index == target else index for index in step.inputs}))
        inputs = (
            inputs
            if hasattr(step, "carries")
            else tuple(source if index == target else index for index in step.inputs)
        )
        frees = tuple(dict.fromkeys(source if index == target else index for index in step.frees))
        step = replace(
            step, inputs=inputs, frees=tuple(index for index in frees if index not in _late(plan, step))
        )
        if hasattr(step, "carries"):
            carries = tuple(
                replace(carry, initial=source if carry.initial == target else carry.initial)
                for carry in step.carries
            )
            step = replace(step, carries=carries)
        steps.append(step)
    edges = tuple(
        replace(edge, adapters=edge.adapters[:-1], value=source) if edge.value == target else edge
        for edge in plan.edges
    )
    return replace(plan, steps=tuple(steps), edges=edges)


def _late(plan, step):
    """Values that a later step reads."""
    at = [other.outputs for other in plan.steps].index(step.outputs)
    return {index for other in plan.steps[at + 1 :] for index in other.inputs}


def test_a_stage_keeps_its_alias_in_a_pipeline_that_is_inlined():
    inner = new("inner")
    inner.output("y", inner.add("one", add_one, aliases={"output": "past"})(inner.input("x", spec(2))))
    outer = new()
    value = outer.add("make", lambda x: x * 2)(outer.input("x", spec(2)))
    outer.output("y", outer.add("sub", inner)(value))
    plan = outer.plan()
    assert plan.call("sub/one").aliases == (("output", "past"),)
    assert not clones(plan)


def test_a_plan_cannot_say_of_itself_what_is_updated():
    pipeline = chain(lambda x: x + 1, nn.ReLU())
    plan = pipeline.plan()
    call, *others = plan.calls
    for aliases, words in (
        ((("output", "x"),), "may be somebody else's"),
        ((("y", "x"),), "which it cannot"),
        ((("output", "x"), ("output", "x")), "which it cannot"),
    ):
        edited = replace(plan, calls=(replace(call, aliases=aliases), *others))
        refuses(PlanError, words, lambda edited=edited: verify(edited))
    # Of a value of the plan's own it would be sound, but the stage says nothing of it.
    first, second = plan.calls
    edited = replace(plan, calls=(first, replace(second, aliases=(("output", second.inputs[0][0]),))))
    verify(edited)
    refuses(PlanError, "call 'b' is", lambda: pipeline.bind(edited))


def test_two_carries_of_one_start_need_one_copy():
    def step(a, b):
        return a.add_(1), b.mul_(2)

    inner = new("body")
    names = ("a", "b")
    results = inner.add("step", step, outputs=names, aliases={"a": "a", "b": "b"})(
        *(inner.input(name, spec(2)) for name in names)
    )
    for name in names:
        inner.output(name, results[name])
    pipeline = new()
    start = pipeline.add("make", lambda x: x * 2)(pipeline.input("x", spec(2)))
    ends = pipeline.loop("loop", inner, carry={"a": start, "b": start}, max_steps=3)
    for name in names:
        pipeline.output(name, ends[name])
    plan = pipeline.plan()
    assert len(clones(plan)) == 1
    with plan.load() as session:
        result = session(x=torch.ones(2))
    assert (result["a"].tolist(), result["b"].tolist()) == ([5, 5], [16, 16])


def test_carries_that_change_places_keep_their_buffers():
    def step(a, b):
        return a.add_(b), b

    inner = new("body")
    a, b = (inner.input(name, spec(2)) for name in ("a", "b"))
    results = inner.add("step", step, outputs=("a", "b"), aliases={"a": "a", "b": "b"})(a, b)
    inner.output("a", results["b"])
    inner.output("b", results["a"])
    pipeline = new()
    x = pipeline.input("x", spec(2))
    starts = {name: pipeline.add(f"make_{name}", lambda x: x * 2)(x) for name in ("a", "b")}
    ends = pipeline.loop("loop", inner, carry=starts, max_steps=5)
    for name in ("a", "b"):
        pipeline.output(name, ends[name])
    plan = pipeline.plan()
    assert not clones(plan)
    with plan.load() as session:
        result = session(x=torch.ones(2))
    a, b = torch.full((2,), 2.0), torch.full((2,), 2.0)
    for _ in range(5):
        a, b = b, a + b
    assert torch.equal(result["a"], a)
    assert torch.equal(result["b"], b)


def test_a_loop_in_a_loop_has_one_buffer():
    inner = new("inner")
    inner.output("past", inner.add("one", add_one, aliases={"output": "past"})(inner.input("past", spec(2))))
    outer = new("outer")
    value = outer.input("past", spec(2))
    outer.output("past", outer.loop("inner", inner, carry={"past": value}, max_steps=3))
    pipeline = new()
    start = pipeline.add("make", lambda x: x * 2)(pipeline.input("x", spec(2)))
    pipeline.output("y", pipeline.loop("outer", outer, carry={"past": start}, max_steps=4))
    plan = pipeline.plan()
    assert not clones(plan)
    assert plan.summary["peak_bytes"]["cpu"] == 2 * 8  # the request's input, and the one buffer
    with plan.load() as session:
        assert session(x=torch.ones(2))["y"].tolist() == [14, 14]
