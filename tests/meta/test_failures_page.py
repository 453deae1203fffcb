"""The page of Neuron's failures: each line of its tables names tests, and these are there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "reference" / "neuron-failures.md"


@cache
def functions_of(path: str) -> frozenset[str]:
    """Names of the functions in a file of tests, whatever they are in."""
    folder = "neuron/" if path.startswith("on_nxdi/") else ""
    tree = ast.parse((TESTS / f"{folder}{path}").read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def rows() -> Iterator[tuple[str, str]]:
    """What is wrong, and what shows it, line by line."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4 and cells[0] != "what is wrong" and set(cells[0]) != {"-"}:
            yield cells[0], cells[3]


def test_each_failure_names_tests_that_there_are():
    table = list(rows())
    assert len(table) > 70
    for what, proof in table:
        names = re.findall(r"`([\w/]+\.py)::(\w+)`", proof)
        assert names, f"nothing shows: {what}"
        for path, name in names:
            assert name in functions_of(path), f"{path}::{name}, which shows: {what}"
