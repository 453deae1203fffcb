"""A pipeline with example inputs is run without any."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

from tests.cli.conftest import Shell


def test_examples_are_run_where_no_input_is_given(shell: Shell):
    done = shell("run", "shop:sampled", "--json")
    assert done.err == "No input is given: running the examples of 'double' at batch=4.\n"
    assert done.data["inputs"] == "examples"
    assert done.data["outputs"]["y"]["values"][3] == [18, 20, 22]


def test_examples_fit_the_sizes_that_are_asked_for(shell: Shell):
    done = shell("run", "shop:sampled", "--sizes", "batch=1", "--json")
    assert done.data["outputs"]["y"]["shape"] == [1, 3]
    assert done.data["stats"]["pad_waste"] == 0


def test_inputs_that_are_given_are_run(shell: Shell, folder: Path):
    numpy.save(folder / "x.npy", numpy.ones((2, 3), dtype=numpy.float32))
    done = shell("run", "shop:sampled", "-i", "x=x.npy", "--json")
    assert done.err == ""
    assert done.data["inputs"] == "given"
    assert done.data["outputs"]["y"]["values"] == [[2, 2, 2]] * 2


def test_examples_that_do_not_fit_are_a_failed_job(shell: Shell):
    done = shell("run", "shop:sampled", "--set", "how=wrong", "--json", code=1)
    assert done.data["error"]["type"] == "InputError"
    assert "'y'" in done.data["error"]["message"]


@pytest.mark.parametrize("name", ["vision-text", "model5"])
def test_ready_pipelines_have_examples(shell: Shell, name: str):
    words = ("run", name, "--set", "batch=2", "--json")
    first, second = shell(*words).data, shell(*words).data
    assert first["outputs"] == second["outputs"]
    for output in first["outputs"].values():
        assert output["shape"][0] == 2
        assert output["min"] < output["mean"] < output["max"]
