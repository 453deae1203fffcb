"""A pipeline used as a stage of another: inlined under its name, once for each call, with one set of weights."""

from __future__ import annotations

import torch

from orchestrator import GraphError, PlanError, TensorSpec
from tests.kit import COMPUTE, Double, chain, host, linear, new, refuses, spec


def shift(x, by):
    return x + by


def encoder(takes: TensorSpec | None = None):
    """``z -> enc -> shift by a constant -> w``."""
    inner = new("encoder")
    z = inner.input("z", takes or spec(2, 4))
    code = inner.add("enc", linear(4, 4))(z)
    inner.output("w", inner.add("shift", shift)(code, torch.ones(4)))
    return inner


def test_ports_may_be_called_self():
    """Kind: a user's name that is an identifier of the product's own code."""
    inner = new("inner")
    inner.output(
        "w", inner.add("double", Double(), inputs=("self",))(**{"self": inner.input("self", spec(2))})
    )
    outer = new()
    outer.output("y", outer.add("sub", inner)(**{"self": outer.input("x", spec(2))}))
    with outer.plan().load() as session:
        assert session(x=torch.ones(2))["y"].tolist() == [2, 2]


def test_calls_are_named_by_the_way_to_them():
    outer = new()
    sub = outer.add("sub", encoder())
    outer.output("y", sub(sub(outer.input("x", spec(2, 4)))))
    plan = outer.plan()
    assert [call.name for call in plan.calls] == ["sub/enc", "sub/shift", "sub/enc#2", "sub/shift#2"]
    assert [call.stage for call in plan.calls] == ["sub/enc", "sub/shift"] * 2
    assert dict(plan.weights) == {"cpu": 4 * (16 + 4)}


def test_results_are_those_of_the_modules_called_by_hand():
    enc = linear(4, 4)
    outer = new()
    sub = outer.add("sub", encoder())
    outer.output("y", sub(z=sub(outer.input("x", spec(2, 4)))))
    x = torch.randn(2, 4)
    with outer.plan().load() as session:
        assert torch.equal(session(x=x)["y"], enc(enc(x) + 1) + 1)


def test_nesting_goes_on():
    middle = new("middle")
    middle.output("m", middle.add("in", encoder())(middle.input("z", spec(2, 4))))
    outer = new()
    outer.output("y", outer.add("mid", middle)(outer.input("x", spec(2, 4))))
    assert [call.name for call in outer.plan().calls] == ["mid/in/enc", "mid/in/shift"]


def test_two_inlined_pipelines_keep_apart():
    outer = new()
    x = outer.input("x", spec(2, 4))
    outer.output("y", outer.add("two", encoder())(outer.add("one", encoder())(x)))
    plan = outer.plan()
    assert [call.name for call in plan.calls] == ["one/enc", "one/shift", "two/enc", "two/shift"]
    assert dict(plan.weights) == {"cpu": 2 * 4 * (16 + 4)}


def test_several_outputs_come_as_a_tuple_with_names():
    inner = new("inner")
    z = inner.input("z", spec(2))
    inner.output("same", z)
    inner.output("twice", inner.add("d", Double())(z))
    outer = new()
    same, twice = outer.add("sub", inner)(outer.input("x", spec(2)))
    outer.output("a", twice)
    outer.output("b", same)
    with outer.plan().load() as session:
        result = session(x=torch.ones(2))
    assert (result["a"].tolist(), result["b"].tolist()) == ([2.0, 2.0], [1.0, 1.0])


def test_what_an_inner_input_takes_holds_for_what_it_is_fed():
    outer = new()
    x = outer.input("x", spec(2, 3))
    outer.output("y", outer.add("sub", encoder())(x))
    error = refuses(PlanError, ("'x'", "[2, 3] float32", "[2, 4] float32", "pad rule"), outer.plan)
    assert (error.source, error.target) == (spec(2, 3), spec(2, 4))


def test_an_inner_input_pads_and_casts_as_it_says():
    outer = new()
    x = outer.input("x", spec(2, 3, dtype=torch.float64))
    outer.output("y", outer.add("sub", encoder(spec(2, 4, pad=5, allow_cast=True)))(x))
    enc = linear(4, 4)
    value = torch.randn(2, 3, dtype=torch.float64)
    by_hand = enc(torch.cat([value.float(), torch.full((2, 1), 5.0)], 1)) + 1
    with outer.plan().load() as session:
        assert torch.equal(session(x=value)["y"], by_hand)


def test_an_inner_input_that_nobody_reads_may_be_fed_anything():
    inner = new("inner")
    z, _spare = inner.input("z", spec(2)), inner.input("spare", spec(2))
    inner.output("w", inner.add("d", Double())(z))
    for spare in (torch.zeros(2), "feed"):
        outer = new()
        x = outer.input("x", spec(2))
        outer.output("y", outer.add("sub", inner)(x, x if spare == "feed" else spare))
        with outer.plan().load() as session:
            assert session(x=torch.ones(2))["y"].tolist() == [2.0, 2.0]


def test_a_device_reaches_all_stages_but_those_that_have_one():
    inner = new("inner")
    z = inner.input("z", spec(2))
    value = inner.add("fixed", Double(), device="null:1")(inner.add("free", Double())(z))
    inner.output("w", host(inner, "home", lambda v: v + 1, out=spec(2))(value))
    outer = new()
    outer.output("y", outer.add("sub", inner, device="null:0")(outer.input("x", spec(2))))
    plan = outer.plan(options=COMPUTE)
    assert {call.name: call.device for call in plan.calls} == {
        "sub/free": "null:0",
        "sub/fixed": "null:1",
        "sub/home": "host",
    }


def test_placement_takes_the_inlined_pipeline_or_a_stage_in_it():
    outer = new()
    outer.output("y", outer.add("sub", encoder())(outer.input("x", spec(2, 4))))
    plan = outer.plan(placement={"sub": "cuda", "sub/shift": "cpu"})
    assert {call.name: call.device for call in plan.calls} == {"sub/enc": "cuda:0", "sub/shift": "cpu"}


def test_a_pipeline_takes_no_ports_and_no_options_of_a_stage():
    for word in ({"inputs": ("a",)}, {"outputs": ("a",)}, {"config": {"a": 1}}):
        refuses(GraphError, "with its own", lambda more=word: new().add("sub", encoder(), **more))


def test_an_inner_pipeline_that_is_unfinished_is_refused_where_it_is_added():
    refuses(GraphError, "no output", lambda: new().add("sub", new("inner")))


def test_the_inner_pipeline_may_change_afterwards():
    inner = chain(Double())
    outer = new()
    sub = outer.add("sub", inner)
    inner.add("more", Double())
    outer.output("y", sub(outer.input("x", spec(2))))
    assert list(outer.freeze().calls) == ["sub/a"]


def test_pipelines_may_be_nested_400_deep():
    inner = chain(Double())
    for number in range(400):
        outer = new(f"level {number}")
        outer.output("y", outer.add("sub", inner)(outer.input("x", spec(2))))
        inner = outer
    assert inner.freeze().order == ("sub/" * 400 + "a",)
    with inner.plan().load() as session:
        assert session(x=torch.ones(2))["y"].tolist() == [2, 2]
