"""Outputs that stayed on a device, given to later requests: as by hand, without a way over the host, or refused."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from orchestrator import Dim, InputError, Pipeline, Session, StageError
from orchestrator.runner.device_inputs import with_device_inputs
from orchestrator.runner.device_values import _values
from orchestrator.testing import recording
from tests.bodies import DEVICES, new
from tests.kit import COMPUTE, Double, batch, host, refuses, spec
from tests.runner.test_rewritten_plans import check_steps, plan_on

pytestmark = pytest.mark.usefixtures("shared_store")

everywhere = pytest.mark.parametrize("device", DEVICES)
on_devices = pytest.mark.parametrize("device", [name for name in DEVICES if name != "cpu"])


def conversation() -> Pipeline:
    """A state and what is new go in; the state comes out anew, with a text that the host makes of the old one."""

    def step(state: torch.Tensor, more: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return state * 0.5 + more, (state - more).sum(1)

    pipeline = new("conversation")
    state = pipeline.input("state", spec(batch("batch"), 4, pad=0))
    more = pipeline.input("more", spec("batch", 4, pad=0))
    after, total = pipeline.add("step", step, outputs=("after", "total"))(state, more)
    pipeline.output("after", after)
    pipeline.output("total", total)
    return pipeline


def load(pipeline: Pipeline, device: str) -> Session:
    return plan_on(pipeline, device).load()


def values(seed: int, rows: int = 4) -> torch.Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))


def by_hand(count: int, rows: int = 4) -> torch.Tensor:
    state = values(0, rows)
    for turn in range(1, count + 1):
        state = state * 0.5 + values(turn, rows)
    return state


def talk(session: Session, count: int, rows: int = 4) -> Any:
    """Runs so many requests, each with the state that the one before it left on the device; returns the last state."""
    state: Any = values(0, rows)
    for turn in range(1, count + 1):
        request = {"state": state, "more": values(turn, rows)}
        state = session.run(request, keep_on_device=["after"])["after"]
    return state


@everywhere
def test_a_state_lives_on_from_request_to_request(device: str):
    with load(conversation(), device) as session:
        state = talk(session, 4)
        # What stays on the device is the caller's: it may be given as often as one likes.
        for _ in range(2):
            result = session(state=state, more=values(5))
            assert torch.equal(result["after"], by_hand(5))
            assert torch.equal(result["total"], (by_hand(4) - values(5)).sum(1))


@on_devices
def test_it_does_not_cross_the_link(device: str):
    with load(conversation(), device) as session:
        state = talk(session, 1)
        before = session.stats
        session(state=state, more=values(2))
        after = session.stats
        ranks = session.plan.groups[0].ranks
    assert after["uploads"] - before["uploads"] == ranks
    assert after["upload_bytes"] - before["upload_bytes"] == ranks * 4 * 4 * 4
    for name in ("uploads", "upload_bytes", "downloads", "download_bytes") if "measured" in after else ():
        (measured,) = after["measured"].values()
        assert measured[name] == after[name]


@everywhere
def test_a_size_that_is_no_bucket_is_padded_there_or_refused(device: str):
    with load(conversation(), device) as session:
        state = talk(session, 1, rows=3)
        if device in ("neuron", "null-compiled"):
            error = refuses(InputError, "batch=3", lambda: session(state=state, more=values(2, 3)))
            assert "Make it at batch=4" in str(error)
        else:
            assert torch.equal(session(state=state, more=values(2, 3))["after"], by_hand(2, 3))


@on_devices
def test_who_reads_it_on_the_host_gets_it_there(device: str):
    """The host reads the state itself, another output is the state, and a loop carries it."""
    inner = new("step")
    inner.output("x", inner.add("half", lambda x: x * 0.5)(inner.input("x", spec(4, 4))))
    pipeline = new("seen")
    state = pipeline.input("state", spec(4, 4))
    pipeline.output("text", host(pipeline, "say", lambda x: f"{x.sum():.4f}", text=str)(state))
    pipeline.output("same", state)
    pipeline.output("after", pipeline.loop("halve", inner, carry={"x": state}, max_steps=3))
    x = values(0)
    with load(pipeline, device) as session:
        kept = session.run({"state": x}, keep_on_device="after")["after"]
        for _ in range(2):
            result = session(state=kept)
            assert torch.equal(result["same"], x / 8)
            assert torch.equal(result["after"], x / 64)
            assert result["text"] == f"{(x / 8).sum():.4f}"


@pytest.mark.parametrize("device", ["null", "neuron"])
def test_a_narrower_dtype_is_what_the_device_holds(device: str):
    """Neuron holds int64 in 32 bits; the host reads 64 again."""
    pipeline = new("counter")
    count = pipeline.input("count", spec(2, dtype=torch.int64))
    pipeline.output("next", pipeline.add("add", lambda x: x + 1)(count))
    pipeline.output("seen", host(pipeline, "see", lambda x: x * 2, out=spec(2, dtype=torch.int64))(count))
    with load(pipeline, device) as session:
        count_on_device: Any = torch.tensor([1, 2])
        for turn in range(3):
            result = session.run({"count": count_on_device}, keep_on_device="next")
            assert result["seen"].tolist() == [2 * (1 + turn), 2 * (2 + turn)]
            assert result["seen"].dtype is torch.int64
            count_on_device = result["next"]


@on_devices
def test_the_rewritten_plan_is_sound(device: str):
    plan = plan_on(conversation(), device)
    memory = plan.groups[0].memory
    for names in (["state"], ["state", "more"]):
        rewritten = with_device_inputs(plan, dict.fromkeys(names, memory))
        check_steps(rewritten)
        uploads = [
            step
            for step in rewritten.steps
            if getattr(step, "adapter", None) and step.adapter.kind == "upload"
        ]
        assert len(uploads) == 2 - len(names)


@on_devices
def test_a_value_of_another_session_is_refused(device: str):
    with load(conversation(), device) as first:
        state = talk(first, 1)
        if device != "neuron":  # one device in a process
            with load(conversation(), device) as second:
                call = lambda: second(state=state, more=values(2))  # noqa: E731
                error = refuses(InputError, "is another one", call)
                assert "'after'" in str(error)
    with load(conversation(), device) as third:
        refuses(InputError, "was closed", lambda: third(state=state, more=values(2)))
    refuses(InputError, "closed", lambda: first(state=state, more=values(2)))


@on_devices
def test_shape_dtype_and_chunks_are_checked(device: str):
    pipeline = conversation()
    pipeline.output("wide", pipeline.add("widen", lambda x: x.repeat(1, 2))(pipeline.input("x", spec(4, 4))))
    pipeline.output("half", pipeline.add("halve", lambda x: x.half())(pipeline.input("y", spec(4, 4))))
    request = {name: values(0) for name in ("state", "more", "x", "y")}
    with load(pipeline, device) as session:
        kept = session.run(request, keep_on_device=("wide", "half", "after"))
        refuses(InputError, "dim 1 is 8, it takes 4", lambda: session.run({**request, "state": kept["wide"]}))
        refuses(InputError, "wrong dtype", lambda: session.run({**request, "state": kept["half"]}))
        odd = {**request, "more": values(1, 3)}
        refuses(InputError, "batch is", lambda: session.run({**odd, "state": kept["after"]}))
        missing = {"state": kept["after"], "more": values(1)}
        refuses(InputError, "lacks 'x'", lambda: session.run(missing))


@pytest.mark.parametrize("device", ["null"])
def test_a_request_in_chunks_takes_inputs_from_the_host(device: str):
    pipeline = new("chunks")
    size = Dim("n", (2, 4), batch=True)
    x = pipeline.input("x", spec(size, 4, pad=0))
    pipeline.output("y", pipeline.add("double", Double())(x))
    with pipeline.plan("null", options=COMPUTE).load() as session:
        kept = session.run({"x": values(0, 6)}, keep_on_device="y")["y"]
        refuses(InputError, "runs in chunks", lambda: session(x=kept))


def test_an_input_of_another_device_is_refused():
    pipeline = new("two")
    pipeline.output("a", pipeline.add("a", Double())(pipeline.input("x", spec(4, 4))))
    pipeline.output("b", pipeline.add("b", Double())(pipeline.input("y", spec(4, 4))))
    seen = pipeline.input("z", spec(4, 4))
    pipeline.output("c", host(pipeline, "c", lambda v: v + 1, out=spec(4, 4))(seen))
    plan = pipeline.plan(placement={"a": "null:0", "b": "null:1"}, options=COMPUTE)
    with plan.load() as session:
        request = {name: values(0) for name in "xyz"}
        kept = session.run(request, keep_on_device=("a", "b"))
        refuses(InputError, "read on 'null:1'", lambda: session.run({**request, "y": kept["a"]}))
        refuses(InputError, "read on 'host'", lambda: session.run({**request, "z": kept["a"]}))
        result = session.run({**request, "x": kept["a"], "y": kept["b"]})
    assert torch.equal(result["a"], values(0) * 4)
    assert torch.equal(result["b"], values(0) * 4)


@on_devices
def test_a_stage_that_fails_leaves_the_callers_value_alone(device: str):
    pipeline = conversation()
    calls: list[int] = []

    def fail(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("weak")
        return x

    other = pipeline.input("other", spec(4, 4))
    pipeline.output("seen", host(pipeline, "fail", fail, out=spec(4, 4))(other))
    with load(pipeline, device) as session:
        kept = session.run(
            {"state": values(0), "more": values(1), "other": values(2)}, keep_on_device="after"
        )
        request = {"state": kept["after"], "more": values(2), "other": values(2)}
        refuses(StageError, "weak", lambda: session.run(request))
        assert torch.equal(session.run(request)["after"], by_hand(2))


@pytest.mark.parametrize("device", ["null", "null-deferred"])
def test_nothing_but_what_the_caller_holds_is_left(device: str):
    with load(conversation(), device) as session:
        state = talk(session, 1)
        with recording() as record:
            session(state=state, more=values(2))
            session(state=state, more=values(2))
            record.assert_no_leaks()


@on_devices
def test_streams_take_and_leave_values_on_the_device(device: str):
    with load(conversation(), device) as session:
        state = talk(session, 1)
        requests = [{"state": state, "more": values(2)}] * 3
        for result in session.stream(requests):
            assert torch.equal(result["after"], by_hand(2))
        (result,) = session.stream(requests[:1], keep_on_device=["after"])
        assert torch.equal(session(state=result["after"], more=values(3))["after"], by_hand(3))


@on_devices
def test_iterations_are_handed_out_while_a_state_stays(device: str):
    inner = new("step")
    x = inner.add("half", lambda x: x * 0.5)(inner.input("x", spec(4, 4)))
    inner.output("x", x)
    pipeline = new("talk")
    state = pipeline.loop("decode", inner, carry={"x": pipeline.input("state", spec(4, 4))}, max_steps=3)
    pipeline.output("state", state)
    x0 = values(0)
    with load(pipeline, device) as session:
        given: Any = x0
        for turn in range(2):
            items = list(session.stream([{"state": given}], partial="decode.x", keep_on_device="state"))
            *steps, (_, name, given) = items
            assert name == "state"
            expected = [x0 * 0.5 ** (3 * turn + step) for step in (1, 2, 3)]
            assert all(torch.equal(value, one) for (_, _, value), one in zip(steps, expected, strict=True))


def test_what_is_known_of_a_value_goes_with_it():
    with load(conversation(), "neuron") as session:
        state = talk(session, 1)
        gc.collect()
        count = len(_values)
        del state
        gc.collect()
        assert len(_values) == count - 1
