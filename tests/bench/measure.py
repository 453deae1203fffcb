"""Measuring in pairs: ours and a reference alternate in one process, so that both meet the same noise.

A *block* is a run of calls that takes about 2 ms. In a *round* each side runs one block; which goes first alternates.
A figure is the median, over the rounds, of the ratio or the difference within one round: a machine that changes its
speed between two rounds changes neither.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BLOCK = 0.002

Call = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        figure: Which figure it belongs to.
        case: What was measured.
        unit: Unit of ``ours`` and ``reference``.
        ours: The library's measure.
        reference: The same for what it is compared with; None where there is nothing to compare.
        value: What is judged: a ratio, a difference, or ``ours`` itself.
        value_unit: Its unit; ``x`` for a ratio.
        limit: What it may be; None: for information.
        at_least: The limit is a lower one.
        equal: Whether both sides gave the same; None where that is no question.
        note: What a reader has to know besides.
    """

    figure: str
    case: str
    unit: str
    ours: float
    reference: float | None
    value: float
    value_unit: str
    limit: float | None = None
    at_least: bool = False
    equal: bool | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """``ok``, ``over``, ``wrong`` where both sides differ, or nothing where there is no limit."""
        if self.equal is False:
            return "wrong"
        if self.limit is None:
            return ""
        return "ok" if (self.value >= self.limit if self.at_least else self.value <= self.limit) else "over"

    def as_dict(self) -> dict[str, Any]:
        """The row for JSON, its verdict included."""
        return {**asdict(self), "verdict": self.verdict}


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        quick: Only show that it works; the figures mean nothing.
    """

    quick: bool = False

    def rounds(self, full: int) -> int:
        """Returns the number of rounds; two are the least in which each side goes first once."""
        return 2 if self.quick else full


@dataclass(frozen=True)
class Pair:
    """Seconds a call, medians over rounds."""

    ours: float
    reference: float
    ratio: float
    difference: float

    def row(
        self,
        figure: str,
        case: str,
        *,
        unit: str = "ms",
        parts: int = 1,
        limit: float | None = None,
        equal: bool | None = None,
        note: str = "",
    ) -> Row:
        """Returns the line that judges the ratio.

        Args:
            figure: Which figure it belongs to.
            case: What was measured.
            unit: ``ms`` or ``us``, and what follows a slash.
            parts: Of how many equal parts a call is, such as tokens; times are those of one.
            limit: What the ratio may be; None: for information.
            equal: Whether both sides gave the same.
            note: What a reader has to know besides.
        """
        scale = {"ms": 1e3, "us": 1e6}[unit.partition("/")[0]] / parts
        times = self.ours * scale, self.reference * scale
        return Row(figure, case, unit, *times, self.ratio, "x", limit, equal=equal, note=note)


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """Runs a block without the cyclic garbage collector, as ``timeit`` does."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def compare(ours: Call, reference: Call, rounds: int, block: float = BLOCK) -> Pair:
    """Times two callables in turn.

    Args:
        ours: Called without arguments.
        reference: Likewise.
        rounds: How many rounds.
        block: Seconds for each side of a round; a call that takes longer is a block of its own.
    """
    loops = _loops(ours, block), _loops(reference, block)
    pairs: list[tuple[float, float]] = []
    with no_collector():
        for number in range(rounds):
            if number % 2:
                second = _block(reference, loops[1])
                pairs.append((_block(ours, loops[0]), second))
            else:
                first = _block(ours, loops[0])
                pairs.append((first, _block(reference, loops[1])))
    return _medians(pairs)


def _medians(pairs: Sequence[tuple[float, float]]) -> Pair:
    return Pair(
        statistics.median(first for first, _ in pairs),
        statistics.median(second for _, second in pairs),
        statistics.median(first / second for first, second in pairs),
        statistics.median(first - second for first, second in pairs),
    )


def _loops(call: Call, block: float) -> int:
    once = _block(call, 1)
    if once > block:
        once = _block(call, 1)  # the first call of all may be a slow one
    if once > block:
        return 1
    return max(1, round(block / min(_block(call, 3) for _ in range(5))))


def _block(call: Call, loops: int) -> float:
    started = time.perf_counter()
    for _ in itertools.repeat(None, loops):
        call()
    return (time.perf_counter() - started) / loops


def processes(first: Sequence[str], second: Sequence[str], rounds: int) -> Pair:
    """Times two commands in turn, as whole processes; each runs once before."""
    return compare(lambda: _quiet(first), lambda: _quiet(second), rounds, block=0)


def _quiet(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)


def in_process(module: str, *arguments: str) -> Any:
    """Runs a module of this package in a fresh process; returns the JSON document it prints."""
    command = [sys.executable, "-m", f"tests.bench.{module}", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return json.loads(done.stdout)
