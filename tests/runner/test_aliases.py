"""Updates in place, run: results are those of the modules by hand on copies, and no request sees another's writes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator import Dim, Pipeline, StageError, TensorSpec
from orchestrator.testing import assert_same, run_reference
from tests.aliases import LENGTH, STEPS, Write, by_hand, clones, looped, requests, zeros
from tests.kit import Double, batch, new, spec
from tests.runner.card import CARD, card_pipeline

DEVICES = ("cpu", CARD)


def add_one(past: torch.Tensor) -> torch.Tensor:
    return past.add_(1)


def equal_by_hand(pipeline: Pipeline, request: dict[str, Any], device: str = "cpu", **plan: Any) -> None:
    """Runs a request twice; results are those by hand, and the request's tensors stay as they are."""
    before = {name: value.clone() for name, value in request.items()}
    expected = run_reference(pipeline.freeze(), request)
    with pipeline.plan(device, **plan).load() as session:
        for _ in range(2):
            assert_same(session(**request), expected)
            assert_same(request, before)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("own", [True, False])
def test_a_loop_in_place_gives_what_it_gives_by_hand(device: str, own: bool):
    start = (lambda p, x: p.add("zeros", zeros)(x)) if own else None
    pipeline = looped(start, make=card_pipeline)
    request = requests()
    equal_by_hand(pipeline, {"x": request["x"]} if own else request, device)


def test_an_upload_is_a_copy_already():
    assert not clones(looped(make=card_pipeline).plan(CARD))


def test_no_iteration_gives_the_start():
    request = requests()
    with looped(max_steps=0).plan().load() as session:
        result = session(**request)
    assert torch.equal(result["cache"], request["cache"])
    result["cache"].add_(1)
    assert torch.equal(request["cache"], requests()["cache"])


# What stays on a device.


def kept_before_a_loop() -> Pipeline:
    """What a loop begins with goes to the host before the loop updates it."""
    pipeline = card_pipeline()
    value = pipeline.add("make", Double())(pipeline.input("x", spec(2)))
    pipeline.output("before", value)
    inner = card_pipeline("body")
    inner.output("past", inner.add("one", add_one, aliases={"output": "past"})(inner.input("past", spec(2))))
    pipeline.output("after", pipeline.loop("loop", inner, carry={"past": value}, max_steps=3))
    return pipeline


def test_an_output_that_stays_on_its_device_is_what_it_was_before_the_update():
    x = torch.tensor([1.0, 2.0])
    plan = kept_before_a_loop().plan(CARD)
    assert not clones(plan)  # it is downloaded before
    with plan.load() as session:
        for names in (["before"], ["after"], ["before", "after"], []):
            result = session.run({"x": x}, keep_on_device=names)
            values = {name: torch.as_tensor(value).clone() for name, value in result.items()}
            assert {name: value.tolist() for name, value in values.items()} == {
                "before": [2, 4],
                "after": [5, 7],
            }


def test_what_stayed_on_a_device_is_not_updated_by_the_next_request():
    with looped(make=card_pipeline).plan(CARD).load() as session:
        request = requests()
        first = session.run(request, keep_on_device=["cache"])
        want = by_hand(**request)
        for _ in range(2):
            result = session(x=request["x"], cache=first["cache"])
            again = by_hand(request["x"], want[1])
            assert torch.equal(result["cache"], again[1])


# Chunks, maps, branches.


def rows_of_a_shared_value(device: str, make: Any = new) -> Pipeline:
    """A value without the batch is updated by a loop whose other carry has it."""

    def step(x: torch.Tensor, past: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        past.mul_(2)
        return x + past, past

    pipeline = make()
    x = pipeline.input("x", spec(batch("batch", (2, 4)), 3, pad=0))
    shared = pipeline.add("make", Double())(pipeline.input("s", spec(3)))
    inner = make("body")
    ports = {"x": spec("batch", 3), "past": spec(3)}
    results = inner.add("step", step, outputs=tuple(ports), aliases={"past": "past"})(
        *(inner.input(name, form) for name, form in ports.items())
    )
    for name in ports:
        inner.output(name, results[name])
    y = pipeline.loop("loop", inner, carry={"x": x, "past": shared}, max_steps=2, outputs=("x",))
    pipeline.output("y", y)
    return pipeline


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [1, 2, 4, 7, 12])
def test_chunks_do_not_see_what_another_chunk_updated(device: str, rows: int):
    generator = torch.Generator().manual_seed(rows)
    request = {"x": torch.randn(rows, 3, generator=generator), "s": torch.randn(3, generator=generator)}
    equal_by_hand(rows_of_a_shared_value(device, card_pipeline), request, device)


@pytest.mark.parametrize("rows", [3, 9])
def test_a_map_updates_what_its_body_makes_and_copies_its_items(rows: int):
    inner = new("body")
    item = inner.input("x", spec(Dim("n", (2, 4), batch=True), 3, pad=0))
    one = inner.add("one", add_one, aliases={"output": "past"})
    inner.output("y", inner.add("two", add_one, aliases={"output": "past"})(one(item)))
    pipeline = new()
    x = pipeline.input("x", spec(batch("rows", (16,)), 3, pad=0))
    pipeline.output("y", pipeline.map("map", inner, over={"x": x}))
    pipeline.output("x", pipeline.add("read", Double())(x))
    equal_by_hand(pipeline, {"x": torch.randn(rows, 3)})
    assert list(clones(pipeline.plan())) == ["map.x -> map/one.past"]


def branching(*, reads_after: bool) -> Pipeline:
    """A branch updates what it is fed; otherwise that stays as it is."""
    inner = new("body")
    inner.output("y", inner.add("one", add_one, aliases={"output": "past"})(inner.input("past", spec(2))))
    pipeline = new()
    value = pipeline.add("make", Double())(pipeline.input("x", spec(2)))
    flag = pipeline.input("flag", bool)
    y = pipeline.when("when", inner, inputs={"past": value}, otherwise={"y": value}, condition=flag)
    pipeline.output("y", y)
    if reads_after:
        pipeline.output("x", pipeline.add("read", lambda x, y: x * 2 + y * 0)(value, y))
    return pipeline


@pytest.mark.parametrize("reads_after", [True, False])
def test_a_branch_updates_what_nobody_else_reads(reads_after: bool):
    pipeline = branching(reads_after=reads_after)
    plan = pipeline.plan()
    assert bool(clones(plan)) == reads_after
    with plan.load() as session:
        for flag in (True, False, True):
            x = torch.tensor([1.0, 2.0])
            result = session(x=x, flag=flag)
            assert result["y"].tolist() == ([3, 5] if flag else [2, 4])
            assert x.tolist() == [1, 2]
            if reads_after:
                assert result["x"].tolist() == [4, 8]


# Failures, threads, and who watches.


def test_a_request_that_fails_half_way_leaves_nothing_for_the_next():
    stage = Write()
    request, before = requests(), requests()
    with looped(stage=stage).plan().load() as session:
        want = session(**request)
        original = Write.forward

        def forward(self: Write, *values: torch.Tensor) -> Any:
            result = original(self, *values)
            if int(values[2]) == 2:
                raise ValueError("no more")
            return result

        stage.forward = forward.__get__(stage)  # type: ignore[method-assign]
        with pytest.raises(StageError, match="no more"):
            session(**request)
        del stage.forward
        assert_same(request, before)
        assert_same(session(**request), want)


def test_requests_at_once_have_buffers_of_their_own():
    generator = torch.Generator().manual_seed(0)
    batches = [
        {"x": torch.randn(2, generator=generator), "cache": torch.randn(2, LENGTH, generator=generator)}
        for _ in range(16)
    ]
    wants = [by_hand(**request) for request in batches]
    barrier = threading.Barrier(4)
    with looped().plan().load() as session, ThreadPoolExecutor(4) as pool:

        def work(at: int) -> list[Any]:
            barrier.wait()
            return [session(**request) for request in batches[at::4]]

        for at, results in enumerate(pool.map(work, range(4))):
            for result, want in zip(results, wants[at::4], strict=True):
                assert torch.equal(result["cache"], want[1])


def test_who_watches_gets_values_of_its_own():
    request = requests()
    with looped(outputs=("cache", "x")).plan().load() as session:
        caches = [value for _, name, value in session.stream([request], partial=["cache"]) if name == "cache"]
    assert len(caches) == STEPS
    for steps, cache in enumerate(caches, start=1):
        assert torch.equal(cache, by_hand(**request, steps=steps)[1])


def test_a_host_stage_that_keeps_what_it_got_keeps_the_old_value():
    kept: list[torch.Tensor] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept.append(x)
        return x.sum().reshape(1)

    pipeline = new()
    value = pipeline.add("make", Double())(pipeline.input("x", spec(2)))
    pipeline.output("sum", pipeline.add("keep", keep, device="host", outputs={"s": spec(1)})(value))
    pipeline.output("y", pipeline.add("one", add_one, aliases={"output": "past"})(value))
    with pipeline.plan().load() as session:
        assert session(x=torch.ones(2))["y"].tolist() == [3, 3]
    assert kept[0].tolist() == [2, 2]


def test_promises_hold_for_a_stage_that_updates():
    def step(past: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return past.add_(x)

    pipeline = new()
    x = pipeline.input("x", spec(batch("batch", (2, 4)), 3, pad=0))
    value = pipeline.add("make", Double())(x)
    pipeline.output("y", pipeline.add("step", step, aliases={"output": "past"})(value, x))
    request = {"x": torch.randn(3, 3)}
    before = request["x"].clone()
    report = pipeline.check(request)
    assert report.ok, str(report)
    assert torch.equal(request["x"], before)
    equal_by_hand(pipeline, {"x": torch.randn(9, 3)})


def test_what_is_no_dense_tensor_is_made_one_by_the_copy():
    start = torch.zeros(1, 1).expand(2, LENGTH)
    x = requests()["x"]
    with looped().plan().load() as session:
        result = session(x=x, cache=start)
    assert torch.equal(result["cache"], by_hand(x, torch.zeros(2, LENGTH))[1])


def test_what_a_stage_expands_is_copied_before_it_is_updated():
    pipeline = looped(lambda p, x: p.add("expand", lambda x: x[:, None].clone().expand(2, LENGTH))(x))
    assert list(clones(pipeline.plan())) == ["expand.output -> loop.cache"]
    equal_by_hand(pipeline, {"x": requests()["x"]})


class Chatty(nn.Module):
    """Looks at contents unless it is captured, as many models do."""

    def forward(self, past: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling() and bool((past > 1e9).any()):
            return past.mul_(0)
        return past.add_(1)


def test_a_stage_that_looks_at_contents_unless_captured_updates_in_place():
    inner = new("body")
    inner.output("past", inner.add("one", Chatty(), aliases={"output": "past"})(inner.input("past", spec(2))))
    pipeline = new()
    value = pipeline.add("make", Double())(pipeline.input("x", TensorSpec((2,))))
    pipeline.output("y", pipeline.loop("loop", inner, carry={"past": value}, max_steps=3))
    assert not clones(pipeline.plan())
    equal_by_hand(pipeline, {"x": torch.tensor([1.0, 2.0])})
