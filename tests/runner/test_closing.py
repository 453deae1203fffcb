"""Closing never hangs (kind K5): from within a request, beside one, interrupted, in a forked process.

Who is in a request of the session, or is waited for by one, does not wait: the last request gives the devices back.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from orchestrator import InputError, StageError
from orchestrator.testing import recording
from tests.bodies import DEVICES, new
from tests.kit import Double, chain, host, linear, refuses, spec
from tests.runner.decoding import decoder, load, request
from tests.runner.gate import Gate, wait_until

pytestmark = pytest.mark.usefixtures("shared_store")

X = torch.ones(2)

everywhere = pytest.mark.parametrize("device", DEVICES)


def load_acting(act, device="cpu", *, is_holding=False):
    """A session whose host stage calls ``act(session)`` in its first request; and what its backends were told.

    Where it is holding, the request still has something to read on the device.
    """
    box = []

    def stage(x):
        if box:
            act(box.pop())
        return x + 1

    pipeline = new()
    value = pipeline.add("double", Double())(pipeline.input("x", spec(2)))
    result = host(pipeline, "act", stage, y=spec(2))(value)
    if is_holding:
        result = pipeline.add("most", lambda a, b: torch.maximum(a, b))(result, value)
    pipeline.output("y", result)
    session = load(pipeline, device, {})
    box.append(session)
    closed = []
    for backend in session._executable.backends.values():
        close = backend.close
        backend.close = lambda close=close: (closed.append(1), close())
    return session, closed


def in_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def in_pool(call):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(call).result()


def by_event(call):
    end_event = threading.Event()

    def act():
        call()
        end_event.set()

    threading.Thread(target=act).start()
    end_event.wait()


def by_two(call):
    in_thread(lambda: in_pool(call))


WAYS = [lambda call: call(), in_thread, in_pool, by_event, by_two]


def promptly(call, seconds=20.0):
    """Runs a call in a thread and returns what it gives; fails where it hangs."""
    results = []

    def run():
        try:
            results.append(call())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


@everywhere
@pytest.mark.parametrize("way", WAYS)
def test_a_stage_may_close_its_session_however_it_calls_that(device, way):
    session, closed = load_acting(lambda session: way(session.close), device)
    assert promptly(lambda: session(x=X))["y"].tolist() == [3.0, 3.0]
    assert len(closed) == len(session._executable.backends)
    refuses(InputError, "closed", lambda: session(x=X))
    session.close()
    assert len(closed) == len(session._executable.backends)


def test_a_listener_a_hook_an_observer_and_a_signal_handler_may_close():
    with load(decoder(), "cpu") as session:
        expected = session.run(request())
        result = promptly(lambda: session.run(request(), progress=lambda *_: session.close()))
        assert torch.equal(result["x"], expected["x"])
    module = linear(2, 2)
    session = chain(module).plan().load()
    hook = module.register_forward_hook(lambda *_: session.close())
    assert promptly(lambda: session(x=X))["y"].shape == (2,)
    hook.remove()
    session, closed = load_acting(lambda _: os.kill(os.getpid(), signal.SIGUSR1))
    before = signal.signal(signal.SIGUSR1, lambda *_: session.close())
    try:
        assert session(x=X)["y"].tolist() == [3.0, 3.0]
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert closed


def test_the_end_of_a_with_block_in_a_stage_and_two_sessions_that_close_one_another():
    def leave(session):
        with session:
            pass

    session, closed = load_acting(leave)
    promptly(lambda: session(x=X))
    assert closed
    meet = threading.Barrier(2)
    sessions = []

    def other(at):
        def act(_):
            meet.wait(10)
            sessions[1 - at][0].close()

        return act

    sessions += [load_acting(other(0)), load_acting(other(1))]
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(session, x=X) for session, _ in sessions]
        assert [item.result(20)["y"].tolist() for item in running] == [[3.0, 3.0]] * 2
    for session, closed in sessions:
        session.close()
        assert closed == [1]


def test_a_request_that_closes_leaves_the_devices_to_the_last_one_that_runs():
    gate = Gate()
    session = chain(gate.__call__).plan().load()
    closed, backend = [], next(iter(session._executable.backends.values()))
    backend.close = lambda: closed.append(gate.inside)
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(session, x=X)
        wait_until(lambda: gate.inside == 1)
        closing = pool.submit(session.close)
        time.sleep(0.5)
        assert not closing.done(), "nobody waits for the one that closes"
        gate.open.set()
        closing.result(10)
        assert running.result(10)["y"].tolist() == [2.0, 2.0]
    assert closed == [0]


def test_a_close_that_was_interrupted_goes_on_when_it_is_called_again():
    gate = Gate()
    session = chain(gate.__call__).plan().load()
    closed, backend = [], next(iter(session._executable.backends.values()))
    backend.close = lambda: closed.append(1)
    thread = threading.Thread(target=lambda: session(x=X))
    thread.start()
    wait_until(lambda: gate.inside == 1)

    def stop(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            session.close()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not closed
    refuses(InputError, "closed", lambda: session(x=X))
    gate.open.set()
    session.close()
    thread.join()
    session.close()
    assert closed == [1]


def test_a_device_that_fails_to_close_is_told_and_tried_again():
    session, closed = load_acting(lambda _: None)
    backend = next(iter(session._executable.backends.values()))
    works, backend.close = backend.close, lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        session.close()
    backend.close = works
    session.close()
    assert closed == [1]


@pytest.mark.parametrize("device", ["neuron", "null-compiled"])
@pytest.mark.parametrize("way", WAYS)
def test_a_request_that_would_wait_for_its_own_turn_is_refused_in_words(device, way):
    """On a device with one output buffer: in the same thread, in one that the stage waits for, in a stream."""
    for inner in (lambda session: session(x=X), lambda session: list(session.stream([{"x": X}] * 2))):
        errors = []

        def act(session, inner=inner, errors=errors):
            def call():
                try:
                    inner(session)
                except InputError as error:
                    errors.append(str(error))

            way(call)

        session, _ = load_acting(act, device, is_holding=True)
        with session:
            assert promptly(lambda session=session: session(x=X))["y"].tolist() == [3.0, 3.0]
        assert "one output buffer" in errors[0]


def test_a_stage_may_fork_and_the_child_may_close_and_run_requests():
    """The child has this thread alone; a request of another one, and what it held, are not there."""
    gate = Gate()
    beside = chain(gate.__call__).plan().load()
    thread = threading.Thread(target=lambda: beside(x=X))
    thread.start()
    wait_until(lambda: gate.inside == 1)

    def act(session):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                session.close()
                beside.close()
                with chain(Double()).plan().load() as other:
                    code = 0 if other(x=X)["y"].tolist() == [2.0, 2.0] else 2
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0

    session, closed = load_acting(act)
    assert promptly(lambda: session(x=X))["y"].tolist() == [3.0, 3.0]
    assert not closed
    session.close()
    gate.open.set()
    thread.join()
    beside.close()


def test_a_stage_that_raises_in_a_hook_is_told_and_the_next_request_works():
    module, angry = linear(2, 2), [True]

    def hook(*_):
        if angry:
            raise ValueError("in the hook")

    with chain(module).plan().load() as session:
        handle = module.register_forward_hook(hook)
        refuses(StageError, ("'a'", "in the hook"), lambda: session(x=X))
        angry.clear()
        assert torch.equal(session(x=X)["y"], module(X))
        handle.remove()


@pytest.mark.parametrize("device", ["cpu", "neuron"])
def test_a_session_that_nobody_holds_is_closed_at_once(device):
    """Without the cyclic collector: its modules, its devices, and what it generated."""
    gc.collect()
    gc.disable()
    try:
        with recording() as record:
            module = linear(2, 2)
            pipeline = new()
            pipeline.output("y", pipeline.add("a", module)(pipeline.input("x", spec(2))))
            session = load(pipeline, device, {})
            del pipeline
            session(x=X)
            session.run({"x": X}, keep_on_device="y")
            with session.trace():
                session(x=X)
            reference, weights = weakref.ref(session), weakref.ref(module)
            del session, module
            assert reference() is None
            assert weights() is None
            record.assert_no_leaks()
    finally:
        gc.enable()
