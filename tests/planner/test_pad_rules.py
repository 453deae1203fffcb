"""Pad rules: whose numbers they speak of, and where what is padded cannot be told from what was given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator import Dim, InputError, Pipeline, PlanError, TensorSpec
from orchestrator.plan.steps import AdaptStep
from orchestrator.planner.verify.steps import verify
from tests.bodies import new
from tests.kit import host, refuses, spec


def _twice(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, x + 1])


def test_a_derived_size_is_not_cut_where_the_port_alone_brings_a_pad_rule():
    """Kind: who pads a dim, and who may cut it, is asked in two places that differ."""
    pipeline = new()
    x = pipeline.input("x", spec(Dim("rows", (4,)), 6))
    wide = pipeline.add("widen", lambda x: x + 0, inputs={"x": spec("rows", 7, pad=2)})(x)
    pipeline.output("y", pipeline.add("twice", _twice)(wide))
    refuses(PlanError, ("'twice.output'", "2*rows", "padding is not known"), pipeline.plan)


def test_a_derived_size_is_not_cut_where_another_input_without_a_rule_stays_on_the_host():
    pipeline = new()
    a, b = pipeline.input("a", spec(Dim("rows", (4,)), 2, pad=0)), pipeline.input("b", spec("rows", 2))
    pipeline.output("y", pipeline.add("twice", _twice)(a))
    pipeline.output("z", host(pipeline, "sum", lambda b: int(b.sum()), n=int)(b))
    refuses(PlanError, ("'twice.output'", "2*rows", "padding is not known"), pipeline.plan)


@pytest.mark.parametrize(
    "port", [spec(12, 2, pad=5), spec(2, 2, allow_slice=True), spec("n", 3, pad=0)], ids=str
)
def test_a_padded_dim_is_not_brought_to_another_size(port: TensorSpec):
    """By hand, five rows grow to twelve with the port's rule; padded to eight first, three of them are the input's."""
    pipeline = new()
    x = pipeline.input("x", spec(Dim("n", (2, 8)), 2, pad=0))
    twice = pipeline.add("twice", lambda x: x * 2)(x)
    pipeline.output("y", pipeline.add("port", lambda x: x + 1, inputs={"x": port})(twice))
    if port.dims[0] == "n":
        with pipeline.plan().load() as session:
            expected = torch.nn.functional.pad(torch.ones(5, 2) * 2, (0, 1)) + 1
            assert torch.equal(session(x=torch.ones(5, 2))["y"], expected)
        return
    words = (
        "Sizes differ",
        "'twice.output' gives [n, 2]",
        "'port.x' takes",
        "Do it in a stage, or use no pad rule for 'n'",
    )
    refuses(PlanError, words, pipeline.plan)


def test_an_input_grows_to_a_fixed_size_by_its_own_rule():
    pipeline = new()
    x = pipeline.input("x", spec(Dim("n", (2, 8)), 2, pad=3))
    pipeline.output("y", pipeline.add("port", lambda x: x + 1, inputs={"x": spec(12, 2, pad=3)})(x))
    with pipeline.plan().load() as session:
        for size in range(1, 9):
            expected = torch.full((12, 2), 4.0)
            expected[:size] = 8.0
            assert torch.equal(session(x=torch.full((size, 2), 7.0))["y"], expected), size


def _mapped(function: Any, rule: Any, **outside: Any) -> tuple[Pipeline, Any]:
    body = Pipeline("body")
    x = body.input("x", spec(Dim("k", (2,)), 3, pad=0))
    body.output("o", body.add("function", function)(x))
    pipeline = new()
    items = pipeline.input("x", spec(Dim("b", (4,), **outside), 3, pad=rule))
    return pipeline, pipeline.map("m", body, over={"x": items})


@pytest.mark.parametrize("rule", [100.0, float("nan"), 0])
def test_the_rule_of_an_input_does_not_fill_what_a_map_made_of_it(rule: float):
    """Kind: a pad rule that was promised for one value fills another, here an index of a table of eight rows."""
    pipeline, ids = _mapped(lambda x: x.argmax(1), rule)
    pipeline.output("y", pipeline.add("embed", nn.Embedding(8, 2).eval())(ids))
    words = ("'m.o[]'", "'embed.input'", "no pad rule speaks of its numbers", "Dim('b', ..., batch=True)")
    refuses(PlanError, words, pipeline.plan)


@pytest.mark.parametrize("way_out", ["batch", "port"])
def test_both_ways_out_of_it_work(way_out: str):
    pipeline, ids = _mapped(lambda x: x.argmax(1), 100.0, **({"batch": True} if way_out == "batch" else {}))
    table = nn.Embedding(8, 2).eval()
    ports = {"inputs": {"input": spec("b", dtype=torch.int64, pad=0)}} if way_out == "port" else {}
    pipeline.output("y", pipeline.add("embed", table, **ports)(ids))
    with pipeline.plan().load() as session, torch.no_grad():
        for size in range(1, 5):
            value = torch.eye(4, 3)[:size]
            assert torch.equal(session(x=value)["y"], table(value.argmax(1))), size


def test_what_counts_rows_after_a_map_is_refused():
    """A row of ones is not dark, but True, the fill that the number 1 becomes, says that it is."""
    pipeline, dark = _mapped(lambda x: x.sum(1) < 1, 1.0)
    pipeline.output("n", pipeline.add("count", lambda dark: dark.sum().reshape(1))(dark))
    refuses(PlanError, ("'m.o[]'", "'count.dark'", "no pad rule speaks of its numbers"), pipeline.plan)


def _looped(rule: Any = None) -> Pipeline:
    step = Pipeline("step")
    x = step.input("x", spec("b", 3, pad=rule))
    zero = step.add("zero", lambda x: x * 0)(x)
    step.output("x", host(step, "one", lambda x: x + 1, y=spec("b", 3))(zero))
    pipeline = new()
    x = pipeline.input("x", spec(Dim("b", (4,)), 3, pad=0))
    result = pipeline.loop("l", step, carry={"x": x}, max_steps=1)
    pipeline.output("least", pipeline.add("least", lambda y: y.amin().reshape(1))(result))
    return pipeline


def test_the_rule_of_a_carrys_start_does_not_fill_what_the_loop_gives():
    refuses(PlanError, ("'l.x'", "'least.y'", "no pad rule speaks of its numbers"), _looped().plan)


def test_the_rule_of_the_bodys_own_input_does():
    with _looped(rule=7).plan().load() as session:
        assert session(x=torch.zeros(2, 3))["least"] == 1


def test_a_plan_that_cuts_a_derived_size_of_a_padded_dim_is_wrong():
    pipeline = new()
    pipeline.output("y", pipeline.add("twice", _twice)(pipeline.input("x", spec(Dim("n", (4,)), 2))))
    plan = pipeline.plan()
    pads = {
        position: replace(step, adapter=replace(step.adapter, rule=0))
        for position, step in enumerate(plan.steps)
        if isinstance(step, AdaptStep) and step.adapter.kind == "pad"
    }
    steps = tuple(pads.get(position, step) for position, step in enumerate(plan.steps))
    edges = tuple(
        replace(
            edge, adapters=tuple(replace(fit, rule=0) if fit.kind == "pad" else fit for fit in edge.adapters)
        )
        for edge in plan.edges
    )
    dims = (replace(plan.dims[0], can_pad=True),)
    assert pads
    words = "cuts ['2*n'], whose padding is not at its end"
    refuses(PlanError, words, lambda: verify(replace(plan, steps=steps, edges=edges, dims=dims)))


def test_the_rule_of_a_port_counts_before_that_of_the_input():
    """What fills `n` shows in the plan, and in a stage that is told how many rows are real."""
    pipeline = new()
    x = pipeline.input("x", spec(Dim("n", (4,)), 2, pad=0))
    least = pipeline.add("least", lambda x: x.amin(0), inputs={"x": spec("n", 2, pad=9)})(x)
    pipeline.output("y", least)
    plan = pipeline.plan()
    (rules,) = ([fit.rule for fit in edge.adapters if fit.kind == "pad"] for edge in plan.edges[:1])
    assert rules == [9]
    with plan.load() as session:
        assert torch.equal(session(x=torch.full((2, 2), 7.0))["y"], torch.full((2,), 7.0))


def test_a_dim_that_an_input_keeps_at_its_buckets_needs_no_rule_where_it_grows_again():
    """Kind: a plan is refused for requests that are refused anyway: a stage reads an input that no rule speaks of."""
    pipeline, items = _mapped(lambda x: x * 2, None)
    x = pipeline.input("z", spec("b", 3))
    wide = pipeline.add("widen", lambda x: x + 0, inputs={"x": spec("b", 4, pad=2)})(x)
    plain = pipeline.add("plain", lambda x, y: (x + y).sum(0))(x, items)
    pipeline.output("wide", wide)
    pipeline.output("plain", plain)
    with pipeline.plan().load() as session:
        value = torch.rand(4, 3)
        assert torch.allclose(session(x=value, z=value)["plain"], 3 * value.sum(0))
        with pytest.raises(InputError, match="b=3, which is no bucket"):
            session(x=value[:3], z=value[:3])
