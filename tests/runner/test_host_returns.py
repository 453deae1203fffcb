"""A host stage may hand one tensor over alone, in a tuple, in a list, or in a dict by port."""

from __future__ import annotations

import pytest
import torch

from orchestrator import Pipeline, StageError, TensorSpec


def run(function, spec):
    pipeline = Pipeline("host")
    x = pipeline.input("x", TensorSpec((2,)))
    pipeline.output("y", pipeline.add("stage", function, device="host", outputs={"a": spec})(x))
    with pipeline.plan(device="cpu").load() as session:
        return session(x=torch.ones(2))["y"]


@pytest.mark.parametrize(
    "give", [lambda x: x + 1, lambda x: (x + 1,), lambda x: [x + 1], lambda x: {"a": x + 1}]
)
def test_one_tensor_comes_in_any_of_four_forms(give):
    assert run(give, TensorSpec((2,))).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("value", [[1], [1, 2], (1,), (1, 2), {"k": 1}])
def test_a_list_tuple_or_dict_that_is_the_value_stays_whole(value):
    assert run(lambda _x: value, type(value)) == value


def test_a_list_of_two_is_not_one_tensor():
    with pytest.raises(StageError, match=r"'stage\.a' is \[2\] float32, but it gave a list"):
        run(lambda x: [x, x], TensorSpec((2,)))
