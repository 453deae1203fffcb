"""The other side of :mod:`orchestrator.runner.load.compile`: one application is built in a process forked for it.

What it answers goes through a pipe: the artifact's folder, or the error, with its traceback as text.
"""

from __future__ import annotations

import ctypes
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

from orchestrator.compiling import CompilingBackend
from orchestrator.errors import CompileError, OrchestratorError
from orchestrator.program import Application
from orchestrator.store import ArtifactStore

__all__ = ["Answer", "build_in_child", "read_answer"]

_PR_SET_PDEATHSIG = 1


class ChildTraceback(Exception):  # noqa: N818 - it is no error of its own: it shows where the error came from
    """The traceback of an error that was raised in a child."""


@dataclass(frozen=True)
class Answer:
    """What a child answers.

    Attributes:
        folder: The artifact's folder; None: it failed.
        error: What it failed with.
        trace: The error's traceback.
    """

    folder: Path | None
    error: OrchestratorError | None = None
    trace: str = ""

    def failure(self) -> OrchestratorError:
        """Returns what the child failed with; its cause shows where."""
        error = self.error or CompileError("A compiling process answered nothing.")
        error.__cause__ = ChildTraceback(f"in the compiling process:\n{self.trace}")
        return error


def read_answer(connection: Connection) -> Answer | None:
    """Returns what a child answered; None if it ended without a word."""
    try:
        return pickle.loads(connection.recv_bytes()) if connection.poll() else None
    except (EOFError, OSError):
        return None


def build_in_child(
    backend: CompilingBackend,
    application: Application,
    key: str,
    store: ArtifactStore,
    answers: Connection,
    parent: int,
) -> None:
    """Builds an application and answers; runs in a process forked for it.

    Args:
        backend: What builds it.
        application: The application.
        key: Its content key.
        store: Where the artifact goes.
        answers: Where the answer goes.
        parent: The process that waits for it.
    """
    try:
        _settle(parent)
        answer = _built(backend, application, key, store)
        answers.send_bytes(pickle.dumps(answer))
        answers.close()
    except KeyboardInterrupt:  # wherever it comes: nobody waits for a word
        os._exit(128 + signal.SIGINT)


def _built(backend: CompilingBackend, application: Application, key: str, store: ArtifactStore) -> Answer:
    try:
        about = _about(backend, application)
        answer = Answer(store.obtain(key, lambda folder: backend.build(application, folder), about))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a compiler may well call sys.exit
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return Answer(None, _told(error, backend, application), traceback.format_exc())
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # what is done is told, and Python ends without being disturbed
    return answer


def _settle(parent: int) -> None:
    """Makes the process a leader of its own group that dies with its parent, with no handlers of the parent's."""
    os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # its parent forked with it blocked
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A thread pool does not survive a fork: with more than one thread torch would wait for threads that are not there.
    torch.set_num_threads(1)


def _told(error: BaseException, backend: CompilingBackend, application: Application) -> OrchestratorError:
    """An error that can cross the border of a process."""
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


def _about(backend: CompilingBackend, application: Application) -> dict[str, Any]:
    """What a person reads in a list of artifacts."""
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
