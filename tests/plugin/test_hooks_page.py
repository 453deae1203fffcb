"""The reference page lists every hook as it is declared."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.plugin.hookspecs import HOOKS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "hooks.md"
TERM = re.compile(r"^`(?P<name>orchestrator_\w+)\((?P<parameters>[\w, ]*)\)`$", re.MULTILINE)


def test_every_hook_is_listed_with_its_parameters():
    text = PAGE.read_text(encoding="utf-8")
    listed = {match["name"]: tuple(match["parameters"].split(", ")) for match in TERM.finditer(text)}
    assert listed == HOOKS
