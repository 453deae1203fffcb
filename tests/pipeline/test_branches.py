"""Optional inputs and branches: what runs for which request, in loops and in each other, and what is refused."""

from __future__ import annotations

import pytest
import torch

from orchestrator import Pipeline
from tests.bodies import (
    BOOL,
    DEVICES,
    IMAGE,
    ROWS,
    SIZES,
    Halve,
    body,
    check,
    new,
    picture_model,
    picture_or_ones,
    requests,
)
from tests.kit import Double, batch, host, linear, spec

pytestmark = pytest.mark.usefixtures("shared_store")

everywhere = pytest.mark.parametrize("device", DEVICES)


@everywhere
@pytest.mark.parametrize("fuses", [True, False])
def test_a_request_may_leave_an_optional_input_out(device: str, fuses: bool):
    check(picture_model(fuses=fuses), requests(4, 3, 1), device, SIZES)


@everywhere
def test_a_branch_runs_in_every_chunk_or_in_none(device: str):
    check(picture_model(), requests(9), device, SIZES)


@everywhere
def test_a_condition_is_asked_besides(device: str):
    looks = [one for look in (True, False) for one in requests(4, 3, look=torch.tensor([look]))]
    check(picture_model(condition=True), looks, device, SIZES)


def test_what_a_branch_costs_is_foretold_and_counted():
    pipeline = picture_model()
    plan = pipeline.plan("null", sizes=SIZES, options={"compute": True})
    assert plan.summary["dispatches"] == 2
    with plan.load() as session:
        session(text=torch.ones(4, 4), image=torch.ones(4, 6))
        assert session.stats == {"requests": 1, **plan.summary}
        session(text=torch.ones(4, 4))
        assert session.stats["dispatches"] == 3
        assert session.stats["uploads"] == 3, "what the branch alone reads is not put on the device"


def with_own_condition(*, on_device: bool) -> Pipeline:
    """A condition that a stage finds: on the device, or on the host."""
    pipeline = new()
    text = pipeline.input("text", spec(batch("batch"), 4, pad="repeat_first"))
    twice = pipeline.add("double", Double())(text)
    large = lambda x: (x.amax() > 2).reshape(1)  # noqa: E731
    condition = (
        pipeline.add("large", large)(twice) if on_device else host(pipeline, "large", large, yes=BOOL)(twice)
    )
    inner = body(lambda x: x * 0.5 + 1, output="f", v=spec("batch", 4))
    result = pipeline.when("shrink", inner, inputs={"v": twice}, otherwise={"f": twice}, condition=condition)
    pipeline.output("y", pipeline.add("after", Double())(result))
    pipeline.output("doubled", twice)
    return pipeline


@everywhere
@pytest.mark.parametrize("on_device", [True, False])
def test_a_stage_may_find_the_condition(device: str, on_device: bool):
    texts = [{"text": torch.full((count, 4), size)} for count in (4, 3) for size in (0.1, 3.0)]
    check(with_own_condition(on_device=on_device), texts, device, SIZES)


def two_readers() -> Pipeline:
    """One optional input that two branches read, each with several outputs, one of them handed through."""
    pipeline = new()
    image, text = (
        pipeline.input("image", IMAGE, optional=True),
        pipeline.input("text", spec(batch("batch"), 6)),
    )
    for name in ("one", "two"):
        inner = new("inner")
        x, y = inner.input("x", spec(batch("batch"), 6)), inner.input("y", spec(batch("batch"), 6))
        inner.output("sum", inner.add("sum", lambda x, y: x + y)(x, y))
        inner.output("same", x)
        inner.output("other", y)
        results = pipeline.when(
            name, inner, inputs={"x": image, "y": text}, otherwise={"sum": text, "same": text, "other": text}
        )
        pipeline.output(f"{name} sum", pipeline.add(f"{name} double", Double())(results["sum"]))
        pipeline.output(f"{name} same", results["same"])
        pipeline.output(f"{name} other", results["other"])
    return pipeline


@everywhere
def test_two_branches_may_read_one_optional_input(device: str):
    texts = [{**one, "text": torch.randn(4, 6)} for one in requests(4)]
    check(two_readers(), texts, device, {"batch": 4})


def both() -> Pipeline:
    pipeline = new()
    inputs = {name: pipeline.input(name, spec(2, 4), optional=True) for name in ("x", "y")}
    inner = body(lambda x, y: x + y, output="f", x=spec(2, 4), y=spec(2, 4))
    pipeline.output("f", pipeline.when("add", inner, inputs=inputs, otherwise={"f": torch.zeros(2, 4)}))
    return pipeline


@everywhere
def test_a_branch_of_two_optional_inputs_takes_both(device: str):
    x, y = torch.randn(2, 4), torch.randn(2, 4)
    check(both(), [{}, {"x": x}, {"y": y}, {"x": x, "y": y}, {"x": None}], device)


def own_dim() -> Pipeline:
    """A picture of some number of patches, a size that nothing else has."""
    inner = body(lambda x: x.sum(0, keepdim=True), output="f", image=spec("patches", 6))
    pipeline = new()
    image = pipeline.input("image", spec("patches", 6, pad=0), optional=True)
    text = pipeline.input("text", spec(1, 6))
    result = pipeline.when("see", inner, inputs={"image": image}, otherwise={"f": text})
    pipeline.output("y", pipeline.add("double", Double())(result))
    return pipeline


@everywhere
def test_an_optional_input_may_have_a_dim_of_its_own(device: str):
    text = torch.randn(1, 6)
    pictures = [{"text": text}, *({"text": text, "image": torch.randn(count, 6)} for count in (4, 3, 1))]
    check(own_dim(), pictures, device, {"patches": (2, 4)})


def branch_in_branch(*, by_condition: bool) -> Pipeline:
    """A branch in a branch, by a condition or by the input that the outer one hangs on already."""
    negate = body(lambda x: -x, output="z", v=spec("batch", 6))
    outer = new("outer")
    x, text = outer.input("x", spec(batch("batch"), 6), optional=not by_condition), outer.input("text", IMAGE)
    more = {"condition": outer.input("look", BOOL)} if by_condition else {}
    result = outer.when("negate", negate, inputs={"v": x}, otherwise={"z": text}, **more)
    outer.output("f", outer.add("double", Double())(result))
    pipeline = new()
    text = pipeline.input("text", IMAGE)
    inputs = {"x": pipeline.input("image", IMAGE, optional=True), "text": text}
    inputs |= {"look": pipeline.input("look", BOOL)} if by_condition else {}
    pipeline.output("y", pipeline.when("see", outer, inputs=inputs, otherwise={"f": text}))
    return pipeline


@everywhere
@pytest.mark.parametrize("by_condition", [True, False])
def test_a_branch_in_a_branch(device: str, by_condition: bool):
    looks = (True, False) if by_condition else (None,)
    images = []
    for look in looks:
        more = {} if look is None else {"look": torch.tensor([look])}
        images += [{**one, "text": torch.randn(3, 6)} for one in requests(3, **more)]
    check(branch_in_branch(by_condition=by_condition), images, device, SIZES)


def in_loop(*, condition: bool) -> Pipeline:
    """A branch in each iteration: an optional input that is the same in all, or a condition of each."""
    inner = body(
        lambda x, image: x * 0.5 + image[:, :4], output="f", x=spec("batch", 4), image=spec("batch", 6)
    )
    step = new("step")
    x, image = (
        step.input("x", spec(batch("batch"), 4)),
        step.input("image", spec(batch("batch"), 6), optional=True),
    )
    more = {"condition": step.input("look", BOOL)} if condition else {}
    result = step.when("see", inner, inputs={"x": x, "image": image}, otherwise={"f": x}, **more)
    step.output("x", step.add("squash", torch.nn.Tanh())(result))
    pipeline = new()
    carry = {"x": pipeline.input("text", ROWS)}
    inputs = {"image": pipeline.input("image", IMAGE, optional=True)}
    each = {"look": pipeline.input("looks", spec("steps", 1, dtype=torch.bool))} if condition else {}
    steps = {} if condition else {"max_steps": 3}
    pipeline.output("x", pipeline.loop("loop", step, carry=carry, inputs=inputs, each=each, **steps))
    return pipeline


@everywhere
@pytest.mark.parametrize("condition", [True, False])
def test_a_branch_in_a_loop(device: str, condition: bool):
    looks = {"looks": torch.tensor([[True], [False], [True]])} if condition else {}
    sizes = {**SIZES, "steps": 8} if condition else SIZES
    check(in_loop(condition=condition), requests(4, 3, **looks), device, sizes)


def with_loop() -> Pipeline:
    """A loop in a branch, which decides how often it runs."""
    step = new("step")
    half, is_last = step.add("halve", Halve(), outputs=("x", "done"))(
        step.input("x", spec(batch("batch"), 6))
    )
    step.output("x", half)
    step.output("done", is_last)
    inner = new("inner")
    start = inner.input("image", spec(batch("batch"), 6))
    inner.output("f", inner.loop("loop", step, carry={"x": start}, until="done", max_steps=9))
    pipeline = new()
    image = pipeline.input("image", spec(batch("batch"), 6, pad="repeat_first"), optional=True)
    text = pipeline.input("text", IMAGE)
    pipeline.output("y", pipeline.when("see", inner, inputs={"image": image}, otherwise={"f": text}))
    return pipeline


@everywhere
def test_a_loop_in_a_branch(device: str):
    check(with_loop(), [{**one, "text": torch.randn(3, 6)} for one in requests(3)], device, SIZES)


def in_region() -> Pipeline:
    pipeline = new()
    rows = host(pipeline, "find", lambda x: x[x[:, 0] > 0], rows=spec(batch("rows", (2, 4)), 3, pad=0))(
        pipeline.input("x", spec(9, 3))
    )
    twice = pipeline.add("double", Double())(rows)
    inner = body(linear(3, 3), output="f", v=spec("rows", 3))
    look = pipeline.input("look", BOOL)
    result = pipeline.when("see", inner, inputs={"v": twice}, otherwise={"f": twice}, condition=look)
    pipeline.output("y", pipeline.add("after", Double())(result))
    return pipeline


@everywhere
def test_a_branch_over_items_that_a_stage_found(device: str):
    items = []
    for count in (4, 3, 0, 7, 1):
        x = -torch.ones(9, 3)
        x[:count] = torch.rand(count, 3) + 0.1
        items += [{"x": x, "look": torch.tensor([look])} for look in (True, False)]
    check(in_region(), items, device)


@pytest.mark.parametrize("device", ["cpu", "neuron"])
def test_python_values_may_be_optional_and_chosen(device: str):
    inner = new("inner")
    inner.output("o", host(inner, "up", lambda word: word.upper(), o=str)(inner.input("word", str)))
    pipeline = new()
    word = pipeline.input("word", str, optional=True)
    pipeline.output("o", pipeline.when("say", inner, inputs={"word": word}, otherwise={"o": "nothing"}))
    check(pipeline, [{}, {"word": "yes"}, {"word": None}, {"word": ""}], device)


@everywhere
def test_a_constant_stands_in_for_rows_where_there_is_one_number_of_them(device: str):
    check(picture_or_ones(), requests(4), device, {"batch": 4})
