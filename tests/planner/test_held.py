"""Held: integers and floating point in the narrower dtypes that a device holds them in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from orchestrator import Pipeline, Plan, PlanError
from orchestrator.errors import PlanOptionError
from orchestrator.testing import assert_same, run_reference
from tests.kit import Double, linear, refuses, spec
from tests.planner.devices import DEVICE, Plus, edge_of, on, ranked, way

BF16, F32 = torch.bfloat16, torch.float32

# Integers


def tokens(*, pad: Any = 0) -> Pipeline:
    """Token ids to embeddings to the best token, and that once more through a stage."""
    pipeline = ranked()
    ids = pipeline.input("ids", spec("b", 5, dtype=torch.int64, pad=pad))
    found = pipeline.add("embed", nn.Embedding(10, 4).eval())(ids)
    best = pipeline.add("best", lambda x: x.argmax(-1))(found)
    pipeline.output("best", best)
    pipeline.output("next", pipeline.add("next", lambda i: i + 1)(best))
    return pipeline


def test_integers_of_64_bits_are_held_in_32():
    plan = on(tokens(), sizes={"b": (2, 4)})
    assert way(plan, "ids -> embed.input") == [
        "cast to int32",
        "pad to [b, 5] (0)",
        f"upload to {DEVICE}",
    ]
    assert way(plan, "best.output -> next.i") == []
    assert way(plan, "best.output -> best") == ["download to host", "cut to [b, 5]", "cast to int64"]
    assert dict(plan.call("best").outputs)["output"].dtype is torch.int32
    assert dict(plan.inputs)["ids"].dtype is torch.int64
    (taken,) = plan.program("embed").inputs
    assert (taken.spec.dtype, taken.dtype) == (torch.int32, torch.int64)


def test_bytes_are_those_of_what_is_held():
    plan = on(tokens(), sizes={"b": (2, 4)}, tp_degree=2)
    edges = {str(edge): edge.bytes for edge in plan.edges}
    assert edges["ids -> embed.input"] == 4 * 5 * 8  # what the request gives
    assert edges["best.output -> next.i"] == 4 * 5 * 4
    assert plan.summary["upload_bytes"] == 2 * 4 * 5 * 4
    assert plan.summary["download_bytes"] == 2 * 4 * 5 * 4


def test_a_stage_sees_the_integers_that_it_was_written_for():
    pipeline = tokens()
    inputs = {"ids": torch.arange(15).reshape(3, 5) % 10}
    with on(pipeline, sizes={"b": (2, 4)}).load() as session:
        given = session(**inputs)
    assert_same(given, run_reference(pipeline.freeze(), inputs))
    assert given["best"].dtype is torch.int64


def test_no_cast_between_integers_happens_where_the_device_needs_none():
    """A port of 32 bits and one of 64 are the same on the device."""
    pipeline = ranked()
    ids = pipeline.input("ids", spec(4, dtype=torch.int64))
    same = pipeline.add("same", lambda i: i + 1)(ids)
    narrow = pipeline.add("narrow", Plus(), inputs={"x": spec(4, dtype=torch.int32, allow_cast=True)})
    pipeline.output("y", narrow(same))
    plan = on(pipeline)
    assert way(plan, "same.output -> narrow.x") == []
    assert way(plan, "narrow.output -> y") == ["download to host"]
    with plan.load() as session:
        assert session(ids=torch.arange(4))["y"].tolist() == [2, 3, 4, 5]


# Floating point


def chain(*dtypes: Any) -> Pipeline:
    """Linear stages a, b, c, ... with a ``torch_dtype`` of their own, or None."""
    pipeline = ranked()
    value = pipeline.input("x", spec(2, 4))
    for name, dtype in zip("abcd", dtypes, strict=False):
        config = {} if dtype is None else {"torch_dtype": dtype}
        value = pipeline.add(name, linear(4, 4, seed=ord(name)), config=config)(value)
    pipeline.output("y", value)
    return pipeline


@pytest.mark.parametrize("dtype", [BF16, "bfloat16", torch.float16])
def test_a_dtype_for_the_plan_casts_at_its_borders_only(dtype: Any):
    plan = on(chain(None, None), torch_dtype=dtype)
    name = str(plan.groups[0].option("torch_dtype")).removeprefix("torch.")
    assert way(plan, "x -> a.input") == [f"cast to {name}", f"upload to {DEVICE}"]
    assert way(plan, "a.output -> b.input") == []
    assert way(plan, "b.output -> y") == ["download to host", "cast to float32"]
    assert dict(plan.weights)[DEVICE] == 2 * (16 + 4) * 2
    assert dict(plan.buffers)[DEVICE] == 2 * 8 * 2
    assert (plan.summary["upload_bytes"], plan.summary["download_bytes"]) == (16, 16)
    (bound,) = [chain(None, None).bind(Plan.from_json(plan.to_json()))]
    assert bound == plan


def test_a_dtype_for_the_plan_leaves_integers_alone():
    plan = on(tokens(), sizes={"b": 4}, torch_dtype=BF16)
    dtypes = {call.name: [spec_.dtype for _, spec_ in call.inputs] for call in plan.calls}
    assert dtypes == {"embed": [torch.int32], "best": [BF16], "next": [torch.int32]}
    assert dict(plan.weights)[DEVICE] == 40 * 2


@pytest.mark.parametrize("place", ["producer", "consumer", "program", "host"])
def test_between_stages_of_two_dtypes_there_is_a_cast_in_its_place(place: str):
    plan = on(chain(BF16, None, BF16), adapters=place)
    there = ["download to host"], [f"upload to {DEVICE}"]
    where = {"program": ", a program of its own", "host": ""}.get(place, f", in the {place}")
    for edge, name in (("a.output -> b.input", "float32"), ("b.output -> c.input", "bfloat16")):
        cast = [f"cast to {name}{where}"]
        assert way(plan, edge) == (there[0] + cast + there[1] if place == "host" else cast)
    assert edge_of(plan, "a.output -> b.input").bytes == 16
    assert edge_of(plan, "b.output -> c.input").bytes == 32
    assert dict(plan.weights)[DEVICE] == 20 * (2 + 4 + 2)


def test_a_narrow_value_goes_over_the_link_narrow():
    """Up and down as few bytes as there can be: 16 of bfloat16 down, 32 of float32 up; then 32 down, 16 up."""
    plan = on(chain(BF16, None, BF16), adapters="host")
    assert plan.summary["upload_bytes"] == 16 + 32 + 16
    assert plan.summary["download_bytes"] == 16 + 32 + 16


def test_a_stage_may_keep_what_the_plan_narrows():
    plan = on(chain(None, F32), torch_dtype=BF16)
    assert way(plan, "a.output -> b.input") == ["cast to float32, in the producer"]
    assert way(plan, "b.output -> y") == ["download to host"]


@pytest.mark.parametrize("place", ["producer", "consumer", "program", "host"])
def test_mixed_dtypes_give_what_the_modules_give(place: str):
    pipeline = chain(BF16, None, None)
    inputs = {"x": torch.randn(2, 4, generator=torch.Generator().manual_seed(0))}
    with on(pipeline, adapters=place).load() as session:
        given = session(**inputs)
    assert given["y"].dtype is F32
    assert_same(given, run_reference(pipeline.freeze(), inputs), exact=False, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("side", ["input", "output"])
def test_doubles_are_refused_with_the_way_out(side: str):
    pipeline = ranked()
    given = spec(2, dtype=torch.float64 if side == "input" else F32)
    stage = pipeline.add("wide", lambda x: x.double() + 1)
    pipeline.output("y", stage(pipeline.input("x", given)))
    error = refuses(
        PlanError,
        (f"The {side} port", "'wide'", "float64", "Declare it as float32", "allow_cast=True", "'cpu'"),
        lambda: on(pipeline),
    )
    assert (error.stage, error.port) == ("wide", "x" if side == "input" else "output")


def test_doubles_may_be_cast_at_a_port_or_run_elsewhere():
    pipeline = ranked()
    x = pipeline.input("x", spec(2, dtype=torch.float64))
    narrow = pipeline.add("narrow", Double(), inputs={"x": spec(2, allow_cast=True)})(x)
    pipeline.output("y", narrow)
    pipeline.output("z", pipeline.add("wide", Plus(), device="cpu")(x))
    plan = on(pipeline)
    assert way(plan, "x -> narrow.x") == ["cast to float32", f"upload to {DEVICE}"]
    with plan.load() as session:
        given = session(x=torch.ones(2, dtype=torch.float64))
    assert [given["y"].dtype, given["z"].dtype] == [F32, torch.float64]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.float64])
def test_a_dtype_that_no_program_has_is_no_torch_dtype(dtype: torch.dtype):
    refuses(PlanOptionError, "'torch_dtype'", lambda: on(chain(None), torch_dtype=dtype))
    refuses(PlanOptionError, ("'torch_dtype'", "'a'"), lambda: on(chain(dtype)))
