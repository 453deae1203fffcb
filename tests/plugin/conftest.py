"""Real distributions made in a temporary folder, found by the real importlib.metadata."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.plugin import PluginManager
from orchestrator.registry import DISABLE_VARIABLE


class Site:
    """A folder on `sys.path` that takes modules and distributions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def module(self, name: str, source: str) -> None:
        (self.folder / f"{name}.py").write_text(textwrap.dedent(source), encoding="utf-8")

    def distribution(self, name: str, entry_points: dict[str, str], version: str = "1.0") -> None:
        """Writes the metadata of a distribution whose entry points are in the group `orchestrator`."""
        lines = "".join(f"{plugin} = {target}\n" for plugin, target in entry_points.items())
        self.raw_distribution(name, f"[orchestrator]\n{lines}", version)

    def raw_distribution(self, name: str, entry_points: str, version: str = "1.0") -> None:
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(entry_points)

    def plugin(self, name: str, source: str, version: str = "1.0") -> None:
        """A distribution `{name}-dist` with one module `{name}_plugin` that is the plugin `name`."""
        self.module(f"{name}_plugin", f"from orchestrator.plugin import hookimpl\n{textwrap.dedent(source)}")
        self.distribution(f"{name}-dist", {name: f"{name}_plugin"}, version)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delenv(DISABLE_VARIABLE, raising=False)
    before = set(sys.modules)
    yield Site(folder)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> PluginManager:
    """A manager of no plugins."""
    monkeypatch.delenv(DISABLE_VARIABLE, raising=False)
    return PluginManager(load_entry_points=False)
