"""Progress of loops, and requests that are cancelled between two iterations: memory is back to where it was."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from orchestrator import CancelledError, Dim, InputError, Pipeline, Session
from orchestrator.testing import assert_same, recording
from tests.bodies import DEVICES, NEURON, Halve, body, items, new
from tests.kit import Double, batch, host, refuses, spec
from tests.runner.decoding import MOST, STEPS, decoder, halving, load, loop_in_loop, request

pytestmark = pytest.mark.usefixtures("shared_store")

everywhere = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Trigger:
    """A listener that sets an event, or raises, when it is told so often."""

    def __init__(self, at: int, error: BaseException | None = None) -> None:
        self.at = at
        self.error = error
        self.event = threading.Event()
        self.told: list[tuple[str, int, int]] = []

    def __call__(self, loop: str, iterations: int, most: int) -> None:
        self.told.append((loop, iterations, most))
        if len(self.told) == self.at:
            if self.error is not None:
                raise self.error
            self.event.set()


def device_bytes(session: Session) -> list[int]:
    """Bytes of requests on the emulated device, for each rank."""
    device: Any = session._executable.backends.get(NEURON)
    return [] if device is None else list(device.open_device._request)


def cancels(session: Session, inputs: dict[str, Any], at: int) -> CancelledError:
    """Cancels a request; checks that nothing is left of it and that the next one is as before."""
    expected = session.run(inputs)
    before, stats = device_bytes(session), session.stats
    trigger = Trigger(at)
    with recording() as record:
        with pytest.raises(CancelledError) as error_info:
            session.run(inputs, progress=trigger, cancel=trigger.event)
        record.assert_no_leaks()
    error = error_info.value
    error_info._excinfo = None  # its traceback holds the frames of the request
    error.__traceback__ = None
    assert device_bytes(session) == before
    counts = {name: value for name, value in session.stats.items() if name != "measured"}
    assert counts == {name: value for name, value in stats.items() if name != "measured"}
    assert len(trigger.told) == at
    assert_same(session.run(inputs), expected)
    return error


@everywhere
@pytest.mark.parametrize("rows", [4, 3])
@pytest.mark.parametrize("at", [1, 3, STEPS])
def test_a_request_is_cancelled_after_an_iteration(device: str, rows: int, at: int):
    with load(decoder(), device) as session:
        error = cancels(session, request(rows), at)
    assert str(error) == f"The request was cancelled after iteration {at} of {MOST} of loop 'decode'."
    assert (error.loop, error.done) == ("decode", at)


@everywhere
@pytest.mark.parametrize("rows", [4, 9])
def test_a_request_is_cancelled_in_a_loop_in_a_loop(device: str, rows: int):
    """And in the second chunk, where what the first one gave is there already."""
    with load(loop_in_loop(), device) as session:
        assert cancels(session, request(rows), 2).loop == "sub/out/in"
        assert cancels(session, request(rows), 3).loop == "sub/out"
        if rows > 4:
            assert cancels(session, request(rows), 11).done == 2


ROWS = -torch.ones(9, 3)
ROWS[:7] = 4.0
PLACES = {
    "map": ({"x": [4.0 * torch.ones_like(item) for item in items(3, 8, 5, 1, 4)]}, {}),
    "when": ({"x": torch.full((3, 4), 8.0), "other": torch.ones(3, 4)}, {"batch": (2, 4)}),
    "region": ({"x": ROWS}, {}),
}


@everywhere
@pytest.mark.parametrize("kind", PLACES)
def test_a_request_is_cancelled_in_a_map_a_branch_or_a_region(device: str, kind: str):
    inputs, sizes = PLACES[kind]
    with load(halving(kind), device, sizes) as session:
        whole = Trigger(0)
        session.run(inputs, progress=whole)
        for at in (1, len(whole.told) - 1):
            cancels(session, inputs, at)


@everywhere
def test_what_is_set_before_cancels_after_the_first_iteration(device: str):
    event = threading.Event()
    event.set()
    with load(decoder(), device) as session:
        error = refuses(CancelledError, "iteration 1 of", lambda: session.run(request(), cancel=event))
        assert error.done == 1
        event.clear()
        assert_same(session.run(request(), cancel=event), session.run(request()))


def test_another_thread_cancels():
    event = threading.Event()
    start_event = threading.Event()

    def progress(_loop: str, iterations: int, _most: int) -> None:
        if iterations == 2:
            start_event.set()
            assert event.wait(20)

    with load(decoder(), "cpu") as session:
        waiter = threading.Thread(target=lambda: start_event.wait(20) and event.set())
        waiter.start()
        error = refuses(CancelledError, "", lambda: session.run(request(), progress=progress, cancel=event))
        waiter.join()
    assert error.done == 2


def test_a_request_of_another_thread_is_not_cancelled():
    event = threading.Event()
    event.set()
    with load(decoder(), "cpu") as session:
        expected = session.run(request())
        results: list[Any] = []

        def other() -> None:
            results.append(session.run(request(), progress=lambda *_: None))

        threads = [threading.Thread(target=other) for _ in range(3)]
        for thread in threads:
            thread.start()
        refuses(CancelledError, "", lambda: session.run(request(), cancel=event))
        for thread in threads:
            thread.join()
        for one in results:
            assert_same(one, expected)
        assert len(results) == 3


def test_without_a_loop_nothing_is_told_and_nothing_cancelled():
    pipeline = new()
    pipeline.output(
        "y", pipeline.add("inner", body(lambda x: x + 1, x=spec(2)))(pipeline.input("x", spec(2)))
    )
    event, trigger = threading.Event(), Trigger(0)
    event.set()
    with pipeline.plan().load() as session:
        assert session.run({"x": torch.ones(2)}, progress=trigger, cancel=event)["y"].tolist() == [2, 2]
    assert trigger.told == []


@everywhere
def test_progress_is_told_after_each_iteration_of_each_loop(device: str):
    trigger = Trigger(0)
    with load(decoder(), device) as session:
        assert_same(session.run(request(), progress=trigger), session.run(request()))
    assert trigger.told == [("decode", iteration, MOST) for iteration in range(1, STEPS + 1)]
    trigger = Trigger(0)
    with load(loop_in_loop(), device) as session:
        session.run(request(), progress=trigger)
    inner = [("sub/out/in", 1, 2), ("sub/out/in", 2, 2)]
    assert trigger.told == [one for iteration in (1, 2, 3) for one in (*inner, ("sub/out", iteration, 3))]


class OwnError(Exception):
    """Of the caller."""


@everywhere
@pytest.mark.parametrize("kind", [OwnError, KeyError, CancelledError, InputError, KeyboardInterrupt])
def test_what_a_listener_raises_ends_the_request_as_it_is(device: str, kind: Callable[..., BaseException]):
    with load(decoder(), device) as session:
        expected, before, stats = session.run(request(3)), device_bytes(session), session.stats["requests"]
        error = kind("enough")
        with recording() as record:
            with pytest.raises(BaseException) as error_info:  # noqa: PT011
                session.run(request(3), progress=Trigger(3, error))
            assert error_info.value is error
            assert (error.__cause__, error.__context__) == (None, None)
            error_info._excinfo = error.__traceback__ = None
            record.assert_no_leaks()
        if kind is OwnError:
            reference = weakref.ref(error)
            del error
            assert reference() is None
        assert device_bytes(session) == before
        assert session.stats["requests"] == stats
        assert_same(session.run(request(3)), expected)
        assert_same(session.run(request(3), progress=Trigger(0)), expected)


@everywhere
def test_a_request_in_a_listener_overwrites_nothing(device: str):
    """Where each program has one output buffer it is refused, elsewhere it runs."""
    with load(decoder(), device) as session:
        one, other = request(seed=1), request(seed=2)
        expected = session.run(one), session.run(other)
        results: list[Any] = []

        def progress(*_: Any) -> None:
            results.append(session.run(other))

        if any(group.output_buffers for group in session.plan.groups):
            words = ("'decoding' runs in this thread already", "load the plan twice")
            refuses(InputError, words, lambda: session.run(one, progress=progress))
        else:
            assert_same(session.run(one, progress=progress), expected[0])
            assert len(results) == STEPS
            assert all(torch.equal(result["x"], expected[1]["x"]) for result in results)
        assert_same(session.run(one), expected[0])


class Keeper:
    """A stage that notes weak references to what it is given."""

    def __init__(self) -> None:
        self.seen: list[weakref.ref[torch.Tensor]] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if type(x) is torch.Tensor:
            self.seen.append(weakref.ref(x))
        return x * 2


def test_values_of_a_cancelled_request_die_with_it():
    keeper = Keeper()
    pipeline = new()
    start = pipeline.add("before", keeper.__call__)(pipeline.input("start", spec(batch("batch"), 4, pad=0)))
    inner = body(keeper.__call__, output="x", x=spec("batch", 4))
    loop = pipeline.loop("loop", inner, carry={"x": start}, max_steps=5, collect=("x",), outputs=("x", "x[]"))
    for name, value in zip(("x", "parts"), loop, strict=True):
        pipeline.output(name, value)
    with load(pipeline, "cpu") as session:
        trigger = Trigger(3)
        with contextlib.suppress(CancelledError):
            session.run(request(), progress=trigger, cancel=trigger.event)
        assert len(keeper.seen) == 4
        assert not any(ref() is not None for ref in keeper.seen[1:])


def levels() -> Pipeline:
    """Two regions: what the first gives on its device, and a loop in it that may be cancelled."""
    step = new("step")
    half, flag = step.add("halve", Halve(), outputs=("x", "done"))(step.input("x", spec(batch("rows"), 3)))
    step.output("x", half)
    step.output("done", flag)
    pipeline = new()
    find = host(
        pipeline,
        "find",
        lambda x: x[x[:, 0] > 0],
        rows=spec(Dim("rows", (2, 4), batch=True), 3, pad="repeat_first"),
    )
    double = pipeline.add("double", Double())(find(pipeline.input("x", spec(9, 3))))
    start = pipeline.add("start", Double())(double)
    end = pipeline.loop("loop", step, carry={"x": start}, until="done", max_steps=6)
    look_output = host(pipeline, "look", lambda x: x + 1, y=spec("rows", 3, pad=0))(end)
    pipeline.output("y", pipeline.add("mix", lambda a, b: a + b)(double, look_output))
    return pipeline


@everywhere
def test_what_an_earlier_chunk_of_a_region_gave_is_freed(device: str):
    with load(levels(), device, {}) as session:
        whole = Trigger(0)
        session.run({"x": ROWS}, progress=whole)
        assert len(whole.told) > 6, "it runs in chunks"
        for at in range(1, len(whole.told) + 1):
            cancels(session, {"x": ROWS}, at)


@everywhere
def test_what_an_earlier_chunk_of_a_request_gave_is_freed(device: str):
    trigger = Trigger(7)
    with load(loop_in_loop(), device) as session, recording() as record:
        options = {"keep_on_device": ("x",)}
        with pytest.raises(CancelledError) as error_info:
            session.run(request(9), **options, progress=trigger, cancel=trigger.event)
        error_info.value.__traceback__ = None
        record.assert_no_leaks()
        output = session.run(request(9), **options)["x"]
        record.assert_no_leaks(keep=[output] if device.startswith("null") else [])
