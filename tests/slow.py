"""Which tests are slow: the list in `slow.txt`, and the command that adds to it what a measured run found.

    HYPOTHESIS_PROFILE=quick ORCHESTRATOR_TEST_COSTS=costs.jsonl python -m pytest -n auto
    python -m tests.slow costs.jsonl

A line is the id of a test, of a function, or a file, which stands for all in it. A test may carry
``pytest.mark.slow`` itself as well.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

__all__ = ["LIST", "is_slow", "slow_tests"]

LIST = Path(__file__).with_name("slow.txt")

#: What a test may cost in a measured run before it is listed; the limit in `conftest.py` leaves room for others.
LISTED_SECONDS = 0.75


@functools.cache
def slow_tests() -> frozenset[str]:
    """The ids in the list."""
    lines = LIST.read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))


def is_slow(test: str, listed: frozenset[str]) -> bool:
    """Tells whether a test, or the function that it is of, is in the list."""
    return bool({test, test.partition("[")[0], test.partition("::")[0]} & listed)


def add(costs: Path) -> None:
    """Adds the tests that a measured run found to be slow.

    A function of whose cases half are slow is listed whole, and so is a file of which every function is listed: it is
    not even imported then.
    """
    lines = LIST.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in costs.read_text(encoding="utf-8").splitlines()]
    listed = set(slow_tests()) | {test for test, seconds in rows if seconds > LISTED_SECONDS}
    cases: dict[str, set[str]] = {}
    functions: dict[str, set[str]] = {}
    for test, _ in rows:
        function = test.partition("[")[0]
        cases.setdefault(function, set()).add(test)
        functions.setdefault(test.partition("::")[0], set()).add(function)
    listed |= {function for function, tests in cases.items() if 2 * len(tests & listed) >= len(tests)}
    listed |= {file for file, names in functions.items() if names <= listed}
    within = {
        test for test in listed if {test.partition("[")[0], test.partition("::")[0]} & (listed - {test})
    }
    head = [line for line in lines if line.startswith("#")]
    LIST.write_text("\n".join([*head, *sorted(listed - within)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    add(Path(sys.argv[1]))
