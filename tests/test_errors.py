"""Errors carry what they speak of, survive a process border, and offer the nearest name."""

from __future__ import annotations

import pickle

import pytest

from orchestrator import errors
from orchestrator.errors import OrchestratorError, PlanError, PlanOptionError, StageError, nearest

KINDS = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_objects_an_error_speaks_of_are_attributes(kind: type[OrchestratorError]):
    error = kind("broken", stage="vision", inputs={"x": "[1]"})
    assert (error.stage, error.inputs, error.message, str(error)) == (
        "vision",
        {"x": "[1]"},
        "broken",
        "broken",
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_crosses_a_process_border_whole(kind: type[OrchestratorError]):
    again = pickle.loads(pickle.dumps(kind("broken", stage="vision")))
    assert type(again) is kind
    assert (again.stage, again.message) == ("vision", "broken")


def test_every_kind_is_one_of_the_tree_and_of_no_other():
    for kind in KINDS:
        parent = PlanError if kind is PlanOptionError else OrchestratorError
        assert kind is OrchestratorError or kind.__bases__ == (parent,)
    assert StageError.__mro__[1:3] == (OrchestratorError, Exception)


def test_the_nearest_name_is_offered():
    assert nearest("fusoin", ["vision", "fusion"]) == " Did you mean 'fusion'?"


def test_without_a_near_name_the_known_ones_are_listed():
    assert nearest("q", ["b", "a"]) == " Known: 'a', 'b'."
    assert nearest("q", []).startswith(" ")


def test_a_long_list_is_cut():
    sentence = nearest("###", [f"name{index:02}" for index in range(30)])
    assert sentence.endswith("'name11', ....")


def test_a_name_that_is_no_string_is_looked_up_too():
    assert nearest(3, ["3a", "b"]) in (" Did you mean '3a'?", " Known: '3a', 'b'.")
