"""A stream runs requests at the same time, gives results in order, and takes requests as there is room."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from orchestrator import InputError, StageError
from tests.kit import Double, chain, linear, refuses, spec
from tests.runner.gate import Gate, wait_until


def streamed(session, values, **options):
    return [
        result["y"][0].item()
        for result in session.stream(({"x": torch.tensor([v])} for v in values), **options)
    ]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_a_stream_keeps_the_order(depth: int):
    def uneven(x):
        if type(x) is torch.Tensor:
            time.sleep(0.004 if int(x[0]) % 3 == 0 else 0)
        return x * 2

    with chain(uneven, takes=spec(1)).plan().load() as session:
        assert streamed(session, map(float, range(20)), depth=depth) == [2.0 * index for index in range(20)]
        assert session.stats["requests"] == 20


def test_a_stream_takes_requests_as_there_is_room():
    taken = []

    def requests():
        for index in range(10):
            taken.append(index)
            yield {"x": torch.tensor([float(index)])}

    with chain(Double(), takes=spec(1)).plan().load() as session:
        stream = session.stream(requests(), depth=3)
        assert taken == []
        for index in range(10):
            assert next(stream)["y"].tolist() == [2.0 * index]
            assert len(taken) <= index + 1 + 3
        with pytest.raises(StopIteration):
            next(stream)
        with pytest.raises(StopIteration):
            next(stream)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_no_more_than_depth_are_under_way(depth: int):
    gate = Gate()
    with chain(gate.__call__, takes=spec(1)).plan().load() as session:
        stream = session.stream(({"x": torch.ones(1)} for _ in range(12)), depth=depth)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(next, stream)
            wait_until(lambda: gate.inside == depth)
            time.sleep(0.02)
            assert gate.most == depth
            gate.open.set()
            first.result(10)
        assert len(list(stream)) == 11
        assert gate.most == depth


def test_requests_run_at_the_same_time_in_threads_of_their_own():
    meet = threading.Barrier(2, timeout=10)

    def together(x):
        if type(x) is torch.Tensor:
            meet.wait()  # returns only if two requests are in it at once
        return x * 2

    with chain(together, takes=spec(1)).plan().load() as session:
        assert streamed(session, [1.0, 2.0, 3.0, 4.0], depth=2) == [2.0, 4.0, 6.0, 8.0]


def test_a_failed_request_raises_at_its_place_and_the_rest_goes_on():
    def picky(x):
        if type(x) is torch.Tensor and x[0] in (2, 5):
            raise ValueError("not this one")
        return x * 2

    with chain(picky, takes=spec(1)).plan().load() as session:
        requests = [{"x": torch.tensor([float(index)])} for index in range(7)]
        requests[3] = {"x": torch.ones(2)}
        stream = session.stream(requests, depth=3)
        seen = []
        for _ in range(7):
            try:
                seen.append(next(stream)["y"].item())
            except (StageError, InputError) as error:
                seen.append(type(error))
        with pytest.raises(StopIteration):
            next(stream)
    assert seen == [0.0, 2.0, StageError, InputError, 8.0, StageError, 12.0]


def test_a_failing_generator_raises_at_its_place_and_ends_the_stream():
    def requests():
        yield {"x": torch.ones(1)}
        raise RuntimeError("the camera is gone")

    with chain(Double(), takes=spec(1)).plan().load() as session:
        stream = session.stream(requests(), depth=4)
        assert next(stream)["y"].tolist() == [2.0]
        with pytest.raises(RuntimeError, match="camera"):
            next(stream)
        with pytest.raises(StopIteration):
            next(stream)


def test_a_stream_takes_on_the_modes_of_its_caller():
    seen = []

    def look(x):
        if type(x) is torch.Tensor:
            seen.append(
                (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
            )
        return x * 2

    with chain(look, linear(1, 1), takes=spec(1, 1)).plan().load() as session:
        request = {"x": torch.ones(1, 1)}
        with torch.inference_mode():
            inference = next(session.stream([request]))["y"]
        with torch.autocast("cpu", torch.bfloat16):
            half = next(session.stream([request]))["y"]
        plain = next(session.stream([request]))["y"]
    assert seen == [(False, True, False), (False, False, True), (False, False, False)]
    assert (inference.is_inference(), half.dtype, plain.dtype) == (True, torch.bfloat16, torch.float32)
    assert not plain.requires_grad


def test_the_modes_are_those_at_the_call_of_stream():
    seen = []

    def look(x):
        seen.append(torch.is_inference_mode_enabled())
        return x * 2

    with chain(look, takes=spec(1)).plan().load() as session:
        with torch.inference_mode():
            stream = session.stream([{"x": torch.ones(1)}] * 2)
        seen.clear()
        list(stream)
    assert seen == [True, True]


@pytest.mark.parametrize("depth", [0, -1, 1.5, True, None, "2"])
def test_a_depth_is_a_positive_int(depth):
    with chain(Double(), takes=spec(1)).plan().load() as session:
        error = refuses(InputError, "positive int", lambda: session.stream([], depth=depth))
        assert error.depth == depth


def test_a_stream_that_is_left_early_ends_its_threads():
    before = threading.active_count()
    with chain(Double(), takes=spec(1)).plan().load() as session:
        with session.stream(({"x": torch.ones(1)} for _ in range(100)), depth=4) as stream:
            next(stream)
        with pytest.raises(StopIteration):
            next(stream)
    wait_until(lambda: threading.active_count() == before)


def test_closing_a_session_waits_for_its_streams():
    gate = Gate()
    session = chain(gate.__call__, takes=spec(1)).plan().load()
    stream = session.stream([{"x": torch.ones(1)}] * 3, depth=2)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(next, stream)
        wait_until(lambda: gate.inside == 2)
        closing = pool.submit(session.close)
        wait_until(lambda: "closed" in repr(session))
        gate.open.set()
        closing.result(10)
        assert first.result(10)["y"].tolist() == [2.0]
    assert next(stream)["y"].tolist() == [2.0]
    refuses(InputError, "closed", lambda: next(stream))
