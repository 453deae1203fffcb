"""Building applications: those that the store lacks, several at once, each in a process of its own.

A compiler may be killed for want of memory, change the state of its process, or keep what it took. So an application is
built in a *worker*: a fork of this process, which has the application's module without pickling it. A worker leads a
process group, so that whatever it started ends with it, and it ends when its parent does.

``ORCHESTRATOR_WORKERS`` sets how many are built at once; by default as many as there are processors.
"""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import CompileError, OrchestratorError
from orchestrator.program import Application
from orchestrator.runner.interrupts import DeferredSignals
from orchestrator.runner.load.builder import Builder
from orchestrator.runner.load.compile_worker import read_result, run_worker
from orchestrator.store import ArtifactStore

__all__ = ["WORKERS", "Job", "build_applications"]

WORKERS = "ORCHESTRATOR_WORKERS"

#: How often workers are looked at whose end nobody tells, since what they started keeps their pipe open; seconds.
_POLL_SECONDS = 0.1
#: What a worker gets to tidy up; seconds.
_GRACE_SECONDS = 3.0


@dataclass(frozen=True)
class Job:
    """One application to build.

    Attributes:
        backend: What builds it.
        application: The application.
        key: Its content key.
    """

    backend: Builder
    application: Application
    key: str


def build_applications(
    jobs: Iterable[Job], store: ArtifactStore, workers: int | None = None
) -> dict[str, Path]:
    """Builds what the store lacks.

    Args:
        jobs: The applications; of those with one key, one is built.
        store: Where artifacts are.
        workers: How many are built at once; None: see the module.

    Returns:
        Key to the artifact's folder.

    Raises:
        CompileError: An application cannot be built, or its compiler was killed. What was finished stays in the store.
    """
    by_key = {job.key: job for job in jobs}
    folders = {key: path for key in by_key if (path := store.find(key)) is not None}
    missing = [job for key, job in by_key.items() if key not in folders]
    if missing:
        for backend in {id(job.backend): job.backend for job in missing}.values():
            backend.warm_up()
        count = workers or _worker_count()
        # An interrupt comes in while workers are waited for, and nowhere else: so none is lost.
        with DeferredSignals() as signals, _WorkerPool(store, count, signals) as pool:
            folders |= pool.build(missing)
    return {key: folders[key] for key in by_key}


def _worker_count() -> int:
    text = os.environ.get(WORKERS, "").strip()
    if not text:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise CompileError(f"{WORKERS} is how many stages are compiled at once, 1 or more, not {text!r}.")
    return int(text)


@contextlib.contextmanager
def _block_interrupts() -> Iterator[None]:
    """Has a worker that is forked here keep Ctrl-C for when it is ready for it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Worker:
    """A process that builds one application.

    Args:
        job: The job.
        store: Where the artifact goes.

    Attributes:
        exitcode: How it ended, once it did; below 0: the signal that ended it.
    """

    def __init__(self, job: Job, store: ArtifactStore) -> None:
        self.job = job
        self.exitcode = 0
        context = multiprocessing.get_context("fork")
        self.results, sender = context.Pipe(duplex=False)
        self.process = context.Process(
            target=run_worker,
            args=(job.backend, job.application, job.key, store, sender, os.getpid()),
            name=f"compile {job.application.name}",
        )
        with _block_interrupts(), warnings.catch_warnings():
            # Python 3.12 warns of locks that other threads hold while it forks; a worker takes none of theirs.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process.start()
        sender.close()
        with contextlib.suppress(OSError):  # the worker does it too; whoever is first
            os.setpgid(self.process.pid or 0, self.process.pid or 0)

    @property
    def name(self) -> str:
        """The application's name, as in a message."""
        return repr(self.job.application.name)

    def signal(self, number: int) -> None:
        """Sends a signal to the worker and to all that it started."""
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid or -1, number)

    def end(self, grace: float) -> None:
        """Waits for the end of the worker, not for ever, and ends what it left behind."""
        try:
            self.process.join(grace)
        finally:
            self.signal(signal.SIGKILL)
            self.process.join()
            self.exitcode = self.process.exitcode or 0
            # Both hold files open, and a failure keeps its frames, and so this, for longer than anyone needs them.
            self.process.close()
            self.results.close()


class _WorkerPool:
    """Workers at work; leaving its block ends them.

    Args:
        store: Where artifacts go.
        workers: How many work at once.
        signals: Signals that are held back; they are let in while workers are waited for.
    """

    def __init__(self, store: ArtifactStore, workers: int, signals: DeferredSignals) -> None:
        self._store = store
        self._workers = workers
        self._signals = signals
        self._running: list[_Worker] = []
        self._failures: list[OrchestratorError] = []

    def build(self, jobs: Iterable[Job]) -> dict[str, Path]:
        """Builds all.

        Raises:
            CompileError: One failed; those under way beside it are ended. Or one was killed; those are finished.
        """
        queue = collections.deque(jobs)
        folders: dict[str, Path] = {}
        # After a failure none begins. Where one was killed the others finish, since what they build is kept;
        # an error ends them at once.
        while self._running or (queue and not self._failures):
            while queue and not self._failures and len(self._running) < self._workers:
                self._running.append(_Worker(queue.popleft(), self._store))
            self._wait()
            if not self._collect(folders):
                self._end()
        if self._failures:
            # Taken out, not named: a frame that holds the error it raises is freed by the cyclic collector only.
            raise self._failures.pop(0)
        return folders

    def _wait(self) -> None:
        """Waits until a worker has sent its result, or for a moment; signals come in."""
        multiprocessing.connection.wait([worker.results for worker in self._running], _POLL_SECONDS)
        self._signals.deliver()

    def _collect(self, folders: dict[str, Path]) -> bool:
        """Takes the results of workers that ended; tells whether to go on with those that are under way."""
        # A worker is ended before its result counts: its exit code tells how it died, and what it left behind is gone.
        for worker in tuple(self._running):
            if not worker.results.poll() and worker.process.is_alive():
                continue
            result = read_result(worker.results)
            self._running.remove(worker)
            worker.end(_GRACE_SECONDS)
            if result is None:
                self._failures.append(self._death_error(worker))
            elif result.folder is None:
                self._failures.insert(0, result.failure())
                return False
            else:
                folders[worker.job.key] = result.folder
        return True

    def _death_error(self, worker: _Worker) -> CompileError:
        # Short memory is the usual reason, so those that took some at the same time are named too.
        code = worker.exitcode
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        others = [other.name for other in self._running]
        beside = (
            f" while {', '.join(others)} {'were' if len(others) > 1 else 'was'} under way" if others else ""
        )
        return CompileError(
            f"The compiler of {worker.name} {how}{beside}. If the machine ran out of memory, compile fewer stages at "
            f"once: {WORKERS}=1. What was finished is kept and is not compiled again.",
            stage=worker.job.application.name,
            stages=(worker.job.application.name, *(other.job.application.name for other in self._running)),
            device=worker.job.backend.device,
            exitcode=code,
        )

    def __enter__(self) -> _WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._failures.clear()

    def _end(self) -> None:
        """Ends those that are under way: first as Ctrl-C does, so that they tidy up."""
        for worker in self._running:
            worker.signal(signal.SIGINT)
        until = time.monotonic() + _GRACE_SECONDS
        while self._running:
            self._running.pop().end(max(0.0, until - time.monotonic()))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
