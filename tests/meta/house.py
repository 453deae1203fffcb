"""How the code reads, in figures: circles of imports, names, comments, tests of a step's kind.

    python -m tests.meta.house                        # all packages
    python -m tests.meta.house orchestrator/runner    # one folder, with where each figure comes from

The limits are in `test_house.py`.
"""

from __future__ import annotations

import ast
import functools
import io
import re
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import networkx as nx

__all__ = [
    "PACKAGES",
    "circles",
    "homonyms",
    "is_participle",
    "kind_tests",
    "long_functions",
    "participles",
    "sources",
]

ROOT = Path(__file__).parents[2]
PACKAGES = (
    ROOT / "orchestrator",
    ROOT / "stages" / "orchestrator_stages",
    ROOT / "plugins" / "neuron" / "orchestrator_neuron",
)

#: A function is long from here on; its docstring is not counted.
LONG_FUNCTION_LINES = 15

#: Past participles that do not end in `ed` and are no other word as well.
IRREGULAR = frozenset(
    re.findall(
        r"\w+",
        """asked begun born bought broken brought built caught chosen done drawn driven eaten fallen fed flown forbidden
        forgotten found given gone grown heard held hidden kept known laid led lent lost made meant met overwritten
        paid proven said seen sent shaken shown sold spent spoken stolen stuck sunk swept taken taught thrown told torn
        understood undone withdrawn woken won worn written""",
    )
)

#: Words that end in `ed` and are no participles, and names that Python and torch gave.
NOT_PARTICIPLES = frozenset(
    [
        "annotated",
        "bed",
        "cached",
        "closed",
        "embed",
        "feed",
        "frozen",
        "need",
        "red",
        "reversed",
        "searchsorted",
        "seed",
        "sorted",
    ]
)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(folders: Iterable[Path] = PACKAGES) -> list[Path]:
    """Returns all Python files of some folders."""
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def circles(package: Path) -> list[list[str]]:
    """Returns the circles of imports between files of a package.

    Imports inside functions and under `TYPE_CHECKING` count: who reads a file has to know what they bring.
    """
    modules = {_module(path, package): path for path in sources([package])}
    graph = nx.DiGraph()
    for module, path in modules.items():
        for other in _imports(path):
            target = other if other in modules else other.rpartition(".")[0]
            if target in modules and target != module:
                graph.add_edge(module, target)
    return sorted(sorted(circle) for circle in nx.strongly_connected_components(graph) if len(circle) > 1)


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def _module(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def identifiers(path: Path) -> Iterator[str]:
    """Yields each use of an identifier: names, attributes, parameters, keywords, functions and classes."""
    for node in ast.walk(_tree(path)):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.keyword(arg=str(name)):
                yield name


def is_participle(identifier: str) -> bool:
    """Tells whether an identifier is nothing but a past participle, such as `found` or `_padded`."""
    word = identifier.strip("_").lower()
    if "_" in word or word in NOT_PARTICIPLES:
        return False
    return word in IRREGULAR or (word.endswith("ed") and len(word) > 3)


def participles(paths: Iterable[Path]) -> tuple[Counter[str], int]:
    """Returns how often each bare participle is used as an identifier, and the number of all identifiers."""
    uses = Counter(name for path in paths for name in identifiers(path))
    return Counter({name: count for name, count in uses.items() if is_participle(name)}), uses.total()


def long_functions(path: Path) -> Iterator[tuple[str, bool]]:
    """Yields the functions of 15 lines or more without their docstrings, and whether a comment stands inside."""
    text = path.read_text(encoding="utf-8")
    comments = {
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT and not token.string.startswith(("# noqa", "# type:"))
    }
    for node in ast.walk(_tree(path)):
        if isinstance(node, Function) and _length(node) >= LONG_FUNCTION_LINES:
            inside = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            yield f"{_name(path)}:{node.lineno} {node.name}", not comments.isdisjoint(inside)


def _length(node: Function) -> int:
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node, clean=False) is not None:
        first = node.body[0]
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def kind_tests(path: Path) -> Iterator[str]:
    """Yields the places that ask a step or a loop for its kind: `loop.kind ==`, `isinstance(step, LoopStep)`."""
    for node in ast.walk(_tree(path)):
        match node:
            case ast.Compare(left=ast.Attribute(value=owner, attr="op" | "kind")) if _ends_in_step_or_loop(
                owner
            ):
                yield f"{_name(path)}:{node.lineno}"
            case ast.Call(func=ast.Name(id="isinstance"), args=[_, kinds]) if any(
                name.id.endswith("Step") for name in ast.walk(kinds) if isinstance(name, ast.Name)
            ):
                yield f"{_name(path)}:{node.lineno}"
            case ast.Compare(left=ast.Attribute(attr="loop"), ops=[ast.Is() | ast.IsNot()]):
                yield f"{_name(path)}:{node.lineno}"


def _ends_in_step_or_loop(owner: ast.expr) -> bool:
    return ast.unparse(owner).lower().endswith(("step", "loop"))


def homonyms(paths: Iterable[Path]) -> dict[str, list[str]]:
    """Returns the names of classes that stand for different things in different files."""
    homes: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.ClassDef):
                homes[node.name.strip("_")].append(_name(path))
    return {name: files for name, files in sorted(homes.items()) if len(set(files)) > 1}


def _report(folders: Sequence[Path], *, details: bool) -> Iterator[str]:
    """Yields the lines of the report; with details also where each figure comes from."""
    for folder in folders:
        paths = sources([folder])
        words, total = participles(paths)
        functions = [item for path in paths for item in long_functions(path)]
        silent = [place for place, has_comment in functions if not has_comment]
        tests = [place for path in paths for place in kind_tests(path)]
        lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)
        yield f"{folder.relative_to(ROOT)}: {len(paths)} files, {lines} lines"
        yield f"  circles {len(circles(folder))}"
        yield f"  participles {1000 * words.total() / max(total, 1):.1f} of 1,000 identifiers"
        yield (
            f"  functions of {LONG_FUNCTION_LINES} lines or more with a comment inside: "
            f"{len(functions) - len(silent)} of {len(functions)}"
        )
        yield f"  tests of a step's or loop's kind: {len(tests)}"
        if details:
            yield "  participles: " + ", ".join(f"{word} {count}" for word, count in words.most_common())
            yield from (f"  no comment: {place}" for place in silent)
            yield from (f"  kind: {place}" for place in tests)
    yield "names of classes with two homes: " + str(homonyms(sources()))


if __name__ == "__main__":
    chosen_folders = [Path(argument).resolve() for argument in sys.argv[1:]]
    for line in _report(chosen_folders or PACKAGES, details=bool(chosen_folders)):
        sys.stdout.write(f"{line}\n")
