"""How the code reads stays as good as it is: limits for the figures that `python -m tests.meta.house` prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.meta.house import (
    PACKAGES,
    circles,
    homonyms,
    is_participle,
    kind_tests,
    long_functions,
    participles,
    sources,
)

PARTICIPLES_PER_1000 = 5
COMMENTED_SHARE = 0.4
KIND_TESTS = 20


def package_id(package: Path) -> str:
    return package.name


@pytest.mark.parametrize("package", PACKAGES, ids=package_id)
def test_no_circle_of_imports_between_files(package: Path):
    assert circles(package) == []


@pytest.mark.parametrize("package", PACKAGES, ids=package_id)
def test_names_are_nouns_of_what_they_hold(package: Path):
    uses, total = participles(sources([package]))
    assert 1000 * uses.total() / total < PARTICIPLES_PER_1000, uses.most_common(20)


@pytest.mark.parametrize("package", PACKAGES, ids=package_id)
def test_long_functions_say_their_phases(package: Path):
    functions = [item for path in sources([package]) for item in long_functions(path)]
    silent = [place for place, has_comment in functions if not has_comment]
    assert len(silent) <= (1 - COMMENTED_SHARE) * len(functions), silent


def test_few_places_ask_for_the_kind_of_a_step():
    places = [place for path in sources() for place in kind_tests(path)]
    assert len(places) < KIND_TESTS, places


def test_no_two_classes_share_a_name():
    assert homonyms(sources()) == {}


def test_the_measures_see_what_they_are_for(tmp_path: Path):
    package = tmp_path / "house"
    package.mkdir()
    (package / "one.py").write_text("def f():\n    from house.two import g\n    return g\n", encoding="utf-8")
    (package / "two.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house.one\n"
        "given = g = 1\nloop.kind == 2\nnode.kind == 3\n",
        encoding="utf-8",
    )
    assert circles(package) == [["house.one", "house.two"]]
    assert participles(sources([package]))[0] == {"given": 1}
    assert len(list(kind_tests(package / "two.py"))) == 1
    assert is_participle("_padded")
    assert not is_participle("padded_shape")
    assert not is_participle("seed")
