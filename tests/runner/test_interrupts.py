"""Item 8: an interrupt at any line of compiling and loading, or a failed compile, leaves nothing, and nothing hangs.

A real SIGINT is raised at one line of the code in question after another, as it is when another thread of the process
takes the signal: no mask holds Python's handler back then. The cyclic collector is off, so that it hides nothing.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from orchestrator import Pipeline, TensorSpec
from orchestrator.errors import CompileError
from orchestrator.runner.interrupts import DeferredSignals
from orchestrator.runner.load import compile as load_compile
from orchestrator.runner.load.compile import build_applications
from orchestrator.store import ArtifactStore
from orchestrator_neuron.emulated import register
from tests.runner.test_build import Compiler, write

#: Where interrupts come: our own part of it, and what Python does around a fork.
COMPILING = ("runner/load/compile.py", "runner/interrupts.py", "multiprocessing/", "logging/__init__.py")
LOADING = (
    "orchestrator/loader.py",
    "runner/load/load.py",
    "emulated/backend.py",
    "emulated/register.py",
    "tempfile.py",
)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    gc.collect()
    gc.disable()
    before = children()
    try:
        yield
        assert children() <= before
        assert not register._open
        assert torch.is_grad_enabled()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        thread = threading.Thread(target=lambda: logging.getLogger("any").addFilter(bool), daemon=True)
        thread.start()
        with logging._lock:  # type: ignore[attr-defined]
            pass
    finally:
        gc.enable()


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def lines(call: Callable[[], object], places: tuple[str, ...], stop: int = -1) -> int:
    """Calls, and raises SIGINT at a line of these files, counted from 0; returns how many lines ran."""
    count, process = 0, os.getpid()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if not any(place in frame.f_code.co_filename for place in places):
            return trace if event == "call" else None
        if event == "line" and os.getpid() == process:
            count += 1
            if count == stop:
                signal.raise_signal(signal.SIGINT)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def interrupts_of(call: Callable[[], object], places: tuple[str, ...], points: int) -> Iterator[bool]:
    """Calls again and again, interrupted at another line each time; yields whether the interrupt came out."""
    total = lines(call, places)
    for point in range(points):
        try:
            lines(call, places, 1 + point * total // points)
        except KeyboardInterrupt:
            yield True
        else:
            yield False


def test_a_compile_that_is_interrupted_anywhere_leaves_no_process_and_no_lock(tmp_path: Path):
    count = 0

    def compile_all() -> None:
        nonlocal count
        count += 1
        build_applications(Compiler(a=write, b=write).jobs(), ArtifactStore(tmp_path / str(count)), workers=2)

    compile_all()
    before, came_out = (children(), files()), 0
    for out in interrupts_of(compile_all, COMPILING, 20):
        came_out += out
        assert children() <= before[0]
        assert files() == before[1]
    assert came_out > 10  # the others came while it ended, or were let in by a later call
    work = threading.Thread(target=compile_all, daemon=True)
    work.start()
    work.join(60)
    assert not work.is_alive()


def test_a_load_that_is_interrupted_anywhere_leaves_no_device_and_no_folder(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    pipeline = Pipeline("p")
    layer = pipeline.add("layer", nn.Linear(4, 4).eval())
    pipeline.output("y", layer(pipeline.input("x", TensorSpec((2, 4)))))
    plan = pipeline.plan("neuron-emulated")
    plan.compile(tmp_path / "store")
    store = ArtifactStore(tmp_path / "store")
    builder = "orchestrator.runner.load.load.build_applications"
    monkeypatch.setattr(builder, lambda jobs, _: {job.key: store.find(job.key) for job in jobs})
    before, came_out = files(), 0
    sessions: list[Any] = []
    for out in interrupts_of(lambda: sessions.append(plan.load()), LOADING, 40):
        came_out += out
        while sessions:
            sessions.pop().close()
        assert not register._open
        assert torch.is_grad_enabled()
        assert not list((tmp_path / "temporary").glob("stage-orchestrator-*"))
        assert files() == before
    assert came_out > 30
    with plan.load() as session:
        assert session(x=torch.ones(2, 4))["y"].shape == (2, 4)


def test_a_load_that_is_interrupted_at_any_line_leaves_gradients_on():
    """Kind: Python does not leave a block whose end an interrupt meets, so modes of torch would stay."""
    pipeline = Pipeline("p")
    layer = pipeline.add("layer", nn.Linear(4, 4).eval())
    pipeline.output("y", layer(pipeline.input("x", TensorSpec((2, 4)))))
    plan = pipeline.plan("cpu")
    sessions: list[Any] = []
    places = ("runner/load/load.py",)
    count = lines(lambda: sessions.append(plan.load()), places)
    for _ in interrupts_of(lambda: sessions.append(plan.load()), places, count):
        while sessions:
            sessions.pop().close()
        assert torch.is_grad_enabled()


def _fail(_: Path) -> None:
    raise ValueError("no")


@pytest.mark.parametrize("how", ["fails", "dies", "fails beside another", "dies beside another"])
def test_a_compile_that_fails_leaves_no_file_open_without_the_collector(how: str, tmp_path: Path):
    fails = _fail if how.startswith("fails") else (lambda _: os._exit(3))
    others = {"b": write, "c": write} if how.endswith("another") else {}

    def attempt(number: int) -> None:
        with contextlib.suppress(CompileError):
            jobs = Compiler(a=fails, **others).jobs()
            build_applications(jobs, ArtifactStore(tmp_path / str(number)), workers=2)

    attempt(-1)
    before = files()
    for number in range(5):
        attempt(number)
    assert files() == before


def test_a_signal_in_its_block_is_held_back_and_delivered_at_its_end():
    log: list[str] = []

    def raise_inside() -> None:
        with DeferredSignals():
            signal.raise_signal(signal.SIGINT)
            log.append("after")

    with pytest.raises(KeyboardInterrupt):
        raise_inside()
    assert log == ["after"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_another_thread_takes_is_held_back_too():
    log: list[bool] = []

    def raise_inside() -> None:
        with DeferredSignals():
            other = threading.Thread(target=lambda: signal.raise_signal(signal.SIGINT))
            other.start()
            other.join()
            log.append(True)

    with pytest.raises(KeyboardInterrupt):
        raise_inside()
    assert log


def test_handlers_of_the_users_own_are_called_once_each_and_put_back():
    log: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: log.append(number))
    own = signal.getsignal(signal.SIGUSR1)
    try:
        with DeferredSignals() as outer, DeferredSignals():
            signal.raise_signal(signal.SIGUSR1)
            assert not log
        assert log == [signal.SIGUSR1]
        outer.deliver()
        assert log == [signal.SIGUSR1]
        assert signal.getsignal(signal.SIGUSR1) is own
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_thread_other_than_the_main_one_holds_nothing_back():
    log: list[object] = []

    def work() -> None:
        with DeferredSignals():
            log.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert log == [signal.default_int_handler]


def test_an_interrupt_while_children_work_comes_in_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wait = load_compile._WorkerPool._wait

    def interrupt(crew: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        wait(crew)

    def slow(_: Path) -> None:
        threading.Event().wait(60)

    monkeypatch.setattr(load_compile._WorkerPool, "_wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_applications(Compiler(a=slow, b=slow).jobs(), ArtifactStore(tmp_path), workers=2)
