"""The list of slow tests names tests that there are, so that none is left out under an old name."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.slow import slow_tests

ROOT = Path(__file__).parents[2]


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_listed_tests_exist():
    for path in sorted({test.split("::")[0] for test in slow_tests()}):
        names = {test.split("[")[0].split("::")[-1] for test in slow_tests() if test.startswith(f"{path}::")}
        assert names <= functions(ROOT / path), path
