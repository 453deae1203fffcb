"""A loop that decides how often it runs, over items whose number a host stage decides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from orchestrator import Dim, Pipeline, Plan, StageError, TensorSpec

ITEMS = Dim("items", buckets=(1, 2), batch=True)


class Halve(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = x / 2
        return {"x": x, "done": (x < 1).all(0, keepdim=True)}


def positive(numbers: Tensor) -> Tensor:
    return numbers[numbers > 0]


def halving(collect: tuple[str, ...] = (), doubled: bool = False) -> Pipeline:
    body = Pipeline("body")
    outputs = body.add("halve", Halve())(body.input("x", TensorSpec((ITEMS,))))
    body.output("x", outputs["x"])
    body.output("done", outputs["done"])
    if doubled:
        body.output("same", body.input("twice", TensorSpec((ITEMS,))))
    pipeline = Pipeline("halving")
    numbers = pipeline.input("numbers", TensorSpec((Dim.dynamic("numbers"),)))
    items = pipeline.add(
        "found", positive, device="host", outputs={"items": TensorSpec((ITEMS,), pad="repeat_first")}
    )(numbers)
    inputs = {"twice": pipeline.add("double", lambda x: x * 2)(items)} if doubled else {}
    options = {"inputs": inputs, "until": "done", "max_steps": 9, "collect": collect}
    pipeline.output("x", pipeline.loop("halve", body, carry={"x": items}, **options))
    return pipeline


def test_it_runs_whole_in_chunks_and_not_at_all():
    with halving().plan(device="cpu").load() as session:
        for numbers, expected in [
            ([-1.0, 5.0], [0.625]),
            ([3.0, 5.0], [0.375, 0.625]),
            ([3.0, 5.0, 1.5], [0.375, 0.625, 0.75]),
            ([-1.0], []),
        ]:
            assert session(numbers=torch.tensor(numbers))["x"].tolist() == expected


def test_iterations_are_counted():
    with halving().plan(device="cpu").load() as session:
        session(numbers=torch.tensor([5.0]))
        assert session.stats["dispatches"] == 1 + 3


def test_a_plan_with_such_a_loop_is_bound_again():
    pipeline = halving()
    plan = pipeline.plan(device="cpu")
    with pipeline.bind(Plan.from_json(plan.to_json())).load() as session:
        assert session(numbers=torch.tensor([3.0]))["x"].tolist() == [0.75]


def test_what_a_loop_without_items_would_decide_is_not_known():
    with halving(("x",)).plan(device="cpu").load() as session:
        with pytest.raises(StageError, match=r"no items .*nothing decides the size of 'steps of halve'"):
            session(numbers=torch.tensor([-1.0]))
        assert session(numbers=torch.tensor([3.0]))["x"].tolist() == [[1.5], [0.75]]


def test_a_body_may_collect_what_was_made_beside_its_loop():
    """Kind: the planner looked without end for a value of the region that the body only hands on."""
    with halving(("same",), doubled=True).plan(device="cpu").load() as session:
        assert session(numbers=torch.tensor([3.0, -1.0]))["x"].tolist() == [[6.0], [6.0]]


def test_items_of_any_number_are_counted_as_they_ran():
    """Kind: a region of no items runs not at all, whether its dim has buckets or none."""
    body = Pipeline("body")
    count = body.add("count", lambda k: {"k": k + 1, "done": k > 1}, outputs=("k", "done"))
    end = count(body.input("k", TensorSpec((1,))))
    body.output("k", end["k"])
    body.output("done", end["done"])
    body.output("x", body.input("x", TensorSpec((ITEMS,))))
    pipeline = Pipeline("handing")
    numbers = pipeline.input("numbers", TensorSpec((Dim.dynamic("numbers"),)))
    items = pipeline.add("found", positive, device="host", outputs={"items": TensorSpec((ITEMS,))})(numbers)
    carry = {"x": items, "k": torch.zeros(1)}
    pipeline.output("x", pipeline.loop("count", body, carry=carry, until="done", max_steps=4)["x"])
    with pipeline.plan(device="cpu").load() as session:
        for values, ran in ([[-1.0], 1], [[2.0], 1 + 3], [[2.0, 3.0, 4.0], 1 + 3], [[-1.0], 1]):
            before = session.stats["dispatches"]
            result = session(numbers=torch.tensor(values))["x"]
            assert result.tolist() == [number for number in values if number > 0]
            assert session.stats["dispatches"] - before == ran


def test_a_size_derived_from_no_items_is_not_known():
    pipeline = Pipeline("longer")
    numbers = pipeline.input("numbers", TensorSpec((Dim.dynamic("numbers"),)))
    items = pipeline.add(
        "found", positive, device="host", outputs={"items": TensorSpec((Dim("items", (1, 2)),))}
    )(numbers)
    longer = pipeline.add("longer", lambda x: torch.cat([x, x[:1]]))(items)
    pipeline.output("y", longer)
    with pipeline.plan(device="cpu").load() as session:
        with pytest.raises(StageError, match=r"no items .*nothing decides the size of 'items ?\+ ?1'"):
            session(numbers=torch.tensor([-1.0]))
        assert session(numbers=torch.tensor([3.0, 4.0]))["y"].tolist() == [3.0, 4.0, 3.0]
