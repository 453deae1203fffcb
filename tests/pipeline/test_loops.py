"""Drawing loops: what they return, what they do in the corners, and what is refused, in which words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from orchestrator import GraphError, Pipeline, StageError
from orchestrator.pipeline import Value
from orchestrator.testing import recording, run_reference
from tests.kit import COMPUTE, Double, host, new, refuses, spec


class Third(torch.nn.Module):
    """Fails in its third call, if it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = False
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.fails and self.calls == 3:
            raise ValueError("no third time")
        return x + 1


def step(**more: Any) -> Pipeline:
    """``x``, ``t`` and ``by``; gives ``x``, what it saw, and whether it is large."""
    body = new("step")
    x, t, by = body.input("x", spec(2)), body.input("t", spec()), body.input("by", spec(2))
    outputs = body.add(
        "add", lambda x, t, by: (x + t * by, x, (x > 9).all().reshape(1)), outputs=("x", "saw", "done")
    )
    for name, value in zip(("x", "saw", "done"), outputs(x, t, by), strict=True):
        body.output(name, value)
    return body


def with_body_in_loop(**changes: Any) -> tuple[Pipeline, Any]:
    """A pipeline with that body in a loop, and what the loop returned; ``changes`` replace its arguments."""
    pipeline = new()
    arguments: dict[str, Any] = {
        "carry": {"x": pipeline.input("x", spec(2))},
        "each": {"t": pipeline.input("times", spec(3))},
        "inputs": {"by": torch.ones(2)},
    }
    arguments |= {name: value(arguments) if callable(value) else value for name, value in changes.items()}
    body = arguments.pop("body", None) or step()
    return pipeline, pipeline.loop("loop", body, **arguments)


def results(pipeline: Pipeline, *values: Value, **inputs: torch.Tensor) -> dict[str, Any]:
    """What the values are, on the processor; on the null device, and by hand, they are the same."""
    for number, value in enumerate(values):
        pipeline.output(f"y{number}", value)
    inputs = {"x": torch.tensor([1.0, 2.0]), "times": torch.tensor([1.0, 10.0, 100.0]), **inputs}
    request = {name: inputs[name] for name in pipeline.freeze().inputs}
    with pipeline.plan().load() as session:
        on_cpu = session.run(request)
    with pipeline.plan("null", options=COMPUTE).load() as session:
        on_null = session.run(request)
    by_hand = run_reference(pipeline.freeze(), request)
    for name, value in on_cpu.items():
        assert torch.equal(value, on_null[name])
        assert torch.equal(value, by_hand[name])
    return {name: value.tolist() for name, value in on_cpu.items()}


def test_a_carry_goes_through_all_slices():
    pipeline, x = with_body_in_loop()
    assert results(pipeline, x) == {"y0": [112.0, 113.0]}


def test_by_default_a_loop_returns_what_it_collects():
    pipeline, saw = with_body_in_loop(collect=("saw",))
    assert results(pipeline, saw) == {"y0": [[1.0, 2.0], [2.0, 3.0], [12.0, 13.0]]}


def test_outputs_name_what_a_loop_returns():
    pipeline, (x, saw) = with_body_in_loop(collect=("saw", "x"), outputs=("x", "saw"))
    assert results(pipeline, x, saw)["y0"] == [112.0, 113.0]
    pipeline, parts = with_body_in_loop(collect=("x",), outputs=("x[]",))
    assert results(pipeline, parts)["y0"] == [[2.0, 3.0], [12.0, 13.0], [112.0, 113.0]]


def test_max_steps_and_until_end_a_loop_early():
    pipeline, x = with_body_in_loop(max_steps=2)
    assert results(pipeline, x) == {"y0": [12.0, 13.0]}
    pipeline, (x, saw) = with_body_in_loop(until="done", collect=("saw",), outputs=("x", "saw"))
    one = torch.tensor([10.0, 10.0])
    lists = results(pipeline, x, saw, x=one)
    assert lists == {"y0": [11.0, 11.0], "y1": [[10.0, 10.0]]}, "the iteration that says so counts"


def test_a_loop_that_is_checked_seldom_runs_on_and_cuts_what_it_collects():
    pipeline, (x, saw) = with_body_in_loop(
        until="done", check_every=2, collect=("saw",), outputs=("x", "saw")
    )
    lists = results(pipeline, x, saw, x=torch.tensor([10.0, 10.0]))
    assert lists == {"y0": [21.0, 21.0], "y1": [[10.0, 10.0]]}


def test_no_iteration_gives_the_start_and_nothing_collected():
    pipeline, (x, saw) = with_body_in_loop(max_steps=0, collect=("saw",), outputs=("x", "saw"))
    assert results(pipeline, x, saw) == {"y0": [1.0, 2.0], "y1": []}
    pipeline, (x, _) = with_body_in_loop(max_steps=0, until="done", collect=("saw",), outputs=("x", "saw"))
    assert results(pipeline, x) == {"y0": [1.0, 2.0]}


def test_carries_may_change_places():
    body = new("swap")
    a, b = body.input("a", spec(2)), body.input("b", spec(2))
    body.output("a", b)
    body.output("b", body.add("double", Double())(a))
    pipeline = new()
    x = pipeline.input("x", spec(2))
    a, b = pipeline.loop("loop", body, carry={"a": x, "b": torch.zeros(2)}, max_steps=3)
    assert results(pipeline, a, b) == {"y0": [0.0, 0.0], "y1": [4.0, 8.0]}


def test_python_values_are_carried_and_collected_on_the_host():
    body = new("words")
    text = body.input("text", str)
    longer = host(body, "longer", lambda text: (text + "!", len(text)), text=str, length=int)
    text, length = longer(text)
    body.output("text", text)
    body.output("length", length)
    pipeline = new()
    start = pipeline.input("text", str)
    arguments = {
        "carry": {"text": start},
        "max_steps": 3,
        "collect": ("length",),
        "outputs": ("text", "length"),
    }
    for name, value in zip(("text", "lengths"), pipeline.loop("loop", body, **arguments), strict=True):
        pipeline.output(name, value)
    with pipeline.plan().load() as session:
        assert session(text="no") == {"text": "no!!!", "lengths": [2, 3, 4]}
    assert run_reference(pipeline.freeze(), {"text": "no"}) == {"text": "no!!!", "lengths": [2, 3, 4]}


def test_a_named_number_of_slices_is_the_number_of_iterations():
    body = new("body")
    x, t = body.input("x", spec()), body.input("t", spec())
    body.output("x", body.add("add", lambda x, t: x + t)(x, t))
    pipeline = new()
    times = pipeline.input("times", spec("steps"))
    pipeline.output("y", pipeline.loop("loop", body, carry={"x": torch.zeros(())}, each={"t": times}))
    with pipeline.plan(sizes={"steps": 8}).load() as session:
        for count in (1, 5, 8):
            assert session(times=torch.ones(count))["y"] == count


FAULTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "a body that is no pipeline": (
        {"body": "step"},
        ("The body of loop 'loop' is a Pipeline with inputs and outputs of its own, not 'step'.",),
    ),
    "an unknown carry": (
        {"carry": lambda asked: {**asked["carry"], "y": torch.zeros(2)}},
        ("carry of 'loop' names 'y', which is no input of its body 'step' (x, t, by)",),
    ),
    "a carry that the body does not give": (
        {"carry": lambda asked: {**asked["carry"], "by": torch.zeros(2)}, "inputs": {}},
        ("carry of loop 'loop' names 'by', which is no output of its body 'step' (x, saw, done)",),
    ),
    "an unknown input": (
        {"inputs": lambda asked: {**asked["inputs"], "bye": torch.zeros(2)}},
        (
            "inputs of 'loop' names 'bye', which is no input of its body 'step' (x, t, by).",
            "Did you mean 'by'?",
        ),
    ),
    "an input fed twice": (
        {"inputs": lambda asked: {**asked["inputs"], "t": torch.zeros(())}},
        ("The port 'loop.t' is fed twice: by each and by inputs.",),
    ),
    "an input never fed": (
        {"inputs": {}},
        ("The input port 'loop.by' is never fed; name it in carry, each, inputs.",),
    ),
    "no end": (
        {"each": {}, "inputs": {"by": torch.ones(2), "t": torch.zeros(())}},
        ("Loop 'loop' has no end: give it each={...}, one slice for each iteration, or max_steps=.",),
    ),
    "until without an end": (
        {"each": {}, "inputs": {"by": torch.ones(2), "t": torch.zeros(())}, "until": "done"},
        ("Loop 'loop' has no end",),
    ),
    "nothing carried or collected": (
        {"carry": {}, "inputs": {"by": torch.ones(2), "x": torch.zeros(2)}},
        ("Loop 'loop' gives nothing: it has no carry and no collect.",),
    ),
    "an unknown until": (
        {"until": "don"},
        (
            "until of loop 'loop' names 'don', which is no output of its body 'step' (x, saw, done).",
            "'done'?",
        ),
    ),
    "an unknown collect": (
        {"collect": ("seen",)},
        ("collect of loop 'loop' names 'seen', which is no output",),
    ),
    "a collect named twice": ({"collect": ("x", "x")}, ("collect of 'loop' is a tuple of names, each once",)),
    "an unknown output": (
        {"outputs": ("saw",)},
        ("outputs of loop 'loop' names 'saw', which it neither carries nor collects.",),
    ),
    "no outputs": ({"outputs": ()}, ("outputs of loop 'loop' is empty; leave it out.",)),
    "a negative max_steps": (
        {"max_steps": -1},
        ("max_steps of loop 'loop' is an int of at least 0, not -1.",),
    ),
    "a max_steps that is no int": (
        {"max_steps": 2.0},
        ("max_steps of loop 'loop' is an int of at least 0, not 2.0.",),
    ),
    "a max_steps that is a bool": ({"max_steps": True}, ("not True.",)),
    "a check_every of zero": (
        {"check_every": 0},
        ("check_every of loop 'loop' is an int of at least 1, not 0.",),
    ),
    "a carry that is no dict": (
        {"carry": ("x",)},
        ("carry of 'loop' is a dict of port to value, not ('x',).",),
    ),
}


@pytest.mark.parametrize(("changes", "words"), FAULTS.values(), ids=FAULTS)
def test_what_is_no_loop_is_refused(changes: dict[str, Any], words: tuple[str, ...]):
    error = refuses(GraphError, words, lambda: with_body_in_loop(**changes))
    assert error.loop == "loop"


def test_a_name_is_taken_once():
    pipeline, _ = with_body_in_loop()
    refuses(GraphError, "has a stage 'loop' already", lambda: pipeline.add("loop", Double()))
    refuses(GraphError, "has a stage 'loop' already", lambda: pipeline.loop("loop", step(), max_steps=1))


@pytest.mark.parametrize("stranger", [False, True], ids=["a number missing", "a value of another pipeline"])
def test_what_is_refused_leaves_nothing_behind(stranger: bool):
    pipeline = new()
    x, times = pipeline.input("x", spec(2)), pipeline.input("times", spec(3))
    other = {"each": {"t": times}, "inputs": {"by": new("other").input("by", spec(2))}} if stranger else {}
    refuses(GraphError, "loop", lambda: pipeline.loop("loop", step(), carry={"x": x}, **other))
    loop = pipeline.loop("loop", step(), carry={"x": x}, each={"t": times}, inputs={"by": torch.ones(2)})
    assert results(pipeline, loop) == {"y0": [112.0, 113.0]}


def test_a_value_of_another_pipeline_is_refused():
    stranger = new("other").input("x", spec(2))
    refuses(
        GraphError, ("is of pipeline 'other'", "loop.x"), lambda: with_body_in_loop(carry={"x": stranger})
    )


def test_a_pipeline_cannot_be_its_own_body():
    pipeline = new()
    pipeline.output("x", pipeline.input("x", spec(2)))
    call: Callable[[], object] = lambda: pipeline.loop(  # noqa: E731
        "loop", pipeline, carry={"x": torch.zeros(2)}, max_steps=1
    )
    refuses(GraphError, "cannot contain itself", call)


@pytest.mark.parametrize("device", ["cpu", "null"])
def test_a_stage_that_fails_in_the_third_iteration_is_named_and_leaves_nothing(device: str):
    stage, body, pipeline = Third(), new("body"), new()
    body.output("x", body.add("third", stage)(body.input("x", spec(2))))
    start = pipeline.add("start", Double())(pipeline.input("x", spec(2)))
    pipeline.output("y", pipeline.loop("loop", body, carry={"x": start}, max_steps=5))
    options = COMPUTE if device == "null" else {}
    with pipeline.plan(device, options=options).load() as session, recording() as record:
        expected = session(x=torch.ones(2))["y"]
        before = session.stats
        stage.calls, stage.fails = 0, True
        error = refuses(
            StageError, ("Stage 'loop/third'", "ValueError: no third time"), lambda: session(x=torch.ones(2))
        )
        assert (error.stage, error.call) == ("loop/third", "loop/third")
        assert isinstance(error.__cause__, ValueError)
        assert session.stats == before
        record.assert_no_leaks()
        stage.fails = False
        assert torch.equal(session(x=torch.ones(2))["y"], expected)
        record.assert_no_leaks()
