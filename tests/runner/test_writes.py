"""A host stage that writes into its input is named; nobody else's value changes unnoticed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from orchestrator import Pipeline, StageError, TensorSpec

SPEC = TensorSpec((3,))


def through(function) -> Pipeline:
    pipeline = Pipeline("host")
    x = pipeline.input("x", SPEC)
    kept = pipeline.input("kept", SPEC)
    stage = pipeline.add("s", function, device="host", outputs={"output": SPEC})
    pipeline.output("y", stage(kept, x))
    return pipeline


def test_a_write_is_an_error_that_names_the_port_and_the_way_out():
    with through(lambda kept, x: x.add_(1)).plan().load() as session:
        with pytest.raises(StageError, match=r"wrote into its input 'x'.*x\.clone\(\)") as caught:
            session(x=torch.zeros(3), kept=torch.zeros(3))
        assert (caught.value.stage, caught.value.call, caught.value.port) == ("s", "s", "x")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_reading_and_making_new_values_is_fine(mode):
    with through(lambda kept, x: x.clone().add_(kept)).plan().load() as session, mode():
        for _ in range(2):
            assert torch.equal(session(x=torch.ones(3), kept=torch.ones(3))["y"], torch.full((3,), 2.0))


def test_a_view_that_is_written_counts_as_well():
    session = through(lambda kept, x: kept[1:].zero_().sum() + x).plan().load()
    with session, pytest.raises(StageError, match="'kept'"):
        session(x=torch.zeros(3), kept=torch.ones(3))


def test_a_write_into_a_tensor_of_a_list_counts_as_well():
    pipeline = Pipeline("host")
    values = pipeline.input("values", list)
    pipeline.output(
        "y",
        pipeline.add("s", lambda values: values[0].add_(1), device="host", outputs={"output": SPEC})(values),
    )
    mine = torch.zeros(3)
    with pipeline.plan().load() as session, pytest.raises(StageError, match="'values'"):
        session(values=[mine])
    assert not mine.any()


def _handed_on() -> tuple[Pipeline, Any]:
    """A branch without a stage of its own: what it hands on is what the caller gave."""
    body = Pipeline("body")
    body.output("o", body.input("i", SPEC))
    pipeline = Pipeline("p")
    x, runs = pipeline.input("x", SPEC), pipeline.input("runs", bool)
    return pipeline, pipeline.when("w", body, inputs={"i": x}, otherwise={"o": x}, condition=runs)


@pytest.mark.parametrize("runs", [True, False])
def test_the_callers_value_is_copied_for_a_writer_behind_a_branch_that_hands_it_on(runs: bool):
    """Kind: a body without steps is a body: what shares memory through it is told."""

    def scribble(x):
        x.numpy()[...] += 1
        return x

    pipeline, value = _handed_on()
    pipeline.output("y", pipeline.add("s", scribble, device="host", outputs={"output": SPEC})(value))
    with pipeline.plan().load() as session:
        given = torch.zeros(3)
        assert torch.equal(session(x=given, runs=runs)["y"], torch.ones(3))
        assert torch.equal(given, torch.zeros(3))
