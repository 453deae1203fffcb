"""Buckets: one set of sizes for each name, solved jointly; what a size needs in order to run."""

from __future__ import annotations

import pytest
import torch

from orchestrator import Dim, InputError, PlanError
from orchestrator.errors import PlanOptionError
from tests.kit import Double, chain, host, linear, new, pair, refuses, spec


def dims(plan):
    return {dim.name: (dim.buckets, dim.can_pad, dim.can_chunk) for dim in plan.dims}


def joined(*declared: Dim, plan: dict | None = None):
    """One input ``("n", 3)`` through stages that are compiled for these dims."""
    pipeline = new()
    value = pipeline.input("x", spec(Dim("n", batch=True), 3, pad=0))
    for index, dim in enumerate(declared):
        value = pipeline.add(f"s{index}", Double(), inputs={"x": spec(dim, 3, pad=0)})(value)
    pipeline.output("y", value)
    return lambda: pipeline.plan(**(plan or {}))


def test_the_buckets_of_a_name_are_those_all_stages_share():
    plan = joined(Dim("n", (1, 2, 4, 8)), Dim("n", (2, 4, 16)), Dim("n", (1, 4, 2)))()
    assert dims(plan)["n"][0] == (2, 4)


def test_buckets_with_nothing_in_common_are_listed():
    error = refuses(
        PlanError,
        ("'n'", "nothing in common", "(1, 2) at 's0.x'", "(3,) at 's1.x'"),
        joined(Dim("n", (1, 2)), Dim("n", (3,))),
    )
    assert error.dim == "n"


def test_a_name_without_sizes_says_how_to_give_some():
    error = refuses(PlanError, ("'n'", "'x'", "sizes={'n': 8}", "Dim('n'"), joined())
    assert error.dim == "n"


def test_sizes_for_a_name_nobody_has_are_offered_the_nearest():
    error = refuses(
        PlanOptionError, "Did you mean 'batch'?", lambda: pair()[0].plan(sizes={"batch": 2, "bach": 4})
    )
    assert error.dim == "bach"


@pytest.mark.parametrize("size", [0, -1, True, "4", 1.5, None, (), (2, 0), (2, "4"), {"a": 1}])
def test_sizes_are_positive_ints(size):
    assert refuses(PlanError, "'n'", joined(plan={"sizes": {"n": size}})).dim == "n"


def test_sizes_pick_among_the_buckets_of_a_dim():
    assert dims(joined(Dim("n", (1, 2, 4)), plan={"sizes": {"n": (4, 1, 1)}})())["n"][0] == (1, 4)
    error = refuses(
        PlanError, ("'n' at 3", "(1, 2, 4)"), joined(Dim("n", (1, 2, 4)), plan={"sizes": {"n": 3}})
    )
    assert error.dim == "n"


def test_a_dim_of_any_size_and_buckets_contradict():
    refuses(PlanError, ("any size", "buckets (2,)"), joined(Dim.dynamic("n"), Dim("n", (2,))))


def test_a_dim_of_any_size_meets_no_static_shapes():
    pipeline = chain(Double(), takes=spec(Dim.dynamic("n")))
    error = refuses(
        PlanError,
        ("'n'", "static shapes", "'null:0'"),
        lambda: pipeline.plan(device="null", options={"static_shapes": True}),
    )
    assert error.dim == "n"


@pytest.mark.parametrize("way", ["straight", "by a device", "by the host", "into a loop"])
def test_a_dim_of_any_size_reaches_no_static_shapes_by_any_way(way: str):
    pipeline, body = new(), new("body")
    form = spec(Dim.dynamic("n"), 4)
    value = pipeline.input("x", form)
    if way == "into a loop":
        body.output("c", body.add("b", Double())(body.input("c", form)))
        pipeline.output("y", pipeline.loop("l", body, carry={"c": value}, max_steps=2))
    else:
        if way == "by a device":
            value = pipeline.add("a", Double())(value)
        elif way == "by the host":
            value = host(pipeline, "a", lambda x: x + 1, y=spec("n", 4))(value)
        pipeline.output("y", pipeline.add("b", Double())(value))
    place = {"l/b" if way == "into a loop" else "b": "null"}
    refuses(
        PlanError,
        ("Dim 'n' has no buckets (any=True)", "compiles static shapes", "Give it buckets"),
        lambda: pipeline.plan("cpu", placement=place, options={"static_shapes": True}),
    )
    assert pipeline.plan("cpu")


def test_a_dim_of_any_size_meets_no_fixed_port():
    pipeline = new()
    stage = pipeline.add("s", Double(), inputs={"x": spec(4, pad=0)})
    pipeline.output("y", stage(pipeline.input("x", spec(Dim.dynamic("n")))))
    refuses(PlanError, ("any size", "buckets"), pipeline.plan)


def test_what_a_size_needs_is_decided_at_plan_time():
    padded = joined(plan={"sizes": {"n": (2, 4)}})()
    assert dims(padded) == {"n": ((2, 4), True, False)}
    declared = joined(Dim("n", (2, 4), batch=True))()
    assert dims(declared) == {"n": ((2, 4), True, True)}
    pipeline = new()
    x = pipeline.input("x", spec(Dim("n", batch=True), 3))
    pipeline.output("y", pipeline.add("s", lambda x: x.sum(0))(x))
    assert dims(pipeline.plan(sizes={"n": (2, 4)})) == {"n": ((2, 4), False, False)}


def test_one_input_without_a_pad_rule_keeps_the_name_exact():
    pipeline = new()
    a, b = pipeline.input("a", spec(Dim("n", batch=True), pad=0)), pipeline.input("b", spec("n"))
    pipeline.output("y", pipeline.add("s", lambda a, b: a + b)(a, b))
    plan = pipeline.plan(sizes={"n": (2, 4)})
    assert dims(plan) == {"n": ((2, 4), False, True)}
    with plan.load() as session:
        session(a=torch.ones(4), b=torch.ones(4))
        session(a=torch.ones(8), b=torch.ones(8))
        error = refuses(
            InputError, ("n=3", "(2, 4)", "no pad rule"), lambda: session(a=torch.ones(3), b=torch.ones(3))
        )
        assert (error.dim, error.size) == ("n", 3)


def test_a_port_of_a_stage_may_bring_the_pad_rule():
    module = linear(3, 2)
    pipeline = new()
    stage = pipeline.add("s", module, inputs={"input": spec("n", 3, pad=0)})
    pipeline.output("y", stage(pipeline.input("x", spec(Dim("n", batch=True), 3))))
    plan = pipeline.plan(sizes={"n": (2, 4)})
    assert dims(plan)["n"] == ((2, 4), True, True)
    x = torch.randn(3, 3)
    with plan.load() as session:
        assert torch.allclose(session(x=x)["y"], module(x), atol=1e-6)


def test_a_derived_size_is_legal_inside_and_refused_where_it_is_cut_back():
    pipeline = new()
    x = pipeline.input("x", spec("n", 2, pad=0))
    twice = pipeline.add("twice", lambda x: torch.cat([x, x], 1).reshape(-1, 2))(x)
    half = pipeline.add("half", lambda v: v[0::2])(twice)
    pipeline.output("y", half)
    plan = pipeline.plan(sizes={"n": (2, 4)})
    assert str(plan.call("twice").outputs[0][1]) == "[2*n, 2] float32"
    value = torch.randn(3, 2)
    with plan.load() as session:
        assert torch.equal(session(x=value)["y"], value)
    pipeline.output("z", twice)
    error = refuses(
        PlanError, ("'twice.output'", "'2*n'", "derived", "'z'"), lambda: pipeline.plan(sizes={"n": (2, 4)})
    )
    assert error.edge == "twice.output -> z"


def test_a_derived_size_at_an_output_is_fine_where_nothing_is_padded():
    pipeline = chain(lambda x: torch.cat([x, x]), takes=spec("n"))
    with pipeline.plan(sizes={"n": (2, 4)}).load() as session:
        assert session(x=torch.ones(4))["y"].shape == (8,)
        refuses(InputError, "n=3", lambda: session(x=torch.ones(3)))


def test_a_host_stage_may_not_be_fed_a_derived_size_that_is_padded():
    pipeline = new()
    twice = pipeline.add("twice", lambda x: torch.cat([x, x]))(pipeline.input("x", spec("n", pad=0)))
    stage = pipeline.add("h", lambda v: v.sum(), device="host", outputs={"s": spec()})
    pipeline.output("y", stage(twice))
    refuses(PlanError, ("'twice.output'", "'h.v'"), lambda: pipeline.plan(sizes={"n": 4}))


@pytest.mark.parametrize("rule", [0, -1.0, "repeat_first"])
def test_fixed_sizes_are_joined_by_pad_and_slice(rule):
    tokens, wide, narrow = torch.randn(1, 5, 3), spec(1, 8, 3, pad=rule), spec(1, 4, 3, allow_slice=True)
    pipeline = new()
    x = pipeline.input("x", spec(1, 5, 3))
    pipeline.output("wide", pipeline.add("w", Double(), inputs={"x": wide})(x))
    pipeline.output("narrow", pipeline.add("n", Double(), inputs={"x": narrow})(x))
    plan = pipeline.plan()
    fill = tokens[:, :1].expand(1, 3, 3) if rule == "repeat_first" else torch.full((1, 3, 3), float(rule))
    with plan.load() as session:
        result = session(x=tokens)
    assert torch.equal(result["wide"], torch.cat([tokens, fill], 1) * 2)
    assert torch.equal(result["narrow"], tokens[:, :4] * 2)


def test_a_port_may_cut_one_dim_and_pad_another_and_cast():
    port = spec(2, 6, dtype=torch.float64, pad=9, allow_slice=True, allow_cast=True)
    pipeline = new()
    pipeline.output("y", pipeline.add("s", Double(), inputs={"x": port})(pipeline.input("x", spec(3, 4))))
    plan = pipeline.plan()
    assert [adapter.kind for adapter in plan.edges[0].adapters] == ["slice", "cast", "pad"]
    x = torch.randn(3, 4)
    expected = torch.cat([x[:2].double(), torch.full((2, 2), 9.0, dtype=torch.float64)], 1) * 2
    with plan.load() as session:
        assert torch.equal(session(x=x)["y"], expected)


def test_a_named_dim_and_a_fixed_pad_on_one_port():
    port = spec("n", 6, pad=9)
    pipeline = new()
    pipeline.output(
        "y",
        pipeline.add("s", Double(), inputs={"x": port})(
            pipeline.input("x", spec(Dim("n", batch=True), 4, pad=0))
        ),
    )
    with pipeline.plan(sizes={"n": (2, 4)}).load() as session:
        for size in (1, 2, 3, 4, 7):
            x = torch.randn(size, 4)
            assert torch.equal(session(x=x)["y"], torch.cat([x, torch.full((size, 2), 9.0)], 1) * 2)
