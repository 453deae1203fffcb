"""What is ready before a loop comes before it, where values are taken as they come."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from orchestrator.testing import assert_same, recording
from tests.bodies import DEVICES, new
from tests.kit import Double, batch, host, spec
from tests.runner.decoding import load, request, together

everywhere = pytest.mark.parametrize("device", DEVICES)


def prompted(*, text: bool = True) -> Any:
    """Two loops; two tensors, and a text, are ready before the first of them, one more tensor before the second."""
    inner = new("step")
    inner.output("x", inner.add("half", lambda x: x * 0.5)(inner.input("x", spec(batch("batch"), 4))))
    pipeline = new("prompted")
    start = pipeline.input("start", spec(batch("batch"), 4, pad=0))
    first = pipeline.add("first", Double())(start)
    pipeline.output("first", first)
    pipeline.output("start", start)
    if text:
        pipeline.output("text", host(pipeline, "say", lambda x: f"{len(x)} rows", text=str)(start))
    x = pipeline.loop("one", inner, carry={"x": first}, max_steps=2)
    pipeline.output("between", x)
    pipeline.output(
        "steps", pipeline.loop("two", inner, carry={"x": x}, max_steps=2, collect=("x",), outputs="x[]")
    )
    return pipeline


@everywhere
@pytest.mark.parametrize("rows", [4, 3])
def test_outputs_that_are_ready_before_a_loop_come_before_it(device: str, rows: int):
    """Each comes once, and what is done to it then changes nothing of what follows."""
    with load(prompted(), device) as session:
        expected = session.run(request(rows))
        with recording() as record:
            items = []
            for _, name, value in session.stream([request(rows)], partial=("one.x", "steps")):
                items.append((name, value if isinstance(value, str) else value.clone()))
                if name in ("first", "start", "between"):
                    value.zero_()
            record.assert_no_leaks()
    early = ["first", "start", "text"]
    assert [name for name, _ in items] == [*early, "one.x", "one.x", "between", "steps", "steps"]
    for name in (*early, "between"):
        (value,) = (value for other, value in items if other == name)
        assert value == expected[name] if name == "text" else torch.equal(value, expected[name]), name
    steps = [value for name, value in items if name == "steps"]
    assert torch.equal(torch.stack(steps), expected["steps"])


class Grow(torch.nn.Module):
    """Gives one value more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 + 1


def grown(most: int = 2) -> Any:
    """What a loop starts with is made as its iterations make it; a second loop goes on from there."""
    stage, pipeline = Grow(), new("grown")
    x = pipeline.add("first", stage)(pipeline.input("start", spec(batch("batch"), 4, pad=0)))
    for name in ("one", "two"):
        inner = new("step")
        inner.output("x", inner.add("more", stage)(inner.input("x", spec(batch("batch"), 4))))
        x = pipeline.loop(name, inner, carry={"x": x}, max_steps=most)
    pipeline.output("y", x)
    return pipeline


@everywhere
@pytest.mark.parametrize("rows", [4, 3, 6])
def test_what_a_loop_starts_with_comes_first_where_it_is_one_of_its_values(device: str, rows: int):
    """A name without a loop is that of all loops: each value comes once, in order, at the size of the request."""
    x, expected = request(rows)["start"], []
    for _ in range(5):
        x = x * 2 + 1
        expected.append(x)
    with load(grown(), device) as session, recording() as record:
        (streams,) = together(session.stream([request(rows)], partial=("x", "one.x", "two.x")))
        record.assert_no_leaks()
    if rows > 4:  # chunks of four and two rows
        expected = [part for some in (slice(4), slice(4, None)) for part in [one[some] for one in expected]]
    assert_same(torch.cat(streams["x"]), torch.cat(expected), exact=False)
    counts = {name: len(values) for name, values in streams.items()}
    chunks = -(-rows // 4)
    assert counts == {"x": 5 * chunks, "one.x": 3 * chunks, "two.x": 2 * chunks, "y": 1}


def test_outputs_of_a_request_in_chunks_come_whole_at_the_end():
    with load(prompted(text=False), "cpu") as session:
        expected = session.run(request(6))
        items = [(name, value) for _, name, value in session.stream([request(6)], partial=("steps",))]
    assert [name for name, _ in items] == ["steps"] * 4 + ["first", "start", "between"]
    assert torch.equal(dict(items)["first"], expected["first"])


def test_a_request_is_cancelled_before_its_loop():
    with load(prompted(), "cpu") as session:
        with session.stream([request()], partial=("steps",)) as stream:
            assert next(stream)[1] == "first"
        assert torch.equal(session.run(request())["first"], 2 * request()["start"])
