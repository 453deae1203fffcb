"""Hooks of pre-commit run what `make check` runs, with the tools of the checkout, and fetch nothing."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIG = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_all_hooks_are_local():
    assert re.findall(r"- repo: (.+)", CONFIG) == ["local"]
    assert set(re.findall(r"language: (.+)", CONFIG)) == {"system"}
    assert "://" not in CONFIG


def test_each_check_but_the_build_of_the_pages_has_a_hook():
    parts = re.findall(r"^check[a-z-]*:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    lines = re.findall(r"\$\(BIN\)/(.+)", "".join(parts))
    commands = {tuple(line.split()[:2]) for line in lines if "sphinx" not in line}
    assert len(parts) == 4
    assert len(commands) == 4
    hooks = {tuple(line.split()[:2]) for line in re.findall(r"entry: \.venv/bin/(.+)", CONFIG)}
    assert commands <= hooks
