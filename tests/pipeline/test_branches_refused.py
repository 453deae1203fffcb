"""Branches and optional inputs that are refused, and in which words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from orchestrator import GraphError, InputError, PlanError
from tests.bodies import IMAGE, ROWS, SIZES, body, new, picture_model, picture_or_ones, seeing
from tests.kit import Double, linear, refuses, spec


def add_branch(**changes: Any) -> Callable[[], Any]:
    """Draws a branch; ``changes`` replace its arguments."""

    def draw() -> Any:
        pipeline = new()
        image, text = pipeline.input("image", IMAGE, optional=True), pipeline.input("text", ROWS)
        own: dict[str, Any] = {"inputs": {"image": image}, "otherwise": {"f": text}, "body": seeing()}
        own |= {name: value(pipeline, image, text) for name, value in changes.items()}
        return pipeline.when("see", own.pop("body"), **own)

    return draw


FAULTS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "a body that is no pipeline": (
        add_branch(body=lambda *_: Double()),
        ("The body of branch 'see' is a Pipeline with inputs and outputs of its own, not",),
    ),
    "an unknown input": (
        add_branch(inputs=lambda _, image, __: {"imagine": image}),
        ("inputs of 'see' names 'imagine', which is no input of its body 'seeing' (image).", "'image'?"),
    ),
    "an input never fed": (
        add_branch(inputs=lambda *_: {}),
        ("The input port 'see.image' is never fed; name it in inputs.",),
    ),
    "an unknown output": (
        add_branch(otherwise=lambda _, __, text: {"g": text}),
        ("otherwise of branch 'see' names 'g', which is no output of its body 'seeing'.", "'f'"),
    ),
    "no output": (
        add_branch(otherwise=lambda *_: {}),
        ("Branch 'see' gives nothing: otherwise names no output.",),
    ),
    "nothing that decides": (
        add_branch(inputs=lambda pipeline, _, text: {"image": text}),
        (
            "Nothing decides whether branch 'see' runs: none of its inputs is optional, and there is no condition=.",
        ),
    ),
    "an input that is no dict": (
        add_branch(inputs=lambda *_: ("image",)),
        ("inputs of 'see' is a dict of port to value, not ('image',).",),
    ),
}


@pytest.mark.parametrize(("draw", "words"), FAULTS.values(), ids=FAULTS)
def test_what_is_no_branch_is_refused(draw: Callable[[], Any], words: tuple[str, ...]):
    refuses(GraphError, words, draw)


def test_an_optional_input_is_read_in_branches_alone():
    pipeline = new()
    pipeline.output("y", pipeline.add("double", Double())(pipeline.input("x", spec(2), optional=True)))
    words = ("Input 'x' is optional, but 'double.x' reads it in every request.", "pipeline.when(")
    error = refuses(GraphError, words, pipeline.validate)
    assert (error.input, error.port) == ("x", "double.x")
    pipeline = new()
    pipeline.output("y", pipeline.input("x", spec(2), optional=True))
    refuses(GraphError, "Input 'x' is optional, but 'y' reads it in every request.", pipeline.validate)
    pipeline = new()
    image = pipeline.input("image", spec(2, 6), optional=True)
    other = pipeline.input("other", spec(2, 4), optional=True)
    inner = body(linear(6, 4), output="f", image=spec(2, 6))
    pipeline.output("y", pipeline.when("see", inner, inputs={"image": image}, otherwise={"f": other}))
    refuses(GraphError, "Input 'other' is optional, but 'see.f' reads it", pipeline.validate)


def test_a_branch_gives_one_form():
    pipeline = new()
    image, text = pipeline.input("image", IMAGE, optional=True), pipeline.input("text", spec("batch", 3))
    pipeline.output("y", pipeline.when("see", seeing(), inputs={"image": image}, otherwise={"f": text}))
    words = (
        "A branch gives one form, but 'f' of 'see' is [batch, 4] float32 from 'see/stage.output' and otherwise "
        "[batch, 3] float32.",
    )
    error = refuses(PlanError, words, lambda: pipeline.plan(sizes={"batch": 2}))
    assert (error.loop, error.port) == ("see", "f")
    for size in (2, (2, 4)):
        refuses(
            PlanError,
            "otherwise [4, 4] float32",
            lambda size=size: picture_or_ones().plan(sizes={"batch": size}),
        )


def test_a_constant_has_all_its_rows_where_smaller_requests_are_padded():
    """Kind: a size that equals a dim at its one bucket is taken for the dim at every size of a request."""
    refuses(PlanError, "otherwise [4, 4] float32", lambda: picture_or_ones(pad=0).plan(sizes={"batch": 4}))


def test_a_branch_gives_no_dim_that_a_missing_input_sizes():
    inner = body(Double(), output="f", image=spec("patches", 6))
    pipeline = new()
    image = pipeline.input("image", spec("patches", 6, pad=0), optional=True)
    branches = {"inputs": {"image": image}, "otherwise": {"f": torch.zeros(4, 6)}}
    pipeline.output("y", pipeline.when("see", inner, **branches))
    words = ("'f' of 'see' is [patches, 6] float32", "named dims are those that every request sizes")
    refuses(PlanError, words, lambda: pipeline.plan(sizes={"patches": 4}))


def test_a_condition_is_one_boolean():
    pipeline = new()
    text = pipeline.input("text", ROWS)
    inner = body(Double(), output="f", v=spec("batch", 4))
    result = {"inputs": {"v": text}, "otherwise": {"f": text}}
    pipeline.output("y", pipeline.when("see", inner, **result, condition=text))
    words = ("The condition of branch 'see' is one boolean, but 'text' gives [batch, 4] float32.", ".all()")
    refuses(PlanError, words, lambda: pipeline.plan(sizes={"batch": 2}))


def test_a_request_that_does_not_fit_is_refused_with_and_without_the_optional_input():
    with picture_model().plan(sizes=SIZES).load() as session:
        refuses(InputError, "The request lacks 'text'", lambda: session(image=torch.ones(2, 6)))
        refuses(
            InputError,
            "batch is 3 here but 2",
            lambda: session(image=torch.ones(2, 6), text=torch.ones(3, 4)),
        )
        words = ("Input 'image' takes [batch, 6] float32", "got a str")
        refuses(InputError, words, lambda: session(image="a.png", text=torch.ones(2, 4)))
        refuses(InputError, "no input 'imge'", lambda: session(imge=torch.ones(2, 6), text=torch.ones(2, 4)))
        assert session(text=torch.ones(2, 4))["y"].shape == (2, 8)
        assert session.stats["requests"] == 1
