"""A size budget, so that nothing grows past what a reader holds in the head.

Lines of a file are counted whole. Lines of a function or class are counted without its docstring:
explaining more must never be what breaks the budget.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE_LINES, FUNCTION_LINES, CLASS_LINES = 400, 60, 250

Sized = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def sources() -> list[Path]:
    folders = ("orchestrator", "stages", "plugins", "tests", "docs")
    return sorted(
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if not {"_build", "__pycache__"} & set(path.parts)
    )


def length(node: Sized) -> int:
    """Lines of a definition from its `def` or `class` to its end, less the docstring's."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node, clean=False) is not None:
        first = node.body[0]
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def oversized(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT)
    if (lines := len(text.splitlines())) > FILE_LINES:
        yield f"{name}: {lines} lines, at most {FILE_LINES}: split it by purpose"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            budget = CLASS_LINES if isinstance(node, ast.ClassDef) else FUNCTION_LINES
            if (lines := length(node)) > budget:
                yield f"{name}:{node.lineno} {node.name}: {lines} lines, at most {budget}"


def test_there_are_sources_to_measure():
    assert len(sources()) > 20


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_file_functions_and_classes_fit_the_budget(path: Path):
    assert not list(oversized(path))


def test_a_docstring_does_not_count():
    source = 'def f():\n    """One.\n\n    Two.\n    """\n    return 1\n'
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.FunctionDef)
    assert length(node) == 2
