"""Values die after their last reader, by reference count: with the cyclic collector off, also after failures."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator

import pytest
import torch

from orchestrator import Dim, StageError
from orchestrator.testing import recording
from tests.kit import COMPUTE, Double, batch, chain, host, linear, new, pair, spec


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Probe:
    """Notes a weak reference to what each stage gives, and which of them are alive when the next one runs."""

    def __init__(self) -> None:
        self.made: dict[str, list[weakref.ref[torch.Tensor]]] = {}
        self.alive: dict[str, set[str]] = {}

    def stage(self, name: str, fail: bool = False, readers: int = 1):
        def run(x, y=None):
            if type(x) is not torch.Tensor:
                return x * 2  # planning
            self.alive[name] = self.living()
            if fail and bool((x < 0).any()):
                raise ValueError(name)
            value = x * 2 if y is None else x + y
            self.made.setdefault(name, []).append(weakref.ref(value))
            return value

        return run

    def living(self) -> set[str]:
        return {name for name, refs in self.made.items() if any(ref() is not None for ref in refs)}


def line(probe: Probe, *names: str, fail: str = "", takes=None):
    pipeline = new()
    value = pipeline.input("x", takes or spec(batch("n"), 8, pad=0))
    for name in names:
        value = pipeline.add(name, probe.stage(name, fail=name == fail))(value)
    pipeline.output("y", value)
    return pipeline


@pytest.mark.parametrize("size", [4, 3, 9])
def test_a_value_is_gone_when_the_stage_after_its_reader_runs(size: int):
    probe = Probe()
    session = line(probe, "a", "b", "c", "d").plan(sizes={"n": (2, 4)}).load()
    result = session(x=torch.ones(size, 8))
    assert probe.alive["b"] >= {"a"}
    assert "a" not in probe.alive["c"]
    assert {"a", "b"}.isdisjoint(probe.alive["d"])
    assert {"a", "b", "c"}.isdisjoint(probe.living())
    del result
    assert probe.living() == set()


def test_a_value_with_two_readers_lives_until_the_second():
    probe = Probe()
    pipeline = new()
    value = pipeline.add("a", probe.stage("a"))(pipeline.input("x", spec(8)))
    near = pipeline.add("b", probe.stage("b"))(value)
    far = pipeline.add("c", probe.stage("c"))(near)
    both = pipeline.add("d", probe.stage("d"))(far, value)
    pipeline.output("y", pipeline.add("e", probe.stage("e"))(both))
    pipeline.plan().load()(x=torch.ones(8))
    assert probe.alive["d"] == {"a", "c"}
    assert probe.alive["e"] == {"d"}


def test_an_output_nobody_reads_dies_at_once():
    references = []

    def two(x):
        if type(x) is not torch.Tensor:
            return x * 2, x * 3
        pieces = x * 2, x * 3
        references.extend(weakref.ref(piece) for piece in pieces)
        return pieces

    pipeline = new()
    _, used = pipeline.add("two", two, outputs=("spare", "used"))(pipeline.input("x", spec(8)))
    pipeline.output("y", pipeline.add("b", lambda v: v + sum(r() is not None for r in references))(used))
    references.clear()
    assert pipeline.plan().load()(x=torch.zeros(8))["y"].tolist() == [1.0] * 8


def test_the_input_is_not_kept():
    probe = Probe()
    session = line(probe, "a", "b").plan(sizes={"n": (2, 4)}).load()
    for size in (2, 3, 9):
        x = torch.ones(size, 8)
        ref = weakref.ref(x)
        session(x=x)
        del x
        assert ref() is None


@pytest.mark.parametrize("size", [4, 3, 9])
def test_nothing_is_left_after_a_failure(size: int):
    probe = Probe()
    session = line(probe, "a", "b", "c", fail="c").plan(sizes={"n": (2, 4)}).load()
    for _ in range(2):
        x = -torch.ones(size, 8)
        ref = weakref.ref(x)
        with pytest.raises(StageError):
            session(x=x)
        del x
        assert probe.living() == set()
        assert ref() is None
    session(x=torch.ones(size, 8))
    assert probe.living() == set()


def test_nothing_is_left_of_a_region_that_failed():
    probe = Probe()
    pipeline = new()
    crops = host(pipeline, "find", lambda x: x * 1, crops=spec(Dim("n", (2, 4), batch=True), 8, pad=0))(
        pipeline.input("x", spec(9, 8))
    )
    value = pipeline.add("a", probe.stage("a"))(crops)
    pipeline.output("y", pipeline.add("b", probe.stage("b", fail=True))(value))
    session = pipeline.plan().load()
    with pytest.raises(StageError):
        session(x=-torch.ones(9, 8))
    assert probe.living() == set()
    session(x=torch.ones(9, 8))
    assert probe.living() == set()


def test_a_chunk_is_gone_when_the_next_one_runs():
    probe = Probe()
    log = []

    def look(v):
        if type(v) is torch.Tensor:
            log.append(len(probe.living()))
        return v + 1

    pipeline = new()
    value = pipeline.add("a", probe.stage("a"))(pipeline.input("x", spec(batch("n"), 8, pad=0)))
    pipeline.output("y", pipeline.add("look", look)(value))
    pipeline.plan(sizes={"n": (2, 4)}).load()(x=torch.ones(20, 8))
    assert [sum(ref() is not None for ref in refs) for refs in probe.made.values()] == [0]
    assert log[-5:] == [1] * 5


def test_a_stream_keeps_nothing():
    probe = Probe()
    session = line(probe, "a", "b", "c", fail="c").plan(sizes={"n": 4}).load()
    stream = session.stream(({"x": sign * torch.ones(4, 8)} for sign in (1, -1, 1, -1)), depth=2)
    for _ in range(4):
        try:
            result = next(stream)
            del result
        except StageError:
            pass
    stream.close()
    assert probe.living() == set()


def test_a_trace_and_a_session_that_was_closed_keep_nothing():
    probe = Probe()
    session = line(probe, "a", "b").plan(sizes={"n": 4}).load()
    with session.trace() as trace:
        session(x=torch.ones(4, 8))
    assert trace.spans
    assert probe.living() == set()
    ref = weakref.ref(session)
    session.close()
    del session
    gc.collect()
    assert ref() is None


def leaks(pipeline, requests, **plan) -> None:
    """Runs requests on the null device, which frees by hand: nothing may be freed twice or be left over."""
    with recording() as record:
        with pipeline.plan("null", options=COMPUTE, **plan).load() as session:
            for request in requests:
                with contextlib.suppress(StageError):
                    session(**request)
        record.assert_no_leaks()


def test_a_device_that_frees_by_hand_is_left_empty():
    module = linear(8, 8)
    pipeline = new()
    x = pipeline.input("x", spec(batch("n"), 8, pad=0))
    a = pipeline.add("a", module)(x)
    stage = pipeline.add("c", lambda p, q, k: p + q + k)
    pipeline.output("y", stage(a, pipeline.add("b", Double())(a), torch.ones(8)))
    pipeline.output("a", a)
    pipeline.output("x", x)
    leaks(pipeline, [{"x": torch.ones(size, 8)} for size in (1, 2, 3, 4, 9, 20)], sizes={"n": (2, 4)})


def test_a_device_that_frees_by_hand_is_left_empty_after_failures():
    probe = Probe()
    requests = [{"x": sign * torch.ones(size, 8)} for size in (2, 3, 9) for sign in (1, -1, 1)]
    leaks(line(probe, "a", "b", "c", fail="b"), requests, sizes={"n": (2, 4)})


def test_a_region_on_a_device_that_frees_by_hand():
    probe = Probe()
    pipeline = new()
    x = pipeline.input("x", spec(Dim.dynamic("k"), 8))
    crops = host(pipeline, "find", lambda x: x[1:] * 1, crops=spec(Dim("n", (2, 4), batch=True), 8, pad=0))(x)
    value = pipeline.add("a", probe.stage("a"))(crops)
    pipeline.output("y", pipeline.add("b", probe.stage("b", fail=True))(value))
    pipeline.output("a", value)
    leaks(pipeline, [{"x": sign * torch.ones(size, 8)} for size in (1, 2, 3, 6, 10) for sign in (1, -1)])


def test_kept_outputs_are_freed_at_close():
    pipeline, *_ = pair()
    with recording() as record:
        session = pipeline.plan("null", sizes={"batch": (2, 4)}, options=COMPUTE).load()
        for size in (2, 3, 9):
            request = {"image": torch.ones(size, 8), "text": torch.ones(size, 4)}
            output = session.run(request, keep_on_device=("logits",))["logits"]
            assert (tuple(output.shape), output.is_freed) == ((size, 5), False)
        session.close()
        record.assert_no_leaks()


def test_a_chain_of_large_values_peaks_at_two_of_them():
    probe = Probe()
    names = [f"s{index}" for index in range(10)]
    pipeline = new()
    value = pipeline.input("x", spec(1000))
    for name in names:
        value = pipeline.add(name, probe.stage(name))(value)
    pipeline.output("y", value)
    pipeline.plan().load()(x=torch.ones(1000))
    assert all(len(alive) <= 1 for alive in probe.alive.values())


def test_memory_of_the_process_does_not_grow():
    session = chain(Double(), Double(), takes=spec(batch("n"), 8, pad=0)).plan(sizes={"n": (2, 4)}).load()
    for size in (2, 3, 9):
        session(x=torch.ones(size, 8))
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(50):
        for size in (2, 3, 9):
            session(x=torch.ones(size, 8))
    assert len(gc.get_objects()) - before < 20


@pytest.mark.parametrize("readers", [0, 1])
def test_what_a_branch_in_a_loop_hands_on_or_leaves_unread_is_freed_on_the_device(readers: int):
    """Kind: a second name of a handle that no step reads last keeps it alive for ever."""
    body = new("body")
    x = body.input("x", spec(2, 3))
    body.input("unread", spec(2, 3))
    body.output("o", body.add("double", Double())(x) if readers else x)
    step = new("step")
    value = step.input("x", spec(2, 3))
    high = host(step, "high", lambda x: bool(x.mean() > 2), y=bool)(value)
    step.when("w", body, inputs={"x": value, "unread": value}, otherwise={"o": value}, condition=high)
    step.output("x", step.add("plus", lambda x: x + 1)(value))
    pipeline = new()
    pipeline.output("y", pipeline.loop("l", step, carry={"x": pipeline.input("x", spec(2, 3))}, max_steps=4))
    with pipeline.plan(device="null:0", options=COMPUTE).load() as session, recording() as record:
        assert torch.equal(session(x=torch.zeros(2, 3))["y"], torch.full((2, 3), 4.0))
        record.assert_no_leaks()


def test_chunks_of_a_value_that_is_kept_under_two_names_are_joined_once():
    """Kind: what is done for each output is done twice to one value."""
    pipeline = new()
    value = pipeline.add("double", Double())(pipeline.input("x", spec(batch("b", (2,)), 3, pad=0)))
    for name in ("y", "z"):
        pipeline.output(name, value)
    with pipeline.plan(device="null:0", options=COMPUTE).load() as session, recording() as record:
        results = session.run({"x": torch.ones(3, 3)}, keep_on_device=["y", "z"])
        record.assert_no_leaks(keep=results.values())
