"""The other side of :mod:`orchestrator.runner.load.compile`: one application is built in a process forked for it.

Its result goes through a pipe: the artifact's folder, or the error, with its traceback as text.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import signal
import sys
import traceback
from dataclasses import dataclass
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from orchestrator.errors import CompileError, OrchestratorError
from orchestrator.program import Application
from orchestrator.runner.load.builder import Builder
from orchestrator.store import ArtifactStore

__all__ = ["BuildResult", "read_result", "run_worker"]

_PR_SET_PDEATHSIG = 1


class WorkerTraceback(Exception):  # noqa: N818 - it is no error of its own: it shows where the error came from
    """The traceback of an error that was raised in a worker."""


@dataclass(frozen=True)
class BuildResult:
    """How a build ended.

    Attributes:
        folder: The artifact's folder; None: it failed.
        error: What it failed with.
        traceback_text: The error's traceback.
    """

    folder: Path | None
    error: OrchestratorError | None = None
    traceback_text: str = ""

    def failure(self) -> OrchestratorError:
        """Returns the error that the build failed with; its cause shows where in the worker."""
        error = self.error or CompileError("A compiling process answered nothing.")
        error.__cause__ = WorkerTraceback(f"in the compiling process:\n{self.traceback_text}")
        return error


def read_result(connection: Connection) -> BuildResult | None:
    """Returns the result of a worker; None if it ended without one."""
    try:
        return pickle.loads(connection.recv_bytes()) if connection.poll() else None
    except (EOFError, OSError):
        return None


def run_worker(
    backend: Builder,
    application: Application,
    key: str,
    store: ArtifactStore,
    results: Connection,
    parent: int,
) -> None:
    """Builds an application and sends the result; runs in a process forked for it.

    Args:
        backend: What builds it.
        application: The application.
        key: Its content key.
        store: Where the artifact goes.
        results: Where the result goes.
        parent: The process that waits for it.
    """
    try:
        _settle(parent)
        result = _build(backend, application, key, store)
        results.send_bytes(pickle.dumps(result))
        results.close()
    except KeyboardInterrupt:  # wherever it comes: nobody waits for a word
        os._exit(128 + signal.SIGINT)


def _build(backend: Builder, application: Application, key: str, store: ArtifactStore) -> BuildResult:
    try:
        description = _build_metadata(backend, application)
        result = BuildResult(
            store.get_or_build(key, lambda folder: backend.build(application, folder), description)
        )
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a compiler may well call sys.exit
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return BuildResult(None, _picklable_error(error, backend, application), traceback.format_exc())
    # The result is sent and Python ends without being disturbed: the parent would take an interrupt for a failure.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return result


def _settle(parent: int) -> None:
    """Makes the process a leader of its own group that dies with its parent, with no handlers of the parent's."""
    # All that the compiler starts is in this group, and ends with it.
    os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before it was asked for that signal
        os._exit(1)
    # Handlers of the parent know the parent's state. Ctrl-C comes in last, when none of them would take it.
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # its parent forked with it blocked
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # The collector writes to every object it looks at, so that each page of the parent's heap would be copied; what is
    # inherited lives as long as this process.
    gc.freeze()
    # A thread pool does not survive a fork: with more than one thread torch would wait for threads that are not there.
    torch.set_num_threads(1)


def _picklable_error(error: BaseException, backend: Builder, application: Application) -> OrchestratorError:
    """Returns an error that can be sent to another process: itself, or its text."""
    if isinstance(error, OrchestratorError):
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return CompileError(str(error), stage=application.name, device=backend.device)
        return error
    return CompileError(
        f"Stage {application.name!r} cannot be compiled for {backend.device!r}: {type(error).__name__}: {error}",
        stage=application.name,
        device=backend.device,
    )


def _build_metadata(backend: Builder, application: Application) -> dict[str, Any]:
    """Returns what a list of artifacts shows of this one."""
    return {
        "stage": application.name,
        "device": backend.device,
        "backend": f"{type(backend).__module__}.{type(backend).__qualname__}",
        "programs": [program.name for program in application.programs],
        "sizes": [dict(sizes) for program in application.programs[:1] for sizes in program.sizes],
        "versions": {
            "stage-orchestrator": metadata.version("stage-orchestrator"),
            "torch": torch.__version__,
        },
    }
