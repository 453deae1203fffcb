"""Builds that are interrupted: children are silent and end with their parent."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.errors import CompileError
from orchestrator.runner.load import compile_worker
from orchestrator.runner.load.compile import build_applications
from orchestrator.store import ArtifactStore
from tests.runner.test_build import Compiler, runs, write


@pytest.mark.parametrize("when", ["it starts", "it fails", "it is done"])
def test_an_interrupted_child_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], when: str
):
    def interrupted(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            os.kill(os.getpid(), signal.SIGINT)
            return function(*args)

        return run

    def fail(folder: Path) -> None:
        raise ValueError("no")

    module, name = {
        "it starts": (compile_worker, "_settle"),
        "it fails": (compile_worker.traceback, "format_exc"),
        "it is done": (compile_worker.pickle, "dumps"),
    }[when]
    monkeypatch.setattr(module, name, interrupted(getattr(module, name)))
    with contextlib.suppress(CompileError):
        build_applications(Compiler(a=fail if when == "it fails" else write).jobs(), ArtifactStore(tmp_path))
    assert capfd.readouterr().err == ""


SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.runner.test_build import Compiler, build_applications, ArtifactStore
def slow(folder):
    (Path({tmp!r}) / folder.name).touch()
    time.sleep(60)
print("ready", flush=True)
build_applications(Compiler(a=slow, b=slow).jobs(), ArtifactStore({tmp!r} + "/store"), workers=2)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_children_end_with_their_parent(tmp_path: Path, number: int):
    script = SCRIPT.format(root=str(Path(__file__).parents[2]), tmp=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while len(list(tmp_path.glob(".*"))) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 2
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert (b"KeyboardInterrupt" in errors) == (number == signal.SIGINT)
    assert not [child for child in children if runs(child.pid)]
    store = ArtifactStore(tmp_path / "store")
    assert store.entries() == ()
    assert store.clean().stale_builds == (0 if number == signal.SIGINT else 2)
