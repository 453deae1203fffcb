"""Recipes and answers for contributors are true of the tree: files are there, and the lines around a change too."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "docs" / "how-to" / "recipes.md"
CONTRIBUTING = ROOT / "docs" / "contributing.md"
GLOSSARY = ROOT / "docs" / "reference" / "glossary.md"

CHANGE = re.compile(
    r"^--- (?P<old>\S+)\n\+\+\+ b/(?P<new>\S+)\n(?P<body>(?:(?!--- )[@+\- ].*\n)+)", re.MULTILINE
)
PATH = re.compile(r"`((?:orchestrator|stages|plugins|tests|docs)/[\w./-]+)`")
SYMBOL = re.compile(r"`(\w+)` in `((?:orchestrator|stages)/[\w./]+\.py)`")

#: Words that the glossary has to say: those of the design, and the names that replaced older ones.
WORDS = """
stage, call, model wrapper, port, edge, device group, ranked value, residency, adapter, bucket, born dim,
carry, invariant, collect, plan, step, artifact, promise, batch dim, application, entry point, alias,
compiled region, hoisting, part, hop, join, plan variant, route, location, plan context, plan options, edge
spec, conversion, fusion, epilogue, prologue, replica, double buffer, data-dependent dim, unpadded, initial,
argument, yielded, result, enter, exit, constraint, size assignment, pending handle, carry ownership, worker
pool, worker, conflict, progress hook, unavailable, spill, hazard, liveness, handle, null device, node,
region, verify, pass, backend, capabilities, chunk, request, registry entry, staging, store, program
"""


def changes() -> list[re.Match[str]]:
    return list(CHANGE.finditer(RECIPES.read_text(encoding="utf-8")))


def page_id(change: re.Match[str]) -> str:
    return change["new"]


def test_each_recipe_has_a_diff():
    headings = re.findall(r"^## .+$", RECIPES.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(headings) == RECIPES.read_text(encoding="utf-8").count("```diff") == 6


@pytest.mark.parametrize("change", changes(), ids=page_id)
def test_what_a_recipe_changes_is_there(change: re.Match[str]):
    path = ROOT / change["new"]
    if change["old"] == "/dev/null":
        assert not path.exists()
        return
    lines = {line.strip() for line in path.read_text(encoding="utf-8").splitlines()}
    around = [line[1:].strip() for line in change["body"].splitlines() if line[:1] in (" ", "-")]
    assert around
    assert [line for line in around if line not in lines] == []


@pytest.mark.parametrize("page", [RECIPES, CONTRIBUTING], ids=lambda page: page.name)
def test_paths_on_a_page_are_there(page: Path):
    paths = PATH.findall(page.read_text(encoding="utf-8"))
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_four_answers_name_what_is_there():
    answers = CONTRIBUTING.read_text(encoding="utf-8").partition("## Four answers")[2].partition("\n## ")[0]
    symbols = SYMBOL.findall(answers)
    assert answers.count("\n| ") == 5  # a head, and four answers
    assert len(symbols) >= 4
    for name, path in symbols:
        assert re.search(
            rf"^\s*(def|class) {name}\b|^{name}\b.*=", (ROOT / path).read_text(), re.MULTILINE
        ), name


def test_the_layers_on_the_page_are_those_of_the_contract():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["id"] == "layers")
    assert "\n".join(layers[1:]) in CONTRIBUTING.read_text(encoding="utf-8")


def test_the_glossary_has_every_word():
    text = GLOSSARY.read_text(encoding="utf-8")
    terms = {
        word.strip() for line in re.findall(r"^(.+)\n: ", text, re.MULTILINE) for word in line.split(",")
    }
    emphasized = set(re.findall(r"\*([\w -]+)\*", text))
    words = {word.strip() for word in WORDS.replace("\n", " ").split(",")}
    assert words <= terms | emphasized
