"""Pipelines with optional inputs as parts of others: fed with what may be missing, with what is there, or not."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator import Pipeline
from orchestrator.plan.steps import LoopLikeStep, iter_steps
from tests.bodies import DEVICES, IMAGE, ROWS, SIZES, check, new, requests, seeing
from tests.kit import Double, linear, spec

pytestmark = pytest.mark.usefixtures("shared_store")

everywhere = pytest.mark.parametrize("device", DEVICES)


def part() -> Pipeline:
    inner = new("part")
    image, text = inner.input("image", spec("batch", 6), optional=True), inner.input("text", ROWS)
    result = inner.when("see", seeing(), inputs={"image": image}, otherwise={"f": text})
    inner.output("f", inner.add("double", Double())(result))
    return inner


def feed(pipeline: Pipeline, how: str) -> dict[str, Any]:
    """What a pipeline that has an optional input is fed with."""
    text = pipeline.input("text", ROWS)
    if how == "left out":
        return {"text": text}
    if how == "made":
        return {"text": text, "image": pipeline.add("make", linear(4, 6))(text)}
    return {"text": text, "image": pipeline.input("image", IMAGE, optional=how == "optional")}


@everywhere
@pytest.mark.parametrize("how", ["optional", "given", "made", "left out"])
def test_an_inlined_pipeline_may_have_optional_inputs(device: str, how: str):
    pipeline = new()
    handle = pipeline.add("part", part())
    pipeline.output("f", handle(**feed(pipeline, how)))
    cases = requests(4, 3)
    cases = {"optional": cases, "given": cases[::3]}.get(how, [{"text": one["text"]} for one in cases])
    plan = check(pipeline, cases, device, SIZES)
    branches = list(iter_steps(plan.steps, LoopLikeStep))
    assert len(branches) == (how == "optional"), "a branch that all requests run, or none, is none"


@everywhere
@pytest.mark.parametrize("how", ["optional", "given", "left out"])
def test_a_loop_may_have_a_body_with_optional_inputs(device: str, how: str):
    step = new("step")
    image, x = step.input("image", spec("batch", 6), optional=True), step.input("x", spec("batch", 4))
    result = step.when("see", seeing(), inputs={"image": image}, otherwise={"f": x})
    step.output("x", step.add("sum", lambda a, b: (a + b) / 2)(result, x))
    pipeline = new()
    inputs = feed(pipeline, how)
    inputs["x"] = inputs.pop("text")
    carry = {"x": inputs.pop("x")}
    pipeline.output("x", pipeline.loop("loop", step, carry=carry, inputs=inputs, max_steps=2))
    cases = requests(3)
    cases = {"optional": cases, "given": cases[:1]}.get(how, [{"text": one["text"]} for one in cases])
    check(pipeline, cases, device, SIZES)


@everywhere
def test_a_part_is_inlined_with_and_without_its_picture(device: str):
    pipeline = new()
    handle = pipeline.add("part", part())
    text = pipeline.input("text", ROWS)
    pipeline.output("without", handle(text=text))
    pipeline.output("perhaps", handle(pipeline.input("image", IMAGE, optional=True), text))
    pipeline.output("with", handle(pipeline.add("make", linear(4, 6))(text), text))
    check(pipeline, requests(3), device, SIZES)
