"""A size budget, so that nothing grows past what a reader holds in the head.

Docstrings and lines that are a comment do not count, in a file as in a class or function: explaining more must never
be what breaks the budget.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE_LINES, FUNCTION_LINES, CLASS_LINES = 400, 60, 250

Sized = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


FOLDERS = ("orchestrator", "stages", "plugins", "tests", "docs")


def sources(folder: str) -> list[Path]:
    files = (ROOT / folder).rglob("*.py")
    return sorted(path for path in files if not {"_build", "__pycache__"} & set(path.parts))


def explanations(text: str, tree: ast.Module) -> set[int]:
    """Numbers of the lines that are a docstring or a comment."""
    lines = {
        number for number, line in enumerate(text.splitlines(), start=1) if line.lstrip().startswith("#")
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | Sized) and ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            lines |= set(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    return lines


def length(node: Sized, left_out: set[int]) -> int:
    """Lines of a definition from its `def` or `class` to its end, less docstrings and comments."""
    return len(set(range(node.lineno, (node.end_lineno or node.lineno) + 1)) - left_out)


def oversized(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT)
    tree = ast.parse(text)
    left_out = explanations(text, tree)
    if (lines := len(text.splitlines()) - len(left_out)) > FILE_LINES:
        yield f"{name}: {lines} lines, at most {FILE_LINES}: split it by purpose"
    for node in ast.walk(tree):
        if isinstance(node, Sized):
            budget = CLASS_LINES if isinstance(node, ast.ClassDef) else FUNCTION_LINES
            if (lines := length(node, left_out)) > budget:
                yield f"{name}:{node.lineno} {node.name}: {lines} lines, at most {budget}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_functions_and_classes_fit_the_budget(folder: str):
    paths = sources(folder)
    assert paths
    assert not [excess for path in paths for excess in oversized(path)]


def test_docstrings_and_comments_do_not_count():
    source = (
        'class A:\n    def f(self):\n        """One.\n\n        Two.\n        """\n'
        "        # Three.\n        return 1\n"
    )
    tree = ast.parse(source)
    (node,) = tree.body
    assert isinstance(node, ast.ClassDef)
    assert length(node, explanations(source, tree)) == 3
