"""A host stage may hand one tensor over alone, in a tuple, in a list, or in a dict by port."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from orchestrator import Dim, Pipeline, StageError, TensorSpec


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


def fake(x):
    with FakeTensorMode():
        return torch.empty(x.shape)


@pytest.mark.parametrize("device", ["cpu", "neuron-emulated"])
@pytest.mark.parametrize(
    "give", [lambda x: x.to_sparse(), fake, lambda x: torch.nested.nested_tensor([x], layout=torch.jagged)]
)
def test_what_is_not_dense_is_refused_by_the_stage_that_gives_it(give, device):
    """Kinds K2 and K15: a sparse, nested or fake tensor is no result, nor does it reach another stage."""
    pipeline = Pipeline("host")
    x = pipeline.input("x", TensorSpec((2,)))
    pipeline.output("y", pipeline.add("stage", give, device="host", outputs={"a": TensorSpec((2,))})(x))
    with (
        pipeline.plan(device=device).load() as session,
        pytest.raises(StageError, match=r"'stage\.a' is \[2\] float32, but it gave .* give a dense tensor"),
    ):
        session(x=torch.ones(2))


@pytest.mark.parametrize("device", ["cpu", "neuron-emulated"])
@pytest.mark.parametrize("give", [torch.Tensor.to_sparse, fake])
def test_an_item_that_is_not_dense_is_named_by_its_place(give, device):
    body = Pipeline("body")
    x = body.input("x", TensorSpec((Dim("items", (2,), batch=True), 2)))
    body.output("y", body.add("double", lambda x: x * 2)(x))
    pipeline = Pipeline("map")
    pipeline.output("y", pipeline.map("each", body, over={"x": pipeline.input("x", list)}))
    with pipeline.plan(device=device).load() as session:
        with pytest.raises(StageError, match=r"Item 1 of 'each\.x' .* give a dense tensor"):
            session(x=[torch.ones(2), give(torch.ones(2))])
        assert session(x=[torch.ones(2)] * 2)["y"][1].tolist() == [2.0, 2.0]
