"""Real processes: what reaches which stream, on a terminal and on a pipe.

Those that run or plan are forked where torch is imported, but one that has to start with other variables.
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from tests.docs.shell import join, start


def environment(**more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "COLUMNS")}
    return {**clean, "TERM": "xterm-256color", **more}


def run(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator", *words]
    return subprocess.run(
        command, cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=120, check=False
    )


def fork(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs a command as above, in a process that starts with torch imported."""
    streams = [folder / "stdout.txt", folder / "stderr.txt"]
    for path in streams:
        path.unlink(missing_ok=True)
    code = join(start(["orchestrator", *words], folder, *streams, environment(**more)))
    return subprocess.CompletedProcess(words, code, *(path.read_text(encoding="utf-8") for path in streams))


def on_terminal(folder: Path, *words: str) -> tuple[str, str]:
    """Runs a command whose stderr is a terminal; returns stdout and what the terminal showed."""
    ours, theirs = pty.openpty()
    stdout = folder / "terminal.txt"
    process = start(["orchestrator", *words], folder, stdout, Path(os.ttyname(theirs)), environment())
    # The other side is open here until the process has ended, so that it is closed once, and after all was read.
    os.set_blocking(ours, False)
    shown = b""
    while process.is_alive() or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.05)[0]:
            shown += os.read(ours, 4096)
    os.close(theirs)
    os.close(ours)
    assert join(process) == 0, shown
    return stdout.read_text(encoding="utf-8"), shown.decode()


@pytest.fixture(autouse=True)
def two(folder: Path) -> None:
    numpy.save(folder / "two.npy", numpy.ones(2, dtype=numpy.float32))
    numpy.save(folder / "x.npy", numpy.ones((1, 3), dtype=numpy.float32))


def test_stdout_holds_json_only_whatever_prints(folder: Path):
    done = fork(folder, "run", "shop:noisy", "--input", "x=two.npy", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outputs"]["y"]["values"] == [1, 1]
    for words in ("building", "a stage prints", "a library writes", "a compiler talks"):
        assert words in done.stderr


def test_stdout_holds_json_only_when_it_fails(folder: Path):
    done = fork(folder, "run", "shop:failing", "--input", "x=two.npy", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["type"] == "StageError"


@pytest.mark.parametrize(
    "words", [("list",), ("plan", "shop:double"), ("env",), ("--help",), ("run", "--help")]
)
def test_a_pipe_gets_no_colour(folder: Path, words: tuple[str, ...]):
    done = fork(folder, *words)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_a_pipe_gets_whole_lines(folder: Path):
    done = fork(folder, "plan", "shop:double", COLUMNS="20")
    (line,) = (line for line in done.stdout.splitlines() if line.strip().startswith("scale.output"))
    assert line.rstrip().endswith("results go to the host")


def test_a_run_is_quiet_on_a_pipe_and_shows_progress_on_a_terminal(folder: Path):
    words = ("run", "shop:noisy", "--input", "x=two.npy")
    assert fork(folder, *words).stderr == ""
    out, shown = on_terminal(folder, *words, "--json")
    assert json.loads(out)["stats"]["requests"] == 1
    assert "running noisy" in shown


def test_the_bar_counts_iterations_on_a_terminal(folder: Path):
    numpy.save(folder / "limit.npy", numpy.full(1, 4, dtype=numpy.float32))
    out, shown = on_terminal(folder, "run", "shop:counting", "--input", "limit=limit.npy", "--json")
    assert json.loads(out)["stats"]["dispatches"] == 6
    assert "running counting" in shown
    assert re.search(r"\d/(21|6)\b", shown)  # expected at first, or in the end


def test_an_installed_plugin_is_used_by_name(folder: Path):
    done = run(folder, "run", "acme-double", "-i", "x=x.npy", "-o", "out", PYTHONPATH=str(folder))
    assert done.returncode == 0, done.stderr
    assert numpy.load(folder / "out/y.npy").tolist() == [[2, 2, 2]]


def test_a_closed_pipe_is_no_traceback(folder: Path):
    command = f"'{sys.executable}' -m orchestrator list | true"
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert "Traceback" not in done.stderr


def test_text_that_the_locale_cannot_show(folder: Path):
    done = run(folder, "run", "shop:hello", "--set", "name=ü", "--json", PYTHONIOENCODING="ascii")
    assert json.loads(done.stdout)["outputs"]["greeting"]["value"] == "Hello ü!"


def test_help_starts_fast(folder: Path):
    script = "import time; t = time.perf_counter(); import orchestrator.cli; print(time.perf_counter() - t)"
    bare = "import time; t = time.perf_counter(); import typer; print(time.perf_counter() - t)"
    ours, theirs = (
        min(
            float(subprocess.check_output([sys.executable, "-c", code], env=environment(), cwd=folder))
            for _ in range(3)
        )
        for code in (script, bare)
    )
    assert ours < 2.5 * theirs
