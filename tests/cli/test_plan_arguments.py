"""What the command line asks of a plan reaches it, and what no plan can give is told apart from a failure."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

from orchestrator import Plan
from orchestrator.cli.options import parse_memory, parse_options, parse_residencies
from tests.cli.conftest import Shell

NULL = ("shop:double", "--device", "null", "--json")


def test_options_are_json_or_text():
    given = ["a=2", "b=true", "c=bfloat16", 'd={"x": "host"}', "e=-O1 --x=y", 'f="2"', "g="]
    assert parse_options(given) == {
        "a": 2,
        "b": True,
        "c": "bfloat16",
        "d": {"x": "host"},
        "e": "-O1 --x=y",
        "f": "2",
        "g": "",
    }


def test_an_edge_is_the_same_with_and_without_blanks():
    assert parse_residencies(["a.b->c.d = host"]) == parse_residencies([" a.b  ->  c.d=host"])


def test_a_budget_is_of_all_devices_or_of_each():
    assert parse_memory(None) == {}
    assert parse_memory(["16GB"]) == "16GB"
    assert parse_memory(["cpu=1GB", "cuda:0=2GB"]) == {"cpu": "1GB", "cuda:0": "2GB"}


def test_an_option_reaches_the_plan(shell: Shell):
    assert shell("validate", *NULL).data["plan"]["uploads"] == 1
    assert shell("validate", *NULL, "--option", "ranks=3").data["plan"]["uploads"] == 3


def test_an_option_reaches_the_device(shell: Shell, folder: Path):
    numpy.save(folder / "x.npy", numpy.ones((1, 3), dtype=numpy.float32))
    words = ("run", *NULL, "-i", "x=x.npy", "--option")
    assert shell(*words, "compute=false").data["outputs"]["y"]["max"] == 0
    assert shell(*words, "compute=true").data["outputs"]["y"]["max"] == 2


def test_an_option_that_a_stage_gives_wrongly_is_no_fault_of_the_command(shell: Shell):
    done = shell("plan", "shop:misled", "--device", "null", "--option", "ranks=1", code=1)
    assert "config of stage 'linear' has 'rnaks'" in done.err


def test_a_residency_reaches_the_plan(shell: Shell):
    words = ("plan", "model5", "--device", "cuda", "--json")
    free, forced = (
        {f"{edge.source} -> {edge.target}": edge.residency.value for edge in Plan.from_json(text).edges}
        for text in (shell(*words).out, shell(*words, "--residency", "m1.output->m2.input=host").out)
    )
    assert {edge for edge in free if free[edge] != forced[edge]} == {"m1.output -> m2.input"}


@pytest.mark.parametrize("budget", ["1GB", "null=1GB", "null:0=1000000000"])
def test_a_budget_reaches_the_plan(shell: Shell, budget: str):
    plan = Plan.from_json(shell("plan", *NULL, "--memory", budget).out)
    assert plan.budget == (("null:0", 10**9),)
