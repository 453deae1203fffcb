"""What a device counted by itself is shown next to what the plan says."""

from __future__ import annotations

import re

import numpy
import pytest

from orchestrator.testing.null import NullBackend
from tests.cli.conftest import Shell

pytestmark = pytest.mark.usefixtures("shared_store")

COUNTS = {"uploads": 1, "dispatches": 1, "peak_bytes": 4096, "estimated_seconds": 0.00246}


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The null device counts by itself, or says so."""
    monkeypatch.setattr(NullBackend, "measured", lambda self: COUNTS)


def rows(text: str) -> dict[str, list[str]]:
    """The table's cells by its first column."""
    cells = [re.split("  +", line) for line in text.splitlines() if not line.endswith((":", "."))]
    return {name: rest for name, *rest in cells}


def test_a_device_that_counts_nothing_is_not_mentioned(shell: Shell):
    assert "measured" not in shell("run", "shop:sampled", "--device", "null").err


@pytest.mark.usefixtures("counting")
def test_counts_go_to_stderr_after_the_outputs(shell: Shell):
    done = shell("run", "shop:sampled", "--device", "null")
    assert done.out.splitlines()[0].split() == ["output", "shape", "dtype", "min", "max", "mean"]
    assert "measured" not in done.out
    assert done.err.splitlines()[1:] == [
        "Counted by null:0:",
        "what               plan  measured",
        "uploads            1     1",
        "dispatches         1     1",
        "peak bytes         96    4,096",
        "estimated latency  -     2.46 ms",
        "The latency is an estimate by the figures of the cost model; nothing was timed.",
    ]


@pytest.mark.usefixtures("counting")
def test_json_has_them_in_the_stats(shell: Shell):
    done = shell("run", "shop:sampled", "--device", "null", "--json")
    assert done.data["stats"]["measured"] == {"null:0": COUNTS}
    assert "measured" not in done.err


@pytest.mark.usefixtures("counting")
def test_stages_that_the_device_does_not_run_are_named(shell: Shell):
    done = shell("run", "shop:sampled", "--set", "echo=true", "--device", "null")
    assert done.err.endswith("The plan also counts what runs elsewhere: echo.\n")
    assert rows(done.err)["dispatches"] == ["2", "1"]


EMULATED = ("--device", "neuron-emulated")


@pytest.mark.parametrize("name", ["vision-text", "model5"])
def test_the_emulated_device_counts_what_the_plan_says(shell: Shell, name: str):
    pytest.importorskip("orchestrator_neuron")
    done = shell("run", name, *EMULATED)
    found = rows(done.err)
    assert found.pop("what") == ["plan", "measured"]
    assert found.pop("estimated latency")[0] == "-"
    assert set(found) == {
        "uploads",
        "upload bytes",
        "downloads",
        "download bytes",
        "dispatches",
        "peak bytes",
    }
    assert all(planned == counted != "0" for planned, counted in found.values())


def test_the_emulated_device_gives_what_the_cpu_gives(shell: Shell):
    pytest.importorskip("orchestrator_neuron")
    words = ("run", "model5", "--json")
    here, there = (shell(*words, *more).data["outputs"] for more in ((), EMULATED))
    for name, output in here.items():
        assert numpy.allclose(there[name]["values"], output["values"], atol=1e-5)


def test_options_reach_the_emulated_device(shell: Shell):
    pytest.importorskip("orchestrator_neuron")
    more = ("--option", "tp_degree=2", "--option", "torch_dtype=bfloat16")
    stats = shell(
        "run", "model5", *EMULATED, *more, "--residency", "m1.output->m2.input=host", "--json"
    ).data["stats"]
    (seen,) = stats["measured"].values()
    assert (seen["uploads"], seen["downloads"]) == (stats["uploads"], stats["downloads"]) == (8, 3)
    assert seen["upload_bytes"] == stats["upload_bytes"] == 2 * 4 * (64 + 16 + 24 + 128) * 2
    (line,) = shell("plan", "model5", *EMULATED, "--option", "tp_degree=x", code=2).err.splitlines()
    assert line.startswith("error: ")
