"""What differs between two plans, for a person."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest

from orchestrator import Plan
from tests.kit import pair


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
