"""Item 5: a device with one output buffer for each program is never idle where it need not be, and never wrong."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

from orchestrator import Dim, Pipeline, Plan, TensorSpec
from orchestrator.errors import InputError, PlanError, StageError
from orchestrator.plan.locks import lock_spans
from orchestrator.planner.verify.steps import verify
from orchestrator.testing import run_reference
from orchestrator_neuron.emulated.runtime import LoadedProgram
from tests.kit import Double, host, linear, refuses, spec
from tests.planner.devices import Plus
from tests.runner.gate import Gate, wait_until
from tests.runner.test_interrupts import interrupts_of

DEVICE = "neuron-emulated"


def overlapping(between: Callable[..., Any]) -> Pipeline:
    """Two programs with a host stage between them."""
    pipeline = Pipeline("p")
    first = pipeline.add("enc", linear(4, 4))(pipeline.input("x", spec(2, 4)))
    second = host(pipeline, "engine", between, output=spec(2, 4))(first)
    pipeline.output("y", pipeline.add("dec", linear(4, 4, seed=1))(second))
    return pipeline


def crossing(between: Callable[..., Any]) -> Pipeline:
    """Each of two stages runs while what the other one gave is still to be read, with a host stage in the midst."""
    pipeline = Pipeline("p")
    one, two = pipeline.add("one", Plus()), pipeline.add("two", Double())
    b = two(one(pipeline.input("x", spec(2, 4))))
    seen = host(pipeline, "look", between, output=spec(2, 4))(b)
    pipeline.output("y", pipeline.add("join", lambda b, c: b + 3 * c)(b, one(seen)))
    return pipeline


def looping(between: Callable[..., Any]) -> Pipeline:
    """A loop whose body goes over the host, beside a value that stays on the device meanwhile."""
    body = Pipeline("body")
    x, seen = body.input("x", spec(2, 4)), body.input("seen", spec(2, 4))
    moved = host(body, "move", between, output=spec(2, 4))(x)
    body.output("x", body.add("step", lambda x, seen: x * 0.5 + seen)(moved, seen))
    pipeline = Pipeline("p")
    start = pipeline.input("x", spec(2, 4))
    encoded = pipeline.add("enc", linear(4, 4))(start)
    result = pipeline.loop("loop", body, carry={"x": start}, inputs={"seen": encoded}, max_steps=3)
    pipeline.output("y", pipeline.add("dec", linear(4, 4, seed=1))(result))
    return pipeline


def chunked(between: Callable[..., Any], *, is_shared: bool = True) -> Pipeline:
    """Two programs with a host stage between them, in chunks of two rows; all may read a value on the device."""
    pipeline = Pipeline("p")
    x = pipeline.input("x", TensorSpec((Dim("n", (2,), batch=True), 4), pad=0))
    scale = pipeline.input("scale", spec(4))
    shared = pipeline.add("shared", Double())(scale) if is_shared else scale
    first = pipeline.add("enc", linear(4, 4))(x)
    second = host(pipeline, "engine", between, output=spec("n", 4))(first)
    pipeline.output("y", pipeline.add("dec", lambda x, scale: x * scale)(second, shared))
    return pipeline


SHAPES = {"overlapping": overlapping, "crossing": crossing, "looping": looping, "chunked": chunked}


def request_of(shape: str) -> dict[str, torch.Tensor]:
    if shape == "chunked":
        return {"x": torch.randn(6, 4), "scale": torch.randn(4)}
    return {"x": torch.randn(2, 4)}


def spans(plan: Plan) -> list[tuple[Any, ...]]:
    return [tuple(span) for span in lock_spans(plan.steps)]


def test_a_program_is_held_until_its_readers_have_read_and_the_plan_says_so():
    plan = overlapping(lambda x: x).plan(DEVICE)
    assert spans(plan) == [("enc", "enc", "enc.output", ()), ("dec", "dec", "dec.output", ())]
    assert "Held by one request at a time" in str(plan)
    assert not overlapping(lambda x: x).plan("cpu").locks


def test_what_stays_on_the_device_is_held_through_a_host_stage_and_the_plan_names_it():
    plan = looping(lambda x: x).plan(DEVICE)
    first = next(span for span in lock_spans(plan.steps) if span.lock == "enc")
    assert (first.last, first.host_calls) == ("loop", ("loop/move",))
    assert "loop/move" in str(plan)


def test_programs_that_would_wait_for_each_other_have_one_lock():
    plan = crossing(lambda x: x).plan(DEVICE)
    assert [lock.members for lock in plan.locks] == [("one", "two"), ("join",)]
    assert spans(plan)[0] == ("one", "one", "join", ("look",))


def test_requests_are_in_a_host_stage_together():
    barrier = threading.Barrier(4)

    def meet(x: torch.Tensor) -> torch.Tensor:
        barrier.wait(30)
        return x + 1

    pipeline = overlapping(meet)
    requests = [{"x": torch.full((2, 4), float(number))} for number in range(4)]
    barrier_by_hand = [run_reference(overlapping(lambda x: x + 1).freeze(), request) for request in requests]
    with pipeline.plan(DEVICE).load() as session:
        for result, expected in zip(session.stream(requests, depth=4), barrier_by_hand, strict=True):
            torch.testing.assert_close(result["y"], expected["y"])


def test_requests_in_chunks_are_in_a_host_stage_together():
    """Where nothing is left in a buffer from one chunk to the next, no program is held meanwhile."""
    barrier = threading.Barrier(2)

    def meet(x: torch.Tensor) -> torch.Tensor:
        barrier.wait(30)
        return x + 1

    requests = [request_of("chunked") for _ in range(2)]
    with (
        chunked(meet, is_shared=False).plan(DEVICE).load() as session,
        ThreadPoolExecutor(2) as pool,
    ):
        results = list(pool.map(lambda request: session(**request), requests))
    by_hand = chunked(lambda x: x + 1, is_shared=False).freeze()
    for request, result in zip(requests, results, strict=True):
        torch.testing.assert_close(result["y"], run_reference(by_hand, request)["y"])


@pytest.mark.parametrize("shape", SHAPES)
def test_requests_are_right_however_they_interleave(shape: str, monkeypatch: pytest.MonkeyPatch):
    chance = random.Random(shape)

    def rest(x: torch.Tensor) -> torch.Tensor:
        time.sleep(chance.random() * 0.004)
        return x + 1

    run = LoadedProgram.__call__

    def run_and_rest(self: LoadedProgram, *handles: Any) -> Any:
        result = run(self, *handles)
        time.sleep(chance.random() * 0.002)
        return result

    monkeypatch.setattr(LoadedProgram, "__call__", run_and_rest)
    by_hand = SHAPES[shape](lambda x: x + 1).freeze()
    requests = [request_of(shape) for _ in range(24)]
    with SHAPES[shape](rest).plan(DEVICE).load() as session, ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda request: session(**request), requests))
        assert session.stats["requests"] == len(requests)
    for request, result in zip(requests, results, strict=True):
        for name, expected in run_reference(by_hand, request).items():
            torch.testing.assert_close(result[name], expected)


def at(plan: Plan, label: str, **changes: Any) -> Plan:
    """The plan with the step of a label changed, the call where there is one."""
    steps = list(plan.steps)
    number = next(number for number, step in enumerate(steps) if step.label == label)
    steps[number] = replace(steps[number], **changes)
    return replace(plan, steps=tuple(steps))


BREAKS: dict[str, tuple[Callable[[Plan], Plan], str]] = {
    "it is not taken": (lambda plan: at(plan, "dec", locks=()), "another request may use 'dec'"),
    "it is taken too late": (lambda plan: at(at(plan, "dec", locks=()), "dec.output", locks=("dec",)), "dec"),
    "it is given back too early": (
        lambda plan: at(at(plan, "dec", unlocks=("dec",)), "dec.output", unlocks=()),
        "may have for another request",
    ),
    "it is never given back": (lambda plan: at(plan, "dec.output", unlocks=()), "never given back"),
    "it is given back twice": (lambda plan: at(plan, "engine.output", unlocks=("enc",)), "is not held"),
    "it is taken twice": (lambda plan: at(plan, "enc.output", locks=("enc",)), "while ['enc'] is held"),
    "it is taken out of order": (
        lambda plan: replace(at(plan, "enc", locks=("enc", "dec")), locks=plan.locks[::-1]),
        "while ['enc'] is held",
    ),
    "there is none of that name": (lambda plan: at(plan, "enc", locks=("enc", "no")), "which is no lock"),
    "a program has none": (
        lambda plan: at(at(replace(plan, locks=plan.locks[:1]), "dec", locks=()), "dec.output", unlocks=()),
        "another request may use 'dec'",
    ),
    "a program has two": (
        lambda plan: replace(plan, locks=(replace(plan.locks[0], members=("enc", "dec")), plan.locks[1])),
        "its locks guard",
    ),
}


@pytest.mark.parametrize(("change", "rule"), BREAKS.values(), ids=BREAKS)
def test_a_plan_that_holds_too_little_is_refused(change: Callable[[Plan], Plan], rule: str):
    plan = overlapping(lambda x: x).plan(DEVICE)
    assert verify(plan) is plan
    refuses(PlanError, rule, lambda: verify(change(plan)))


def test_a_lock_given_back_inside_a_loop_is_refused():
    plan = looping(lambda x: x).plan(DEVICE)
    loop = next(step for step in plan.steps if step.label == "loop")
    body = (replace(loop.body[0], unlocks=("enc",)), *loop.body[1:])
    refuses(PlanError, ("enc",), lambda: verify(at(at(plan, "loop", body=body), "enc", unlocks=())))


def test_a_request_inside_another_runs_where_that_holds_nothing():
    sessions: list[Any] = []

    def inner(x: torch.Tensor) -> torch.Tensor:
        return sessions[0](x=x)["y"] if len(sessions) == 1 and not sessions.append(0) else x + 1

    with overlapping(inner).plan(DEVICE).load() as session:
        sessions.append(session)
        x = torch.randn(2, 4)
        enc, dec = linear(4, 4), linear(4, 4, seed=1)
        expected = dec(dec(enc(enc(x)) + 1))
        torch.testing.assert_close(session(x=x)["y"], expected)


def test_a_request_inside_another_is_refused_where_that_holds_a_program():
    sessions: list[Any] = []

    def inner(x: torch.Tensor) -> torch.Tensor:
        return sessions[0](x=x)["y"]

    with looping(inner).plan(DEVICE).load() as session:
        sessions.append(session)
        error = refuses(StageError, "runs in this thread already", lambda: session(x=torch.ones(2, 4)))
        assert isinstance(error.__cause__, InputError)


def test_an_error_gives_back_what_a_request_holds():
    def fail(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("no")

    with looping(fail).plan(DEVICE).load() as session, ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            refuses(StageError, "no", lambda: session(x=torch.ones(2, 4)))
            with pytest.raises(StageError):
                pool.submit(lambda: session(x=torch.ones(2, 4))).result(20)


def test_an_interrupt_at_any_line_leaves_no_lock():
    with overlapping(lambda x: x + 1).plan(DEVICE).load() as session, ThreadPoolExecutor(1) as pool:
        x = torch.randn(2, 4)
        expected = session(x=x)["y"]
        places = ("runner/exclusive.py",)
        came_out = 0
        for out in interrupts_of(lambda: session(x=x), places, 30):
            came_out += out
            torch.testing.assert_close(pool.submit(session, x=x).result(20)["y"], expected)
        assert came_out > 20
        assert not session._locks._holders


def test_a_device_without_room_for_two_requests_takes_one():
    gate = Gate()
    pipeline = overlapping(lambda x: gate(x) / 2)
    plan = pipeline.plan(DEVICE)
    fixed = sum(size for _, size in (*plan.weights, *plan.buffers))
    tight = pipeline.plan(DEVICE, memory=fixed + plan.summary["peak_bytes"][DEVICE] * 2 - 1)
    with tight.load() as session, ThreadPoolExecutor(2) as pool:
        results = [pool.submit(session, x=torch.ones(2, 4)) for _ in range(2)]
        wait_until(lambda: gate.inside == 1 and session._locks.has_waiters)
        gate.open.set()
        assert torch.equal(results[0].result(20)["y"], results[1].result(20)["y"])
    assert gate.most == 1
