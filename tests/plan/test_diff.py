"""What differs between two plans, for a person."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from orchestrator import Plan
from orchestrator.plan.steps import LeafStep
from tests.kit import Double, linear, pair, spec
from tests.planner.devices import on, ranked


def plan(**given) -> Plan:
    return pair()[0].plan(**{"sizes": {"batch": (2, 4)}, **given})


def test_equal_plans_differ_in_nothing():
    difference = plan().diff(plan())
    assert not difference
    assert str(difference) == "The plans are equal."
    assert plan() == plan()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sizes": {"batch": (2, 8)}}, ("dim batch", "(2, 4)", "(2, 8)")),
        ({"device": "cuda"}, ("group cuda:0", "call vision", "total uploads")),
        ({"placement": {"vision": "null"}}, ("edge vision.output -> join.seen", "download to host")),
        ({"memory": "1GB"}, ("cpu", "1000000000")),
    ],
)
def test_a_difference_is_a_row_of_both(given, words):
    difference = plan().diff(plan(**given))
    assert difference
    for word in ("this plan", "other plan", *words):
        assert word in str(difference)


def test_a_difference_reads_both_ways():
    one, other = plan(), plan(device="cuda")
    assert {(row[0], row[2], row[1]) for row in one.diff(other).rows} == set(other.diff(one).rows)


@pytest.mark.parametrize("table", ["values", "steps", "edges", "calls"])
def test_plans_that_differ_anywhere_differ(table: str):
    one = plan()
    other = replace(one, **{table: getattr(one, table)[::-1]})
    assert one != other
    assert one.diff(other), table


def test_a_plan_is_frozen():
    with pytest.raises(FrozenInstanceError):
        plan().pipeline = "other"
    with pytest.raises(FrozenInstanceError):
        plan().edges[0].bytes = 1


def compiled(**options) -> Plan:
    pipeline = ranked()
    x, enc = pipeline.input("x", spec(2, 4)), pipeline.add("enc", linear(4, 4))
    first, second = enc(x), enc(pipeline.add("mid", Double())(x))
    ports = {"a": spec(2, 6, pad=0), "b": None}
    pipeline.output("y", pipeline.add("join", lambda a, b: a[:, :4] + b, inputs=ports)(first, second))
    return on(pipeline, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"adapters": "producer"},
            (
                "edge enc.output -> join.a",
                "in the consumer",
                "in the producer",
                "program enc",
                "buffers neuron",
            ),
        ),
        ({"adapters": "program"}, ("program adapt enc.output", "total dispatches", "note 0")),
        ({"adapters": "host"}, ("edge enc.output -> join.a", "download to host", "total uploads")),
        ({"hazards": "ignore"}, ("program enc[route 1]", "route 1", "note 0", "another program")),
        ({"tp_degree": 2}, ("group neuron-emulated", "ranks 2", "total uploads")),
        (
            {"torch_dtype": torch.bfloat16},
            (
                "call enc",
                "bfloat16",
                "cast to bfloat16",
                "weights neuron-emulated",
                "buffers neuron-emulated",
            ),
        ),
        ({"memory": "1GB"}, ("budget neuron-emulated", "24000000000", "1000000000")),
        ({"logical_nc_config": 1}, ("budget neuron-emulated", "12000000000")),
    ],
    ids=str,
)
def test_what_is_compiled_differs_by_rows_too(options, words):
    difference = compiled(adapters="consumer").diff(compiled(**{"adapters": "consumer", **options}))
    assert difference
    for word in ("this plan", "other plan", *words):
        assert word in str(difference)


def test_plans_of_programs_that_differ_anywhere_differ():
    one = compiled()
    assert not one.diff(compiled())
    first = one.programs[0]
    changed = (
        replace(first, to_host=not first.to_host),
        replace(first, route=3),
        replace(first, stage="mid"),
        replace(first, inputs=(replace(first.inputs[0], dtype=torch.int64),)),
        replace(first, outputs=()),
    )
    for program in changed:
        other = replace(one, programs=(program, *one.programs[1:]))
        assert one != other
        assert one.diff(other)
    assert one.diff(replace(one, buffers=()))
    steps = tuple(
        replace(step, program=step.program and "enc") if isinstance(step, LeafStep) else step
        for step in one.steps
    )
    assert one.diff(replace(one, steps=steps))
