"""What holds for all tests: how many examples hypothesis tries, and what a test that is not marked slow may cost.

``HYPOTHESIS_PROFILE`` picks the profile. ``quick`` is what `make test` takes: a fifth of the examples. ``fixed`` (the
default, and `make test-all`) tries all of them, the same for everybody: what fails in CI fails here. ``explore`` looks
for new ones.

Costs are seconds of processor time, of the test and of the processes it waited for: those do not hang on how busy the
machine is. Where `ORCHESTRATOR_TEST_LIMIT` is set, a test that takes more than :data:`LIMIT_SECONDS` has to be marked
slow, by ``pytest.mark.slow`` or by a line in `slow.txt`.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.slow import is_slow, slow_tests

#: Processor seconds that a test may take without the marker ``slow``.
LIMIT_SECONDS = 5.0

#: What `make test` and `make test-slow` select.
QUICK, REST = "not slow", "slow or hypothesis"

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "fixed")
ENFORCED = "ORCHESTRATOR_TEST_LIMIT" in os.environ
LENIENT = (HealthCheck.too_slow, HealthCheck.data_too_large)

settings.register_profile(
    "fixed", derandomize=True, deadline=None, suppress_health_check=LENIENT, database=None
)
settings.register_profile("quick", settings.get_profile("fixed"), max_examples=20)
settings.register_profile("explore", deadline=None, suppress_health_check=LENIENT)
settings.load_profile(PROFILE)


def processor_seconds() -> float:
    """Processor time of this process and of the children it waited for."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


#: The folder of the cache that this run made, which all of its processes share; a run that was given one makes none.
CACHE = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Lets Ctrl-C interrupt: a shell starts what runs in its background with that signal ignored.

    What plans keep for other processes goes to a folder of this run, or of several where the caller names one. The
    cyclic collector looks at the heap less often than Python would, which a process with all of torch and thousands
    of tests in it spends a twentieth of its time on.
    """
    gc.set_threshold(20_000)
    if "ORCHESTRATOR_CACHE" not in os.environ:
        os.environ["ORCHESTRATOR_CACHE"] = config.stash[CACHE] = tempfile.mkdtemp()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Keeps pytest's handlers off the logger of torch's structured traces, which torch writes only where there is one.

    Pytest adds its handlers to each logger that does not hand records on, as torch makes this one when it is imported.
    """
    logging.getLogger("torch.__trace").propagate = True


def pytest_unconfigure(config: pytest.Config) -> None:
    """Removes the folder of this run; its workers have it from the environment, and made none."""
    if folder := config.stash.get(CACHE, ""):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A store for all plans that are loaded without one: what tests of any file compile alike is compiled once.

    For files that are about what runs, not about how it is compiled. It lies where this run, or several, keep what they
    learn of plans.
    """
    folder = Path(os.environ["ORCHESTRATOR_CACHE"] or tmp_path_factory.getbasetemp(), "shared-store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHESTRATOR_STORE", str(folder))
        yield


@pytest.fixture(scope="module")
def shared_trials() -> Iterator[None]:
    """Lets the plans of a file know what stages of equal structure gave on fake tensors, as within one plan.

    For files that plan the same few stages hundreds of times. A stage that was tried stays alive meanwhile: a structure
    knows some of its parts by their identity.
    """
    from orchestrator.planner.infer.probe import Prober  # torch is not imported for tests that need none

    memo: dict[Any, Any] = {}
    stages: dict[int, Any] = {}
    begin, run = Prober.__init__, Prober.run

    def begin_with_memo(self: Prober, *arguments: Any) -> None:
        begin(self, *arguments)
        self._memo = memo

    def run_and_keep(self: Prober, stage: Any, *arguments: Any, **options: Any) -> Any:
        stages[id(stage)] = stage
        return run(self, stage, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Prober, "__init__", begin_with_memo)
        patch.setattr(Prober, "run", run_and_keep)
        yield


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out files that hold no wanted test, so that each worker reads and imports the others only.

    Where no slow test is wanted those are the files that are slow as a whole; where only slow and random ones are,
    the files without either.
    """
    expression = config.option.markexpr
    if expression not in (QUICK, REST) or not collection_path.is_relative_to(config.rootpath):
        return None
    file = collection_path.relative_to(config.rootpath).as_posix()
    if expression == QUICK:
        return file in slow_tests() or None
    if not collection_path.name.startswith("test_") or any(test.startswith(file) for test in slow_tests()):
        return None
    text = collection_path.read_text(encoding="utf-8")
    return not any(word in text for word in ("hypothesis", "mark.slow")) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that are listed as slow."""
    listed = slow_tests()
    for item in items:
        if is_slow(item.nodeid, listed):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Fails a test that costs more than it may; `ORCHESTRATOR_TEST_COSTS` names a file that takes all costs."""
    before = processor_seconds()
    try:
        yield
    finally:
        seconds = processor_seconds() - before
        if path := os.environ.get("ORCHESTRATOR_TEST_COSTS"):
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps([item.nodeid, round(seconds, 3)]) + "\n")
    if ENFORCED and seconds > LIMIT_SECONDS and item.get_closest_marker("slow") is None:
        pytest.fail(
            f"took {seconds:.1f} s of processor time, more than {LIMIT_SECONDS:.0f}: list it in tests/slow.txt, or "
            f"make it cheaper",
            pytrace=False,
        )
