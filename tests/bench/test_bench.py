"""The benchmark runs and its results are well formed. How fast anything is, no test says."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench import report
from tests.bench.measure import ROOT

ASKED = ["chain", "model5", "memory", "stream", "plan", "start", "loop", "state", "neuron"]
FIGURES = [*ASKED, "compile", "generate"]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def check_form(results: dict[str, Any]) -> None:
    assert {"cpu", "cores", "python", "torch", "date", "commit"} <= results["machine"].keys()
    for row in results["rows"]:
        assert row["ours"] > 0
        assert row["reference"] is None or row["reference"] > 0
        assert row["verdict"] in ("", "ok", "over"), "both sides must give the same"
        assert (row["verdict"] == "") == (row["limit"] is None)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_store")
def test_the_benchmark_measures_equal_work(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "bench.json"
    done = bench(
        "--quick",
        "--device",
        "cpu",
        "--json",
        str(path),
        *(f"--only={name}" for name in (*ASKED, "generate")),
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(path.read_text(encoding="utf-8"))
    check_form(results)
    assert results["quick"]
    rows = results["rows"]
    assert list(dict.fromkeys(row["figure"] for row in rows)) == FIGURES
    compared = {row["figure"] for row in rows if row["equal"]}
    assert compared == {"chain", "model5", "memory", "stream", "start", "loop", "state", "neuron", "generate"}
    for row in rows:
        assert row["case"] in done.stdout


@pytest.mark.parametrize("arguments", [("--only", "speed"), ("--quick", "--write-docs")])
def test_wrong_usage_is_refused(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # the command sets them for all that follows
        monkeypatch.setenv(name, "1")
    command = importlib.import_module("tests.bench.__main__")
    with pytest.raises(SystemExit) as end:
        command.main(list(arguments))
    assert end.value.code == 2


def test_the_page_shows_the_committed_results() -> None:
    results = json.loads(report.RESULTS.read_text(encoding="utf-8"))
    check_form(results)
    assert not results["quick"]
    assert {row["figure"] for row in results["rows"]} >= set(FIGURES) | {"decode", "diffusion"}
    page = report.PAGE.read_text(encoding="utf-8")
    assert report.page(results, page) == page, "write it with `python -m tests.bench --write-docs`"
