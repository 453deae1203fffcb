"""A session is called from several threads at once, and closes when they are done."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from orchestrator import Dim, InputError, StageError
from tests.kit import COMPUTE, Double, batch, chain, host, linear, new, pair, refuses, spec
from tests.runner.gate import Gate, wait_until

SIZES = (1, 2, 3, 4, 5, 8, 9, 13)


def crowd(session, ask, check, threads: int = 8, each: int = 50) -> list[int]:
    """Runs requests of changing sizes from many threads at once; returns the sizes that were asked for."""
    start = threading.Barrier(threads)

    def work(seed: int) -> list[int]:
        start.wait()
        requests = []
        for index in range(each):
            size = SIZES[(seed * 3 + index) % len(SIZES)]
            request = ask(size)
            check(request, session(**request))
            requests.append(size)
        return requests

    with ThreadPoolExecutor(threads) as pool:
        return [size for part in pool.map(work, range(threads)) for size in part]


def exact(plan, session, requests, name) -> None:
    """Statistics are the sum of what each request was said to cost."""
    total = session.stats
    assert total["requests"] == len(requests)
    each = [plan.summary_for({name: size}) for size in requests]
    for key in ("uploads", "upload_bytes", "downloads", "download_bytes", "dispatches"):
        assert total[key] == sum(counts[key] for counts in each), key
    for device, peak in total["peak_bytes"].items():
        assert peak == max(counts["peak_bytes"][device] for counts in each)


@pytest.mark.parametrize("device", ["cpu", "null"])
def test_eight_threads_get_their_own_results_and_exact_counts(device: str):
    pipeline, vision, fusion = pair()
    plan = pipeline.plan(device, sizes={"batch": (2, 4)}, options=COMPUTE if device == "null" else None)

    def check(request, result):
        expected = fusion(torch.cat([vision(request["image"]), request["text"]], 1))
        assert torch.allclose(result["logits"], expected, atol=1e-5)

    with torch.no_grad(), plan.load() as session:
        requests = crowd(session, lambda n: {"image": torch.randn(n, 8), "text": torch.randn(n, 4)}, check)
        assert len(requests) == 400
        exact(plan, session, requests, "batch")


def test_threads_that_decide_sizes_on_the_way():
    pipeline = new()
    crops = host(
        pipeline, "find", lambda x: x.repeat(2, 1)[1:], crops=spec(Dim("n", (2, 4), batch=True), 3, pad=0)
    )
    pipeline.output("y", pipeline.add("d", Double())(crops(pipeline.input("x", spec(Dim.dynamic("k"), 3)))))
    plan = pipeline.plan()

    def check(request, result):
        assert torch.equal(result["y"], request["x"].repeat(2, 1)[1:] * 2)

    with plan.load() as session:
        requests = crowd(session, lambda n: {"x": torch.randn(n, 3)}, check, each=25)
        total = session.stats
    assert total["requests"] == len(requests)
    assert total["dispatches"] == sum(
        plan.summary_for({"n": 2 * n - 1, "k": n})["dispatches"] for n in requests
    )


def test_devices_with_one_output_buffer_take_turns():
    together, most, lock = [0], [0], threading.Lock()

    def slow(x):
        if type(x) is torch.Tensor:
            with lock:
                together[0] += 1
                most[0] = max(most[0], together[0])
            time.sleep(0.001)
            with lock:
                together[0] -= 1
        return x * 2

    options = {**COMPUTE, "output_buffers": 1}
    with (
        chain(slow, takes=spec(batch("n"), pad=0))
        .plan("null", sizes={"n": 4}, options=options)
        .load() as session
    ):
        crowd(session, lambda n: {"x": torch.ones(n)}, lambda request, result: None, each=5)
    assert most == [1]


def test_a_crowd_of_failures_does_no_harm():
    def picky(x):
        if type(x) is torch.Tensor and bool(x[0] < 0):
            raise ValueError("no")
        return x * 2

    with chain(picky, takes=spec(batch("n"), pad=0)).plan(sizes={"n": (2, 4)}).load() as session:

        def work(seed):
            for index in range(40):
                sign = -1 if (seed + index) % 3 == 0 else 1
                x = sign * torch.full((1 + index % 6,), float(seed + 1))
                if sign < 0:
                    refuses(StageError, "no", lambda x=x: session(x=x))
                else:
                    assert torch.equal(session(x=x)["y"], x * 2)
            return 40 - sum((seed + index) % 3 == 0 for index in range(40))

        with ThreadPoolExecutor(8) as pool:
            total = sum(pool.map(work, range(8)))
        assert session.stats["requests"] == total


def test_close_waits_for_running_requests_and_refuses_new_ones():
    gate = Gate()
    session = chain(gate.__call__, takes=spec(2)).plan().load()
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(session, x=torch.ones(2)) for _ in range(2)]
        wait_until(lambda: gate.inside == 2)
        closing = pool.submit(session.close)
        wait_until(lambda: "closed" in repr(session))
        assert not closing.done()
        refuses(InputError, "closed", lambda: session(x=torch.ones(2)))  # a request while closing
        gate.open.set()
        assert [item.result(10)["y"].tolist() for item in running] == [[2.0, 2.0]] * 2
        closing.result(10)
    assert session.stats["requests"] == 2


def test_a_closed_session_says_so_to_everything():
    session = pair()[0].plan(sizes={"batch": 2}).load()
    request = {"image": torch.ones(2, 8), "text": torch.ones(2, 4)}
    session.run(request)
    output = session.run(request, keep_on_device="logits")
    stream = session.stream([request, request])
    session.close()
    session.close()
    for call in (
        lambda: session(**request),
        lambda: session.run(request),
        lambda: session.run(request, keep_on_device=["logits"]),
        lambda: session.stream([request]),
        lambda: next(stream),
        lambda: session(wrong=1),
    ):
        error = refuses(InputError, ("'pair'", "closed", "load the plan again"), call)
        assert error.session is session
    assert session.stats["requests"] == 2
    assert output["logits"].shape == (2, 5)


def test_a_with_block_closes():
    with chain(Double()).plan().load() as session:
        session(x=torch.ones(2))
    refuses(InputError, "closed", lambda: session(x=torch.ones(2)))
    with pytest.raises(RuntimeError, match="mine"), chain(Double()).plan().load() as session:
        raise RuntimeError("mine")
    refuses(InputError, "closed", lambda: session(x=torch.ones(2)))


def test_closing_gives_the_devices_back():
    plan = chain(linear(2, 2), takes=spec(2, 2)).plan("null", options=COMPUTE)
    one, two = plan.load(), plan.load()
    one.close()
    assert two(x=torch.ones(2, 2))["y"].shape == (2, 2)
    two.close()


@pytest.mark.parametrize("size", [4, 3, 9])
def test_no_stage_runs_once_close_has_returned(size: int):
    closed, late = threading.Event(), []

    def look(x):
        if closed.is_set():
            late.append(1)
        return x * 2

    plan = chain(look, takes=spec(batch("n"), pad=0)).plan(sizes={"n": (2, 4)})
    for _ in range(15):
        session = plan.load()
        closed.clear()
        start = threading.Barrier(5)

        def work(session=session, start=start):
            start.wait()
            total = 0
            while True:
                try:
                    session(x=torch.ones(size))
                except InputError:
                    return total
                total += 1

        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(work) for _ in range(4)]
            start.wait()
            time.sleep(0.003)
            session.close()
            closed.set()
            total = sum(item.result(10) for item in running)
        assert session.stats["requests"] == total
    assert late == []
