"""A stream runs requests at the same time, gives results in order, and takes requests as there is room."""

from __future__ import annotations

import collections
import gc
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy
import pytest
import torch

from orchestrator import InputError, StageError
from tests.bodies import new
from tests.kit import Double, chain, linear, refuses, spec
from tests.runner.gate import Gate, wait_until


def stream_all(session, values, **options):
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
        assert stream_all(session, map(float, range(20)), depth=depth) == [2.0 * index for index in range(20)]
        assert session.stats["requests"] == 20


def test_a_stream_takes_requests_as_there_is_room():
    log = []

    def requests():
        for index in range(10):
            log.append(index)
            yield {"x": torch.tensor([float(index)])}

    with chain(Double(), takes=spec(1)).plan().load() as session:
        stream = session.stream(requests(), depth=3)
        assert log == []
        for index in range(10):
            assert next(stream)["y"].tolist() == [2.0 * index]
            assert len(log) <= index + 1 + 3
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
        assert stream_all(session, [1.0, 2.0, 3.0, 4.0], depth=2) == [2.0, 4.0, 6.0, 8.0]


def test_a_failed_request_raises_at_its_place_and_the_rest_goes_on():
    def picky(x):
        if type(x) is torch.Tensor and x[0] in (2, 5):
            raise ValueError("not this one")
        return x * 2

    with chain(picky, takes=spec(1)).plan().load() as session:
        requests = [{"x": torch.tensor([float(index)])} for index in range(7)]
        requests[3] = {"x": torch.ones(2)}
        stream = session.stream(requests, depth=3)
        log = []
        for _ in range(7):
            try:
                log.append(next(stream)["y"].item())
            except (StageError, InputError) as error:
                log.append(type(error))
        with pytest.raises(StopIteration):
            next(stream)
    assert log == [0.0, 2.0, StageError, InputError, 8.0, StageError, 12.0]


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
    log = []

    def look(x):
        if type(x) is torch.Tensor:
            log.append(
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
    assert log == [(False, True, False), (False, False, True), (False, False, False)]
    assert (inference.is_inference(), half.dtype, plain.dtype) == (True, torch.bfloat16, torch.float32)
    assert not plain.requires_grad


def test_the_modes_are_those_at_the_call_of_stream():
    log = []

    def look(x):
        log.append(torch.is_inference_mode_enabled())
        return x * 2

    with chain(look, takes=spec(1)).plan().load() as session:
        with torch.inference_mode():
            stream = session.stream([{"x": torch.ones(1)}] * 2)
        log.clear()
        list(stream)
    assert log == [True, True]


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


@pytest.mark.parametrize("refill", ["tensor", "numpy", "list"])
def test_a_source_may_fill_one_buffer_again_and_again(refill: str):
    """Kind K4: what is taken is copied, whatever holds it, and no host stage is blamed for what the source does."""
    takes = {"tensor": spec(3), "numpy": numpy.ndarray, "list": list}[refill]
    buffer = {"tensor": torch.zeros(3), "numpy": numpy.zeros(3), "list": [torch.zeros(3)]}[refill]

    def slow(value):
        time.sleep(0.01)
        result = value[0] if refill == "list" else value
        return torch.as_tensor(result, dtype=torch.float32) * 2

    def frames():
        for number in range(8):
            whole = buffer[0] if refill == "list" else buffer
            whole[:] = number
            yield collections.ChainMap({"x": buffer})

    with chain(slow, takes=takes, device="host", outputs={"y": spec(3)}).plan().load() as session:
        assert [result["y"].tolist() for result in session.stream(frames(), depth=3)] == [
            [2.0 * number] * 3 for number in range(8)
        ]


def test_an_interrupt_loses_no_result():
    """The result that was waited for comes next."""
    gate = Gate()
    with chain(gate.__call__, takes=spec(1)).plan().load() as session:
        stream = session.stream([{"x": torch.tensor([float(at)])} for at in range(3)])

        def stop(*_):
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            with pytest.raises(KeyboardInterrupt):
                next(stream)
        finally:
            signal.signal(signal.SIGALRM, before)
        gate.open.set()
        assert [result["y"].item() for result in stream] == [0.0, 2.0, 4.0]


@pytest.mark.parametrize("how", ["close", "next"])
def test_a_stream_within_itself_neither_hangs_nor_harms(how: str):
    """One of its requests closes it, or wants its own result; so does its source."""
    streams, log = [], []

    def stage(x):
        if how == "close":
            streams[0].close()
        else:
            with pytest.raises(InputError, match="same stream"):
                next(streams[0])
        log.append(1)
        return x * 2

    with chain(stage, device="host", outputs={"y": spec(2)}).plan().load() as session:
        streams.append(session.stream([{"x": torch.ones(2)}] * 2, depth=1))
        assert next(streams[0])["y"].tolist() == [2.0, 2.0]
        assert len(list(streams[0])) == (0 if how == "close" else 1)

        def source():
            yield {"x": torch.ones(2)}
            streams[0].close()
            yield {"x": torch.ones(2)}

        how = "next"
        streams[0] = session.stream(source(), depth=1)
        assert len(list(streams[0])) <= 1
        streams.clear()


@pytest.mark.parametrize("partial", [(), ("y",)])
def test_a_stream_that_another_thread_drops_leaves_no_thread(partial):
    before = threading.active_count()
    session = adding_loop().plan().load()
    box = [session.stream(({"x": torch.ones(2)} for _ in range(100)), partial=partial)]
    next(box[0])
    gc.disable()
    try:
        thread = threading.Thread(target=box.clear)
        thread.start()
        thread.join()
        wait_until(lambda: threading.active_count() == before)
    finally:
        gc.enable()
    session.close()


def adding_loop(steps: int = 50):
    """``x`` plus one, so many times."""
    inner = new("inner")
    inner.output("x", inner.add("more", lambda x: x + 1)(inner.input("x", spec(2))))
    pipeline = new()
    pipeline.output(
        "y", pipeline.loop("l", inner, carry={"x": pipeline.input("x", spec(2))}, max_steps=steps)
    )
    return pipeline


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, ValueError])
@pytest.mark.parametrize("partial", [(), ("y",)])
def test_whatever_a_stage_raises_comes_out_at_its_place(kind, partial):
    def angry(x):
        if type(x) is torch.Tensor and x[0] > 5:
            raise kind("now")
        return x

    pipeline = adding_loop(2)
    more = new()
    x = more.add("angry", angry)(more.input("x", spec(2)))
    more.output("y", more.add("rest", pipeline)(x))
    with more.plan().load() as session:
        stream = session.stream([{"x": torch.ones(2) * at} for at in (9, 1)], depth=1, partial=partial)
        with pytest.raises(StageError if kind is ValueError else kind, match="now"):
            next(stream)
        assert len(list(stream)) == (2 if partial else 1)


@pytest.mark.parametrize("device", ["cpu", "neuron-emulated"])
def test_a_slow_reader_of_values_slows_the_request_down(device: str):
    """Few values wait to be taken; who waits for the request to end still gets there."""
    with adding_loop(200).plan(device).load() as session:
        for end in ("close", "call", "session"):
            stream = session.stream([{"x": torch.ones(2)}], depth=1, partial="y")
            next(stream)
            log = []
            listen = stream._channel.put
            stream._run.channel.put = lambda value, put=listen, log=log: (log.append(1), put(value))
            time.sleep(0.3)
            assert len(log) < 10
            if end == "call":
                assert session(x=torch.ones(2))["y"].tolist() == [201.0] * 2
                stream.close()
            elif end == "close":
                stream.close()
        session.close()
        assert len(log) >= 190, "the request ended, and with it the wait"


def test_a_forked_process_is_told_that_the_stream_is_not_its_own():
    with chain(Double()).plan().load() as session:
        stream = session.stream([{"x": torch.ones(2)}] * 3)
        next(stream)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                next(stream)
            except InputError:
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert len(list(stream)) == 2
