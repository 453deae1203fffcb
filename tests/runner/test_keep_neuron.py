"""Outputs that stay on a device whose programs own their output buffers: copies that later requests leave alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from orchestrator import Pipeline, Plan, PlanError, StageError
from orchestrator.adapter import CLONE
from orchestrator.plan.locks import with_same_locks
from orchestrator.plan.steps import adapter_of
from orchestrator.planner.verify.programs import check_programs
from orchestrator.runner.device_outputs import keep_on_device
from orchestrator_neuron.ranked import RankedValue
from tests.kit import Double, batch, host, linear, refuses, spec
from tests.planner.devices import DEVICE, Plus, on, ranked

pytestmark = pytest.mark.usefixtures("shared_store")

X = torch.arange(8.0).reshape(2, 4)


def rank_zero(value: Any) -> torch.Tensor:
    """What rank 0 holds; all ranks hold the same."""
    assert isinstance(value, RankedValue)
    rows = [row[0].to("cpu") for row in value]
    assert all(torch.equal(row, rows[0]) for row in rows)
    return rows[0]


def two_results(dims: tuple[Any, ...] = (2, 4)) -> Pipeline:
    """``near`` and ``far`` are results; a host stage reads ``near`` as well, and so does another output."""
    pipeline = ranked()
    near = pipeline.add("near", Double())(pipeline.input("x", spec(*dims, pad=0)))
    pipeline.output("near", near)
    pipeline.output("far", pipeline.add("far", Plus())(near))
    pipeline.output("twice", near)
    pipeline.output("seen", host(pipeline, "see", lambda v: v - 1, out=spec(*dims))(near))
    return pipeline


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("keep", [["near"], ["far"], ["near", "far"], ["near", "twice"]])
def test_a_kept_output_outlives_later_requests(keep: list[str], ranks: int):
    expected = {"near": X * 2, "far": X * 2 + 1, "twice": X * 2, "seen": X * 2 - 1}
    with on(two_results(), tp_degree=ranks).load() as session:
        results = session.run({"x": X}, keep_on_device=keep)
        for number in range(3):
            session(x=torch.full((2, 4), float(number)))
        for name, value in results.items():
            assert torch.equal(rank_zero(value) if name in keep else value, expected[name]), name


def test_kept_outputs_of_several_requests_are_several_values():
    with on(two_results()).load() as session:
        outputs = [session.run({"x": X * scale}, keep_on_device=["far"])["far"] for scale in range(4)]
        assert [torch.equal(rank_zero(value), X * 2 * scale + 1) for scale, value in enumerate(outputs)] == [
            True
        ] * 4


@pytest.mark.parametrize("rows", [2, 1])
def test_a_copy_is_counted_as_what_it_is(rows: int):
    """The device makes it, and its download goes; one that is cut is downloaded, and each rank gets an upload."""
    plan = on(two_results((batch("b"), 4)), sizes={"b": (2,)}, tp_degree=2)
    with plan.load() as session:
        output = session.run({"x": X[:rows]}, keep_on_device=["far"])["far"]
        stats = session.stats
        assert output is not None
    is_cut = rows == 1
    assert stats["uploads"] == plan.summary["uploads"] + 2 * is_cut
    assert stats["downloads"] == plan.summary["downloads"] - (not is_cut)
    for name in ("uploads", "upload_bytes", "downloads", "download_bytes", "peak_bytes"):
        count = stats[name][DEVICE] if name == "peak_bytes" else stats[name]
        assert stats["measured"][DEVICE][name] == count, name


@pytest.mark.parametrize("keep", [["near"], ["near", "twice", "far"]])
def test_the_verifier_follows_a_copy_and_refuses_a_buffer(keep: list[str]):
    plan = on(two_results())
    variant = with_same_locks(keep_on_device(plan, keep, [DEVICE]))
    check_programs(variant)
    copies = {step.outputs[0]: step.inputs[0] for step in variant.steps if adapter_of(step) == CLONE}
    assert len(copies) == len(keep)
    outputs = tuple((name, copies.get(index, index)) for name, index in variant.outputs)
    refuses(PlanError, "in a buffer that other", lambda: check_programs(replace(variant, outputs=outputs)))


def test_a_copy_is_gone_with_who_holds_it_and_memory_for_none_is_told():
    with on(two_results()).load() as session:
        device = session._executable.backends[DEVICE].open_device
        session(x=X)
        before = device.allocated_bytes[0]
        outputs = [session.run({"x": X}, keep_on_device=["far"])["far"] for _ in range(3)]
        assert device.allocated_bytes[0] == before + 3 * 32
        del outputs
        assert device.allocated_bytes[0] == before
        device.budget = before + 40
        with pytest.raises(StageError, match="A copy of a value takes 32 bytes"):
            session.run({"x": X}, keep_on_device=["far", "near"])


def test_a_kept_output_is_cut_back_to_its_request():
    with on(two_results((batch("b"), 4)), sizes={"b": (2, 8)}).load() as session:
        for rows in (2, 1, 5, 19):
            x = torch.randn(rows, 4)
            results = session.run({"x": x}, keep_on_device=["far", "near"])
            session(x=torch.zeros(3, 4))
            assert torch.equal(rank_zero(results["far"]), x * 2 + 1)
            assert torch.equal(results["seen"], x * 2 - 1)


def test_a_kept_output_that_was_made_on_the_host_stays_there():
    with on(two_results()).load() as session:
        results = session.run({"x": X}, keep_on_device=["seen"])
        session(x=X * 3)
        assert torch.equal(results["seen"], X * 2 - 1)


def test_joined_parts_are_kept_as_the_whole():
    pipeline = ranked()
    part = pipeline.add("part", Double(), config={"sharded": {"output": 1}})
    pipeline.output("whole", part(pipeline.input("x", spec(2, 4))))
    with on(pipeline, tp_degree=2).load() as session:
        output = session.run({"x": X}, keep_on_device=["whole"])["whole"]
        session(x=torch.zeros(2, 4))
        assert torch.equal(rank_zero(output), torch.cat([X * 2, X * 2], 1))


def test_what_a_region_gives_is_kept_whole():
    pipeline = ranked()
    crops = host(pipeline, "find", lambda x: x, crops=spec(batch("n"), 4, pad=0))(
        pipeline.input("x", spec(5, 4))
    )
    pipeline.output("y", pipeline.add("net", Plus())(crops))
    x = torch.randn(5, 4)
    with on(pipeline, sizes={"n": (2,)}).load() as session:
        output = session.run({"x": x}, keep_on_device=["y"])["y"]
        session(x=x * 2)
        assert torch.equal(rank_zero(output), x + 1)


def test_kept_integers_are_held_as_the_device_holds_them():
    pipeline = ranked()
    best = pipeline.add("best", lambda x: x.argmax(-1))
    pipeline.output("y", best(pipeline.input("x", spec(2, 4))))
    with on(pipeline).load() as session:
        output = session.run({"x": X}, keep_on_device=["y"])["y"]
        session(x=-X)
        assert rank_zero(output).tolist() == [3, 3]


def test_kept_values_of_a_narrow_dtype_are_right():
    pipeline = ranked()
    module = linear(4, 4)
    pipeline.output("y", pipeline.add("a", module)(pipeline.input("x", spec(2, 4))))
    with on(pipeline, torch_dtype=torch.bfloat16).load() as session:
        output = session.run({"x": X}, keep_on_device=["y"])["y"]
        session(x=X * 9)
        assert torch.allclose(rank_zero(output).float(), module(X), atol=0.1)


def test_a_stream_overwrites_no_result():
    pipeline = two_results((batch("b"), 4))
    requests = [{"x": torch.randn(rows, 4)} for rows in (2, 5, 1, 8, 2)]
    with on(pipeline, sizes={"b": (2, 8)}).load() as session:
        results = list(session.stream(requests, depth=3))
    for result, request in zip(results, requests, strict=True):
        assert torch.equal(result["near"], request["x"] * 2)
        assert torch.equal(result["far"], request["x"] * 2 + 1)


def test_the_plan_that_keeps_differs_by_its_copies_alone():
    plan = on(two_results(), tp_degree=2)
    variant: Plan = keep_on_device(plan, ["far"])
    (copy_step,) = [step for step in variant.steps if step not in plan.steps]
    assert (copy_step.op, copy_step.adapter.kind, copy_step.device) == ("adapt", "upload", DEVICE)
    assert variant.values[: len(plan.values)] == plan.values
    assert dict(variant.outputs)["near"] == dict(plan.outputs)["near"]
    assert keep_on_device(plan, []) == plan
