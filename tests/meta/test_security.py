"""SECURITY.md says what there is: its names, variables and tests exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import orchestrator
from orchestrator.isolation.result_file import FOLDER_VARIABLE
from orchestrator.loader import STORE_VARIABLE
from orchestrator.store.owners import TRUSTED_VARIABLE
from orchestrator_neuron.options import OPTION_TYPES

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
CODE = re.findall(r"`([^`]+)`", TEXT)


@pytest.mark.parametrize("path", sorted({word for word in CODE if word.startswith("tests/")}))
def test_each_test_that_it_names_is_there(path: str):
    assert re.search(r"^(async )?def test_", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)


def test_each_border_names_a_test():
    part = TEXT.split("## What is data")[1].split("##")[0]
    rows = [line for line in part.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 8
    assert all("`tests/" in row.split("|")[-2] for row in rows)


def test_each_name_is_one_of_the_project():
    assert {word for word in CODE if word.isupper()} == {STORE_VARIABLE, TRUSTED_VARIABLE, FOLDER_VARIABLE}
    for name in ("Plan.from_json", "Pipeline.bind", "Plan.compile"):
        found: object = orchestrator
        for part in name.split("."):
            found = getattr(found, part)
    assert {"compiler_args", "checkpoint"} <= OPTION_TYPES.keys()


def test_the_readme_and_the_documentation_lead_to_it():
    assert "](SECURITY.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "SECURITY.md" in (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    assert "\nsecurity\n" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
