"""Building applications in processes: what fails, is killed or interrupted leaves the caller and the store whole."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from orchestrator.backend import CompilingBackend
from orchestrator.errors import CompileError, PlanError
from orchestrator.program import Application
from orchestrator.runner.load.compile import WORKERS, Job, build_applications
from orchestrator.store import ArtifactStore, content_key


def _unused(self: Any, *_: Any, **__: Any) -> Any:
    raise NotImplementedError


class Compiler(
    type("Stubs", (CompilingBackend,), dict.fromkeys(CompilingBackend.__abstractmethods__, _unused))  # type: ignore[misc]
):
    """Compiles by calling the function that it has for an application."""

    def __init__(self, **builds: Callable[[Path], Any]) -> None:
        self.device, self.options = "toy:0", {}
        self.builds = builds
        self.warm = 0

    def warm_up(self) -> None:
        self.warm += 1

    def build(self, application: Application, folder: Path) -> None:
        (folder / "pid").write_text(str(os.getpid()))
        self.builds[application.name](folder)

    def jobs(self) -> list[Job]:
        return [Job(self, Application(name, (), ()), content_key(name)) for name in self.builds]


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    yield
    left = [process for process in psutil.Process().children(recursive=True) if process.pid not in before]
    assert not left


def write(folder: Path) -> None:
    (folder / "program").write_text("code")


def stored_stages(store: ArtifactStore) -> set[str]:
    assert not store.verify()
    assert not list(store.path.glob("artifacts/*/??/.*"))
    return {entry.about["stage"] for entry in store.entries()}


def test_each_is_built_in_a_process_of_its_own_and_once(store: ArtifactStore):
    lock = threading.Lock()  # nothing is pickled

    def locked(folder: Path) -> None:
        with lock:
            write(folder)

    compiler = Compiler(a=locked, b=locked, c=locked)
    jobs = compiler.jobs()
    folders = build_applications([*jobs, *jobs], store, workers=2)
    assert list(folders) == [job.key for job in jobs]
    pids = {(folder / "pid").read_text() for folder in folders.values()}
    assert len(pids) == 3
    assert str(os.getpid()) not in pids
    assert compiler.warm == 1
    assert build_applications(jobs, store) == folders
    assert {(folder / "pid").read_text() for folder in folders.values()} == pids
    assert compiler.warm == 1
    assert stored_stages(store) == {"a", "b", "c"}
    about = store.entries()[0].about
    assert about["device"] == "toy:0"
    assert about["versions"]["torch"] == torch.__version__


def test_only_what_is_damaged_is_built_again(store: ArtifactStore):
    jobs = Compiler(a=write, b=write).jobs()
    folders = build_applications(jobs, store)
    a, b = ((folder / "pid").read_text() for folder in folders.values())
    (folders[jobs[0].key] / "program").write_text("edoc")
    build_applications(jobs, store)
    assert (folders[jobs[0].key] / "pid").read_text() != a
    assert (folders[jobs[1].key] / "pid").read_text() == b


def test_torch_computes_in_a_child_with_one_thread(store: ArtifactStore):
    torch.ones(400, 400) @ torch.ones(400, 400)  # the parent's thread pool is there

    def compute(folder: Path) -> None:
        product = torch.randn(400, 400) @ torch.randn(400, 400)
        program = torch.export.export(torch.nn.Linear(4, 4), (product[:2, :4],))
        torch.export.save(program, folder / "program.pt2")
        (folder / "threads").write_text(str(torch.get_num_threads()))

    (folder,) = build_applications(Compiler(a=compute).jobs(), store).values()
    assert (folder / "threads").read_text() == "1"
    assert torch.export.load(folder / "program.pt2").module()(torch.ones(2, 4)).shape == (2, 4)


def test_an_error_of_a_compiler_arrives_with_its_attributes(store: ArtifactStore):
    def fail(folder: Path) -> None:
        raise CompileError("no such operation", operation="aten.nonzero", unpicklable=lambda: None)

    with pytest.raises(CompileError, match=r"^no such operation$") as error_info:
        build_applications(Compiler(ok=write, bad=fail).jobs(), store, workers=1)
    assert error_info.value.operation == "aten.nonzero"
    assert "in fail" in str(error_info.value.__cause__)
    assert stored_stages(store) == {"ok"}


def test_an_error_of_the_tree_stays_what_it_is(store: ArtifactStore):
    def fail(folder: Path) -> None:
        raise PlanError("too large", stage="bad")

    with pytest.raises(PlanError, match="too large"):
        build_applications(Compiler(bad=fail).jobs(), store)


@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), SystemExit("by zero")])
def test_any_other_error_names_the_stage(store: ArtifactStore, error: BaseException):
    def fail(folder: Path) -> None:
        raise error

    with pytest.raises(CompileError, match=f"'bad'.*'toy:0'.*{type(error).__name__}: by zero") as error_info:
        build_applications(Compiler(bad=fail).jobs(), store)
    assert (error_info.value.stage, error_info.value.device) == ("bad", "toy:0")
    assert stored_stages(store) == set()


def test_an_error_that_cannot_travel(store: ArtifactStore):
    class LocalError(CompileError):
        pass

    def fail(folder: Path) -> None:
        raise LocalError("only here")

    with pytest.raises(CompileError, match="only here"):
        build_applications(Compiler(bad=fail).jobs(), store)


def test_an_error_ends_what_is_under_way_beside_it(store: ArtifactStore, tmp_path: Path):
    def fail(folder: Path) -> None:
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        raise ValueError("no")

    def slow(folder: Path) -> None:
        (tmp_path / "started").touch()
        time.sleep(60)

    start = time.monotonic()
    with pytest.raises(CompileError, match="ValueError"):
        build_applications(Compiler(bad=fail, slow=slow, never=slow).jobs(), store, workers=2)
    assert time.monotonic() - start < 30
    assert stored_stages(store) == set()


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "exit code 3"])
def test_a_killed_compiler_does_not_kill_the_caller(store: ArtifactStore, tmp_path: Path, how: str):
    def die(folder: Path) -> None:
        (folder / "half").write_text("half")
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.Signals[how]) if how.startswith("SIG") else os._exit(3)

    def slow(folder: Path) -> None:
        (tmp_path / "started").touch()
        time.sleep(0.5)
        write(folder)

    jobs = Compiler(first=write, bad=die, slow=slow, never=write).jobs()
    with pytest.raises(
        CompileError, match=f"'bad' .*{how} while 'slow' was under way.*{WORKERS}=1"
    ) as error_info:
        build_applications(jobs, store, workers=2)
    assert (error_info.value.stage, error_info.value.stages) == ("bad", ("bad", "slow"))
    assert {entry.about["stage"] for entry in store.entries()} == {"first", "slow"}
    assert not store.verify()
    again = Compiler(first=die, bad=write, slow=die, never=write)
    assert len(build_applications(again.jobs(), store)) == 4
    assert stored_stages(store) == {"first", "bad", "slow", "never"}


def test_what_a_compiler_started_ends_with_it(store: ArtifactStore, tmp_path: Path):
    def leave(folder: Path) -> None:
        write(folder)
        process = subprocess.Popen(["sleep", "300"])
        (tmp_path / "sleeper").write_text(str(process.pid))

    build_applications(Compiler(a=leave).jobs(), store)
    assert not runs(int((tmp_path / "sleeper").read_text()))


def runs(pid: int) -> bool:
    """Whether a process runs; one that was killed gets a moment to end."""
    until = time.monotonic() + 10
    while _lives(pid) and time.monotonic() < until:
        time.sleep(0.01)
    return _lives(pid)


def _lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_full_disk_is_told_by_the_child(store: ArtifactStore):
    def fail(folder: Path) -> None:
        raise OSError(28, os.strerror(28))

    with pytest.raises(CompileError, match=r"'bad' cannot be stored.*disk is full") as error_info:
        build_applications(Compiler(bad=fail).jobs(), store)
    assert error_info.value.path == store.path


def test_a_fork_beside_other_threads_is_quiet(store: ArtifactStore, recwarn: pytest.WarningsRecorder):
    end_event = threading.Event()
    thread = threading.Thread(target=end_event.wait)
    thread.start()
    build_applications(Compiler(a=write).jobs(), store)
    end_event.set()
    thread.join()
    assert not list(recwarn)


def test_the_number_of_workers_may_come_from_outside(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(WORKERS, "none")
    with pytest.raises(CompileError, match=f"{WORKERS}.*'none'"):
        build_applications(Compiler(a=write).jobs(), store)
    monkeypatch.setenv(WORKERS, "1")
    starts: list[float] = []

    def note(folder: Path) -> None:
        (folder / "at").write_text(str(time.monotonic()))
        time.sleep(0.2)

    folders = build_applications(Compiler(a=note, b=note).jobs(), store)
    starts = [float((folder / "at").read_text()) for folder in folders.values()]
    assert starts[1] - starts[0] >= 0.2
