"""Streaming bit by bit: what loops give in each iteration, request by request, and what becomes of it when it ends."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from orchestrator import InputError, StageError
from orchestrator.testing import assert_same, recording
from tests.bodies import DEVICES, items, new
from tests.kit import Double, batch, chain, host, refuses, spec
from tests.runner.decoding import STEPS, decoder, halving, load, loop_in_loop, request, together
from tests.runner.gate import Gate, wait_until

pytestmark = pytest.mark.usefixtures("shared_store")

everywhere = pytest.mark.parametrize("device", DEVICES)


class Weak:
    """Fails in its sixth call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 6:
            raise ValueError("weak")
        return x


@everywhere
@pytest.mark.parametrize("rows", [4, 3])
def test_a_collected_value_comes_part_by_part_and_the_rest_at_the_end(device: str, rows: int):
    with load(decoder(), device) as session:
        expected = session.run(request(rows))
        with recording() as record:
            items = list(session.stream([request(rows)], partial=("tokens",)))
            record.assert_no_leaks()
    assert [name for _, name, _ in items] == ["tokens"] * STEPS + ["x"]
    assert_same(torch.stack([value for _, name, value in items[:-1]]), expected["tokens"])
    assert_same(items[-1][2], expected["x"])


@everywhere
@pytest.mark.parametrize("rows", [4, 3])
def test_names_are_outputs_and_ports_of_collects_and_carries(device: str, rows: int):
    """A carry is what it is after the iteration, cut to the request, on the host."""
    names = ("tokens", "decode.token", "decode.token[]", "token", "decode.x", "decode.k", "k")
    with load(decoder(), device) as session, recording() as record:
        (streams,) = together(session.stream([request(rows)], partial=names))
        record.assert_no_leaks()
        expected = session.run(request(rows))
    assert {name: len(values) for name, values in streams.items()} == {**dict.fromkeys(names, STEPS), "x": 1}
    for name in names[:4]:
        assert_same(torch.stack(streams[name]), expected["tokens"])
    for name in ("decode.k", "k"):
        assert [int(value) for value in streams[name]] == [*range(1, STEPS + 1)]
    assert all(value.shape == (rows, 4) for value in streams["decode.x"])
    assert_same(streams["decode.x"][-1] * 2, expected["x"], exact=False)
    assert all(value.is_cpu for values in streams.values() for value in values)


@everywhere
def test_values_stay_what_they_were_when_they_came(device: str):
    """The device goes on and overwrites its buffers."""
    with load(decoder(), device) as session:
        values = []
        for _, name, value in session.stream([request(), request(seed=1)], partial=("decode.x", "tokens")):
            values.append((name, value, value.clone()))
    assert len(values) > 2 * STEPS
    assert all(torch.equal(value, copy) for _, value, copy in values)


@everywhere
@pytest.mark.parametrize("depth", [1, 3])
def test_each_request_keeps_its_order(device: str, depth: int):
    requests = [request(4 if number % 2 else 3, seed=number) for number in range(6)]
    with load(decoder(), device) as session:
        expected = [session.run(one) for one in requests]
        with recording() as record:
            items = list(session.stream(requests, depth=depth, partial="tokens"))
            record.assert_no_leaks()
    for number, wanted in enumerate(expected):
        mine = [(name, value) for at, name, value in items if at == number]
        assert [name for name, _ in mine] == ["tokens"] * STEPS + ["x"]
        assert_same(torch.stack([value for _, value in mine[:-1]]), wanted["tokens"])
        assert_same(mine[-1][1], wanted["x"])
    if depth == 1:
        assert [number for number, _, _ in items] == sorted(number for number, _, _ in items)


def test_requests_that_run_at_once_take_turns_in_what_comes():
    """One waits in its first stage; the other is done before it goes on."""
    gate, inner = Gate(), decoder()
    late = threading.Event()

    def slow(x: torch.Tensor) -> torch.Tensor:
        if type(x) is torch.Tensor and float(x[0, 0]) == 1.0:
            late.set()
            gate(x)
        return x

    pipeline = new()
    x = pipeline.add("slow", slow)(pipeline.input("start", spec(batch("batch"), 4, pad=0)))
    for name, value in zip(("x", "tokens"), pipeline.add("inner", inner)(x), strict=True):
        pipeline.output(name, value)
    with pipeline.plan(sizes={"batch": 2}).load() as session:
        requests = [{"start": torch.ones(2, 4)}, {"start": torch.zeros(2, 4)}]
        stream = session.stream(requests, depth=2, partial="tokens")
        first = [next(stream)[0] for _ in range(STEPS + 1)]
        assert first == [1] * (STEPS + 1)
        assert late.is_set()
        gate.open.set()
        assert [number for number, _, _ in stream] == [0] * (STEPS + 1)


@everywhere
def test_an_error_comes_at_its_place_and_the_others_go_on(device: str):
    requests = [request(), {"start": torch.ones(4, 5)}, request(3), {}, request(2)]
    log: list[Any] = []
    with load(decoder(), device) as session, recording() as record:
        stream = session.stream(requests, depth=1, partial="tokens")
        while True:
            try:
                number, name, _ = next(stream)
            except StopIteration:
                break
            except InputError as error:
                number, name = type(error).__name__, str(error)[:11]
            if not log or log[-1] != (number, name):
                log.append((number, name))
        record.assert_no_leaks()
        assert session.stats["requests"] == 3
    assert log == [
        (0, "tokens"),
        (0, "x"),
        ("InputError", "Input 'star"),
        (2, "tokens"),
        (2, "x"),
        ("InputError", "The request"),
        (4, "tokens"),
        (4, "x"),
    ]


@everywhere
def test_a_stage_that_fails_in_an_iteration_fails_its_request_alone(device: str):
    step = new("step")
    weak = Weak()
    value = host(step, "weak", weak, y=spec("batch", 4, pad=0))(step.input("x", spec(batch("batch"), 4)))
    step.output("x", step.add("double", Double())(value))
    pipeline = new("weak")
    start = pipeline.input("start", spec(batch("batch"), 4, pad=0))
    pipeline.output("x", pipeline.loop("loop", step, carry={"x": start}, max_steps=4))
    names: list[str] = []
    with load(pipeline, device) as session, recording() as record:
        stream = session.stream([request()] * 3, depth=1, partial="loop.x")
        while True:
            try:
                names.append(next(stream)[1])
            except StageError as error:
                names.append(str(error.__cause__))
            except StopIteration:
                break
        record.assert_no_leaks()
        assert session.stats["requests"] == 2
    once = ["loop.x"] * 4 + ["x"]
    assert names == [*once, "loop.x", "weak", *once]


def test_what_the_requests_come_from_may_fail():
    def requests() -> Iterator[dict[str, Any]]:
        yield request()
        raise ValueError("no more")

    with load(decoder(), "cpu") as session:
        stream = session.stream(requests(), partial="tokens")
        names, errors = [], []
        while True:
            try:
                names.append(next(stream)[1])
            except ValueError as error:
                errors.append(str(error))
            except StopIteration:
                break
        assert (names, errors) == (["tokens"] * STEPS + ["x"], ["no more"])


@everywhere
@pytest.mark.parametrize("how", ["close", "with", "drop"])
def test_a_stream_that_ends_early_cancels_what_runs(device: str, how: str):
    with load(decoder(max_steps=2_000), device) as session, recording() as record:
        stream = session.stream([request()] * 4, partial="decode.x")
        next(stream)
        if how == "with":
            with stream:
                pass
        elif how == "close":
            stream.close()
        if how == "drop":
            reference = weakref.ref(stream)
            del stream
            assert reference() is None, "nobody else holds it"
            wait_until(lambda: not session._closing.active)
        else:
            with pytest.raises(StopIteration):
                next(stream)
        record.assert_no_leaks()
        before = session.stats["requests"]
        assert before == 0
        assert len(list(session.stream([request()], partial="k"))) == 2_000 + 2


@pytest.mark.parametrize("device", ["cpu", "neuron"])
def test_nothing_waits_for_the_cyclic_collector(device: str):
    with load(decoder(), device) as session:
        list(session.stream([request()], partial="tokens"))
        gc.collect()
        gc.disable()
        try:
            values = []
            for _, _, value in session.stream([request(), request(3)], partial=("tokens", "decode.x")):
                values.append(weakref.ref(value))
                del value
            errors = []
            stream = session.stream([{}, request()], depth=1, partial="tokens")
            for _ in range(STEPS + 3):
                try:
                    values.append(weakref.ref(next(stream)[2]))
                except InputError as error:
                    errors.append(weakref.ref(error))
                except StopIteration:
                    break
            del stream
            assert len(errors) == 1
            assert not any(ref() is not None for ref in (*values, *errors))
        finally:
            gc.enable()


@everywhere
@pytest.mark.parametrize("rows", [4, 3, 9])
def test_loops_in_loops_in_parts(device: str, rows: int):
    """A request in chunks gives the iterations of one chunk, then those of the next."""
    with load(loop_in_loop(), device) as session, recording() as record:
        expected = session.run(request(rows))
        (streams,) = together(session.stream([request(rows)], partial=("sub/out/in.x", "sums")))
        record.assert_no_leaks()
    chunks = -(-rows // 4)
    assert [len(streams[name]) for name in ("sub/out/in.x", "sums", "x")] == [6 * chunks, 3 * chunks, 1]
    parts = [torch.stack(streams["sums"][3 * at : 3 * at + 3]) for at in range(chunks)]
    assert_same(torch.cat(parts, 1), expected["sums"])


ROWS = -torch.ones(9, 3)
ROWS[:7] = 4.0
PLACES = {
    "map": ({"x": items(3, 8, 5, 1, 4)}, "all/loop.x", {}),
    "when": ({"x": torch.full((3, 4), 8.0), "other": torch.ones(3, 4)}, "all/loop.x", {"batch": (2, 4)}),
    "region": ({"x": ROWS}, "loop.x", {}),
}


@everywhere
@pytest.mark.parametrize("kind", PLACES)
def test_loops_in_maps_branches_and_regions(device: str, kind: str):
    inputs, name, sizes = PLACES[kind]
    with load(halving(kind), device, sizes) as session, recording() as record:
        expected = session.run(inputs)
        (streams,) = together(session.stream([inputs], partial=(name,)))
        record.assert_no_leaks()
        assert streams[name]
        assert_same(streams["y"][0], expected["y"])


def test_a_branch_that_does_not_run_gives_nothing_bit_by_bit():
    with load(halving("when"), "cpu") as session:
        (streams,) = together(session.stream([{"other": torch.ones(3, 4)}], partial="all/loop.x"))
    assert list(streams) == ["y"]


def test_what_no_loop_gives_is_refused_at_once():
    with load(decoder(), "cpu") as session:
        for name, words in (
            ("tokenz", "Did you mean 'tokens'?"),
            ("after", "Known: 'decode.k', "),
            ("start", "Known: "),
            ("decode.done", "Did you mean 'decode.token'?"),
        ):
            texts = (f"partial names {name!r}, which no loop gives in its iterations.", words)
            error = refuses(InputError, texts, lambda name=name: session.stream([], partial=(name,)))
            assert error.partial == name
        for depth in (0, -1, 1.5, True):
            refuses(
                InputError, "depth", lambda depth=depth: session.stream([], depth=depth, partial="tokens")
            )
    refuses(InputError, "closed", lambda: session.stream([], partial="tokens"))
    with chain(Double()).plan().load() as session:
        words = "partial names 'y', which no loop gives in its iterations. None is known."
        refuses(InputError, words, lambda: session.stream([], partial="y"))


@everywhere
def test_what_is_handed_out_on_the_way_is_counted(device: str):
    place, _ = DEVICES[device]
    with load(decoder(), device) as session:
        session.run(request())
        once = session.stats["downloads"]
        list(session.stream([request()], partial="decode.x"))
        assert session.stats["requests"] == 2
        assert session.stats["downloads"] == 2 * once + (0 if place == "cpu" else STEPS)
