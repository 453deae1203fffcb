"""Regions: the calls in which a born dim lives run as a whole; everything else stays outside."""

from __future__ import annotations

import pytest
import torch

import orchestrator_neuron
from orchestrator import Dim, Pipeline, PlanError, Residency, StageError
from orchestrator.plan import AdaptStep, CallStep, Plan, RegionStep
from orchestrator.plan.steps import iter_steps
from orchestrator.testing.pytest_plugin import make_plugins
from tests.kit import Double, host, linear, new, refuses, spec

N = Dim("n", (2, 4), batch=True)


def add(a, b):
    return a + b


def shape(plan: Plan) -> list[object]:
    """Calls in order; those of a region as a list."""
    return [
        [inner.name for inner in iter_steps(step.body, CallStep)]
        if isinstance(step, RegionStep)
        else step.label
        for step in plan.steps
        if not isinstance(step, AdaptStep)
    ]


def finder(pipeline, name="find", dim=N, **more):
    return host(pipeline, name, lambda x: x, **{"crops": spec(dim, 4, pad=0), **more})


def test_all_calls_that_read_the_dim_are_one_region():
    pipeline = new()
    value = finder(pipeline)(pipeline.input("x", spec(3, 4)))
    for name in "abc":
        value = pipeline.add(name, Double())(value)
    pipeline.output("y", value)
    plan = pipeline.plan()
    assert shape(plan) == ["find", ["a", "b", "c"]]
    (dim,) = plan.dims
    assert (dim.decided_by, dim.can_pad, dim.can_chunk) == ("find.crops", True, True)


def test_branches_of_one_dim_share_a_region():
    pipeline = new()
    crops = finder(pipeline)(pipeline.input("x", spec(3, 4)))
    left, right = pipeline.add("left", Double())(crops), pipeline.add("right", linear(4, 4))(crops)
    pipeline.output("y", pipeline.add("join", add)(left, right))
    assert shape(pipeline.plan()) == ["find", ["left", "right", "join"]]


def test_a_host_stage_in_between_parts_two_regions():
    pipeline = new()
    crops = finder(pipeline)(pipeline.input("x", spec(3, 4)))
    first = pipeline.add("first", Double())(crops)
    kept = host(pipeline, "keep", lambda v: v, kept=spec("n", 4, pad=0))(first)
    pipeline.output("y", pipeline.add("second", Double())(kept))
    plan = pipeline.plan()
    assert shape(plan) == ["find", ["first"], "keep", ["second"]]


def test_two_dims_are_two_regions():
    pipeline = new()
    x = pipeline.input("x", spec(3, 4))
    one = pipeline.add("one", Double())(finder(pipeline, "f1")(x))
    two = pipeline.add("two", Double())(finder(pipeline, "f2", Dim("m", (8,), batch=True))(x))
    pipeline.output("y", one)
    pipeline.output("z", two)
    assert shape(pipeline.plan()) == ["f1", ["one"], "f2", ["two"]]


def test_a_call_that_reads_both_dims_is_a_region_of_both():
    pipeline = new()
    x = pipeline.input("x", spec(3, 4))
    one, two = finder(pipeline, "f1")(x), finder(pipeline, "f2", Dim("m", (8,), batch=True))(x)
    pipeline.output("y", pipeline.add("cross", lambda a, b: a @ b.T)(one, two))
    plan = pipeline.plan()
    region = next(iter_steps(plan.steps, RegionStep))
    assert region.dims == ("n", "m")
    assert all(dim.can_chunk for dim in plan.dims)


def test_what_does_not_hang_on_the_dim_stays_outside():
    pipeline = new()
    x = pipeline.input("x", spec(3, 4))
    weight = pipeline.add("weight", Double())(x)
    pipeline.output("y", pipeline.add("net", lambda c, w: c @ w.T)(finder(pipeline)(x), weight))
    plan = pipeline.plan("cuda")
    region = next(iter_steps(plan.steps, RegionStep))
    assert {plan.values[index].origin for index in region.inputs} == {"find.crops", "weight.output"}
    assert "weight" in shape(plan)


def test_a_region_is_convex():
    """A call between two of the region, that is not in it, parts it."""
    pipeline = new()
    crops = finder(pipeline)(pipeline.input("x", spec(3, 4)))
    a = pipeline.add("a", Double())(crops)
    total = host(pipeline, "total", lambda v: v.sum(0), sum=spec(4))(a)
    near = pipeline.add("near", Double())(total)
    pipeline.output("y", pipeline.add("b", lambda v, t: v + t)(a, near))
    plan = pipeline.plan()
    assert shape(plan) == ["find", ["a"], "total", "near", ["b"]]


def test_a_value_that_leaves_without_the_dim_keeps_it_from_running_in_chunks():
    pipeline = new()
    crops = finder(pipeline)(pipeline.input("x", spec(3, 4)))
    pipeline.output("y", pipeline.add("pool", lambda v: v.mean(0))(crops))
    (dim,) = pipeline.plan().dims
    assert not dim.can_chunk


def test_a_derived_size_may_not_leave_its_region():
    pipeline = new()
    crops = finder(pipeline)(pipeline.input("x", spec(3, 4)))
    pipeline.output("y", pipeline.add("twice", lambda v: torch.cat([v, v]))(crops))
    refuses(PlanError, ("'twice.output'", "'2*n'"), pipeline.plan)


def test_sizes_pick_buckets_of_a_born_dim_too():
    pipeline = new()
    pipeline.output("y", pipeline.add("a", Double())(finder(pipeline)(pipeline.input("x", spec(3, 4)))))
    assert pipeline.plan(sizes={"n": 4}).dims[0].buckets == (4,)
    refuses(PlanError, "none of its buckets", lambda: pipeline.plan(sizes={"n": 3}))


def test_a_born_dim_without_buckets_has_no_sizes():
    pipeline = new()
    pipeline.output(
        "y", pipeline.add("a", Double())(finder(pipeline, dim="n")(pipeline.input("x", spec(3, 4))))
    )
    refuses(PlanError, ("'n'", "no sizes"), pipeline.plan)


@pytest.mark.parametrize("device", ["cpu", "cuda", "null"])
def test_plans_with_regions_are_data_like_others(device):
    pipeline = new()
    x = pipeline.input("x", spec(3, 4))
    crops = finder(pipeline)(x)
    pipeline.output("y", pipeline.add("a", Double())(crops))
    pipeline.output("raw", crops)
    plan = pipeline.plan(device)
    assert pipeline.bind(Plan.from_json(plan.to_json())) == plan


def two_regions():
    """A stage that reads two born dims and gives one of them, and a stage after it."""
    plugins = make_plugins()
    plugins.register(orchestrator_neuron)
    pipeline = Pipeline("p", plugins=plugins)
    forms = {"more": spec(Dim("n", (2, 4)), 4, pad=0), "less": spec(Dim("m", (2, 4)), 4, pad=0)}
    find = pipeline.add("find", lambda x: (x[x[:, 0] > 0], x[x[:, 0] < 0]), device="host", outputs=forms)
    more, less = find(pipeline.input("x", spec(Dim.dynamic("k"), 4)))
    scaled = pipeline.add("scale", lambda more, less: more * less.sum())(more, less)
    pipeline.output("y", pipeline.add("double", Double())(scaled))
    return pipeline


@pytest.mark.parametrize("device", ["cpu", "neuron-emulated"])
def test_what_leaves_a_region_without_chunks_stays_as_it_is_for_the_next_one(device: str):
    plan = two_regions().plan(device)
    assert shape(plan) == ["find", ["scale"], ["double"]]
    (edge,) = (edge for edge in plan.edges if edge.target.startswith("double."))
    assert (edge.residency, edge.adapters) == (Residency.DEVICE, ())
    more, less = torch.arange(1.0, 13).view(3, 4), -torch.ones(1, 4)
    with plan.load() as session:
        expected = 2 * (more * less.sum())
        assert session(x=torch.cat([more, less]))["y"].equal(expected)
        assert session(x=less)["y"].shape == (0, 4)
        # Nothing has computed what the second stage would read, so there is nothing that it could give.
        with pytest.raises(StageError, match=r"'m' has no items.*'scale\.output' leaves"):
            session(x=more)
