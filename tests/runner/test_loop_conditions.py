"""A loop with a condition: where it does not hold, no iteration runs and each carry is what it starts with."""

from __future__ import annotations

import pytest
import torch

from orchestrator import GraphError, Pipeline, Plan, PlanError
from orchestrator.testing import run_reference
from tests.aliases import Write
from tests.kit import COMPUTE, new, refuses, spec

FLAG = spec(1, dtype=torch.bool)


def chain(limits: tuple[int, ...] = (3, 6), *, aliases: bool = True) -> Pipeline:
    """Loops over one cache, one after the other: each writes while it has room and nobody says that all is done."""
    pipeline = new()
    x = pipeline.input("x", spec(2))
    values = {
        "x": x,
        "cache": pipeline.add("zeros", lambda x: torch.zeros(2, 6) * x[:, None])(x),
        "i": pipeline.input("i", spec(1, dtype=torch.int64)),
    }
    for number, limit in enumerate(limits):
        body = new("body")
        ports = {"x": spec(2), "cache": spec(2, 6), "i": spec(1, dtype=torch.int64)}
        inputs = {name: body.input(name, port) for name, port in ports.items()}
        alias = {"cache": "cache"} if aliases else None
        write = body.add("write", Write() if aliases else Pure(), outputs=tuple(ports), aliases=alias)
        result = write(**inputs)
        for name in ports:
            body.output(name, result[name])
        body.output("full", body.add("full", lambda i, limit=limit: i >= limit)(result["i"]))
        runs = pipeline.add(f"room-{number}", lambda i, limit=limit: i < limit)(values["i"])
        results = pipeline.loop(
            f"loop-{number}",
            body,
            carry=values,
            until="full",
            condition=runs,
            max_steps=6,
            outputs=tuple(values),
        )
        values = {name: results[name] for name in values}
    for name, value in values.items():
        pipeline.output(f"{name} out", value)
    return pipeline


class Pure(Write):
    """The same with a new cache each time."""

    def forward(
        self, x: torch.Tensor, cache: torch.Tensor, i: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return super().forward(x, cache.clone(), i)


def by_hand(x: torch.Tensor, i: torch.Tensor) -> dict[str, torch.Tensor]:
    cache, step = torch.zeros(2, 6), Write()
    while i < 6:
        x, cache, i = step(x, cache, i)
    return {"x out": x, "cache out": cache, "i out": i}


def request(first: int) -> dict[str, torch.Tensor]:
    return {"x": torch.tensor([1.0, 2.0]), "i": torch.tensor([first])}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("device", ["cpu", "null"])
def test_loops_whose_condition_does_not_hold_do_not_run(device: str):
    pipeline = chain(aliases=device == "cpu")
    with pipeline.plan(device, options=COMPUTE if device == "null" else {}).load() as session:
        for first, counts in ((0, [3, 3]), (3, [3]), (5, [1]), (6, [])):
            seen: dict[str, int] = {}
            result = session.run(
                request(first), progress=lambda loop, at, _, seen=seen: seen.update({loop: at})
            )
            assert same(result, by_hand(**request(first)))
            assert list(seen.values()) == counts
            assert same(result, run_reference(pipeline.freeze(), request(first)))


def test_one_buffer_goes_through_all_loops():
    plan = chain().plan()
    assert not [edge for edge in plan.edges if any(part.kind == "clone" for part in edge.adapters)]
    assert plan.summary["peak_bytes"]["cpu"] < 2 * 2 * 6 * 4


def test_the_plan_says_it_and_is_data_that_binds_again():
    pipeline = chain()
    plan = pipeline.plan()
    assert "at most 6 iterations; none unless 'room-0.output'; until 'loop-0/full.output'" in str(plan)
    read = Plan.from_json(plan.to_json())
    assert read == plan
    with pipeline.bind(read).load() as session:
        assert same(session(**request(2)), by_hand(**request(2)))


def test_a_condition_is_one_boolean_of_a_loop_that_something_ends():
    body = new("body")
    body.output("x", body.add("one", lambda x: x + 1)(body.input("x", spec(2))))
    pipeline = new()
    x = pipeline.input("x", spec(2))
    refuses(
        GraphError,
        ("condition=", "until=", "when("),
        lambda: pipeline.loop("loop", body, carry={"x": x}, condition=x, max_steps=2),
    )
    pipeline = new()
    x = pipeline.input("x", spec(2))
    ending = new("ending")
    y = ending.add("one", lambda x: x + 1)(ending.input("x", spec(2)))
    ending.output("x", y)
    ending.output("end", ending.add("end", lambda x: x.sum().reshape(1) > 9)(y))
    pipeline.output("y", pipeline.loop("end", ending, carry={"x": x}, until="end", condition=x, max_steps=2))
    refuses(PlanError, ("condition of loop 'end'", "boolean"), pipeline.plan)
