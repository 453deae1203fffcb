"""Building applications: those that the store lacks, several at once, each in a process of its own.

A compiler may be killed for want of memory, change the state of its process, or keep what it took. So an application is
built in a *child*: a fork of this process, which has the application's module without pickling it. A child leads a
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

from orchestrator.compiling import CompilingBackend
from orchestrator.errors import CompileError, OrchestratorError
from orchestrator.program import Application
from orchestrator.runner.interrupts import DeferredSignals
from orchestrator.runner.load.compile_worker import build_in_child, read_answer
from orchestrator.store import ArtifactStore

__all__ = ["WORKERS", "Job", "build_applications"]

WORKERS = "ORCHESTRATOR_WORKERS"

#: How often children are looked at whose end nobody tells, since what they started keeps their pipe open; seconds.
_LOOK = 0.1
#: What a child gets to tidy up; seconds.
_GRACE = 3.0


@dataclass(frozen=True)
class Job:
    """One application to build.

    Attributes:
        backend: What builds it.
        application: The application.
        key: Its content key.
    """

    backend: CompilingBackend
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
    found = {key: path for key in by_key if (path := store.find(key)) is not None}
    missing = [job for key, job in by_key.items() if key not in found]
    if missing:
        for backend in {id(job.backend): job.backend for job in missing}.values():
            backend.warm_up()
        count = workers or _workers()
        # An interrupt comes in while children are waited for, and nowhere else: so none is lost.
        with DeferredSignals() as signals, _Crew(store, count, signals) as crew:
            found |= crew.build(missing)
    return {key: found[key] for key in by_key}


def _workers() -> int:
    given = os.environ.get(WORKERS, "").strip()
    if not given:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not given.isascii() or not given.isdigit() or int(given) < 1:
        raise CompileError(f"{WORKERS} is how many stages are compiled at once, 1 or more, not {given!r}.")
    return int(given)


@contextlib.contextmanager
def _masked() -> Iterator[None]:
    """Has a child that is forked here keep Ctrl-C for when it is ready for it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Child:
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
        self.answers, sender = context.Pipe(duplex=False)
        self.process = context.Process(
            target=build_in_child,
            args=(job.backend, job.application, job.key, store, sender, os.getpid()),
            name=f"compile {job.application.name}",
        )
        with _masked(), warnings.catch_warnings():
            # Python 3.12 warns of locks that other threads hold while it forks; a child takes none of theirs.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process.start()
        sender.close()
        with contextlib.suppress(OSError):  # the child does it too; whoever is first
            os.setpgid(self.process.pid or 0, self.process.pid or 0)

    @property
    def name(self) -> str:
        """The application's name, as in a message."""
        return repr(self.job.application.name)

    def signal(self, number: int) -> None:
        """Sends a signal to the child and to all that it started."""
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid or -1, number)

    def end(self, grace: float) -> None:
        """Waits for the end of the child, not for ever, and ends what it left behind."""
        try:
            self.process.join(grace)
        finally:
            self.signal(signal.SIGKILL)
            self.process.join()
            self.exitcode = self.process.exitcode or 0
            # Both hold files open, and a failure keeps its frames, and so this, for longer than anyone needs them.
            self.process.close()
            self.answers.close()


class _Crew:
    """Children at work; leaving its block ends them.

    Args:
        store: Where artifacts go.
        workers: How many work at once.
        signals: Signals that are held back; they are let in while children are waited for.
    """

    def __init__(self, store: ArtifactStore, workers: int, signals: DeferredSignals) -> None:
        self._store = store
        self._workers = workers
        self._signals = signals
        self._children: list[_Child] = []
        self._failures: list[OrchestratorError] = []

    def build(self, jobs: Iterable[Job]) -> dict[str, Path]:
        """Builds all.

        Raises:
            CompileError: One failed; those under way beside it are ended. Or one was killed; those are finished.
        """
        waiting = collections.deque(jobs)
        built: dict[str, Path] = {}
        while self._children or (waiting and not self._failures):
            while waiting and not self._failures and len(self._children) < self._workers:
                self._children.append(_Child(waiting.popleft(), self._store))
            self._wait()
            if not self._take(built):
                self._end()
        if self._failures:
            # Taken out, not named: a frame that holds the error it raises is freed by the cyclic collector only.
            raise self._failures.pop(0)
        return built

    def _wait(self) -> None:
        """Waits until a child has answered, or for a moment; signals come in."""
        multiprocessing.connection.wait([child.answers for child in self._children], _LOOK)
        self._signals.deliver()

    def _take(self, built: dict[str, Path]) -> bool:
        """Takes the answers of children that ended; tells whether to go on with those that are under way."""
        for child in tuple(self._children):
            if not child.answers.poll() and child.process.is_alive():
                continue
            answer = read_answer(child.answers)
            self._children.remove(child)
            child.end(_GRACE)
            if answer is None:
                self._failures.append(self._killed(child))
            elif answer.folder is None:
                self._failures.insert(0, answer.failure())
                return False
            else:
                built[child.job.key] = answer.folder
        return True

    def _killed(self, child: _Child) -> CompileError:
        code = child.exitcode
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        others = [other.name for other in self._children]
        beside = (
            f" while {', '.join(others)} {'were' if len(others) > 1 else 'was'} under way" if others else ""
        )
        return CompileError(
            f"The compiler of {child.name} {how}{beside}. If the machine ran out of memory, compile fewer stages at "
            f"once: {WORKERS}=1. What was finished is kept and is not compiled again.",
            stage=child.job.application.name,
            stages=(child.job.application.name, *(other.job.application.name for other in self._children)),
            device=child.job.backend.device,
            exitcode=code,
        )

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._failures.clear()

    def _end(self) -> None:
        """Ends those that are under way: first as Ctrl-C does, so that they tidy up."""
        for child in self._children:
            child.signal(signal.SIGINT)
        until = time.monotonic() + _GRACE
        while self._children:
            self._children.pop().end(max(0.0, until - time.monotonic()))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
