"""Kind: names that a user chose meet the runner's own, as identifiers of generated code or as keys beside its notes."""

from __future__ import annotations

import builtins
import keyword
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import Dim, GraphError, Pipeline, Plan, TensorSpec
from tests.properties.trials import examples

MARKS = (".", "/", "#", "[", "->")
#: What generated code, torch or Python may mean by themselves, and letters that Python reads as other ones.
NASTY = (
    *keyword.kwlist,
    *(name for name in dir(builtins) if name.isidentifier()),
    *(
        "self",
        "cls",
        "args",
        "kwargs",
        "inputs",
        "R",
        "B",
        "v0",
        "v1",
        "run",
        "entry",
        "_table",
        "_admit",
        "lambda x",
    ),
    *(
        "µ",
        "μ",
        "é",
        "é",
        "ﬁ",
        "fi",
        "ª",
        "K",
        "\u017f",
        "İ",
        "\u0131",
        "名前",
        "имя",
        "שם",
        "🙂",
        "a b",
        "'",
        '"',
        "\\",
        "{x}",
        "%s",
    ),
    *(
        "inputs left out",
        "steps of loop",
        "runs of loop",
        "output",
        "None",
        "__class__",
        "__dict__",
        "x" * 300,
    ),
)


def _is_name(text: str) -> bool:
    return bool(text) and text == text.strip() and not any(mark in text for mark in MARKS)


names = st.one_of(
    st.sampled_from(NASTY),
    st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=8).filter(_is_name),
)


def named_pipeline(of: list[str]) -> Pipeline:
    """A dict of two outputs, a host stage, a loop and a map's list, all named by what was drawn."""
    first, second, stage, left, right, dim, loop, host, result, other = of
    pipeline = Pipeline("names")
    spec = TensorSpec((Dim(dim, (4,)), 2), pad=0)
    a, b = pipeline.input(first, spec), pipeline.input(second, spec)
    both = pipeline.add(stage, lambda a, b: {left: a + b, right: a - b}, inputs=(first, second))(a, b)
    step = Pipeline("step")
    x = step.input(left, TensorSpec((dim, 2), pad=0))
    step.output(left, step.add(stage, lambda x: x * 2, inputs=(right,))(x))
    looped = pipeline.loop(loop, step, carry={left: both[left]}, max_steps=2)
    count = pipeline.add(host, lambda x: len(x), device="host", inputs=(left,), outputs={right: int})(
        both[right]
    )
    pipeline.output(result, looped)
    pipeline.output(other, count)
    return pipeline


@settings(max_examples=examples(60, fuzzed=False))
@given(st.data())
def test_any_name_may_be_given_to_anything(data: Any):
    of = data.draw(st.lists(names, min_size=10, max_size=10, unique=True))
    pipeline = named_pipeline(of)
    plan = pipeline.plan()
    a, b = torch.arange(6.0).reshape(3, 2), torch.ones(3, 2)
    for loaded in (plan, pipeline.bind(Plan.from_json(plan.to_json()))):
        assert str(loaded)
        with loaded.load() as session:
            for result in (session(**{of[0]: a, of[1]: b}), session.run({of[1]: b, of[0]: a})):
                assert torch.equal(result[of[8]], (a + b) * 4)
                assert result[of[9]] == 3


@pytest.mark.parametrize("mark", ["\x00", "\n", "\x1b", "\x7f", "\x85", "\ud800"])
def test_control_characters_and_halves_of_pairs_name_nothing(mark: str):
    with pytest.raises(GraphError, match="control character or half of a surrogate pair"):
        Pipeline("p").input(f"a{mark}b", TensorSpec((1,)))
