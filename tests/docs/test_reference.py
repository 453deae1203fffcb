"""Reference pages name everything that there is: an entry of plans or an error that is new needs a line there."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from orchestrator import Plan, errors
from orchestrator.plan import serial

PAGES = Path(__file__).parents[2] / "docs" / "reference"
PLANS = (PAGES / "plan-json.md").read_text(encoding="utf-8")
RECORDS = {record.__name__: [item.name for item in fields(record)] for record in serial._RECORDS}


def rows(page: str) -> list[tuple[str, str]]:
    """First cells of the tables of a page, and what follows them."""
    return re.findall(r"^\| (.+?) \| (.+) \|$", page, re.MULTILINE)


def named(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@pytest.mark.parametrize("record", RECORDS)
def test_every_entry_of_a_record_of_plans_is_listed_in_order(record: str):
    (listed,) = (entries for head, entries in rows(PLANS) if named(head)[:1] == [record] and "`" in entries)
    assert named(listed.partition(":")[0]) == RECORDS[record]


def test_every_part_of_a_plan_and_every_plain_object_is_listed():
    heads = {name for head, _ in rows(PLANS) for name in named(head)}
    assert {item.name for item in fields(Plan)} - {"loader"} | set(serial._SCALARS) <= heads
    assert f"reads version {serial.VERSION}." in PLANS


def test_every_error_has_a_line_and_its_docstring():
    page = (PAGES / "errors.md").read_text(encoding="utf-8")
    kinds = {name for name in errors.__all__ if name.endswith("Error")}
    heads = {name for head, _ in rows(page) for name in named(head)}
    assert kinds - {"OrchestratorError"} <= heads
    assert kinds == set(re.findall(r"autoexception:: orchestrator\.(?:errors\.)?(\w+)", page))
