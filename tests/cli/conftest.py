"""A user's folder with pipelines of their own, and a shell to run commands in it.

The folder also plays the part of an environment: it holds two installed distributions, `acme`, whose plugin
registers pipelines and a stage, and `ruin`, whose plugin cannot be imported.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.plugin import manager

SHOP = Path(__file__).with_name("shop.py")

ACME = """
from orchestrator import hookimpl

@hookimpl
def orchestrator_register_pipelines(registry):
    registry.add("acme-double", "shop:double", summary="twice as much")
    registry.add("acme-gone", "shop:no_such_thing")

@hookimpl
def orchestrator_register_stages(registry):
    registry.add("acme.scale", "shop:Scale", summary="times a factor")
"""


@dataclass
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """The JSON on stdout, which holds nothing else."""
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


class Shell:
    """Runs commands in this process."""

    def __call__(self, *words: object, code: int = 0) -> Result:
        """Runs a command and checks its exit code."""
        done = CliRunner().invoke(app, [str(word) for word in words], prog_name="orchestrator")
        result = Result(done.exit_code, done.stdout, done.stderr)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert result.code == code, f"{result.code}\n{result.out}\n{result.err}"
        return result


def install(folder: Path, name: str, plugin: str, source: str) -> None:
    """Puts a distribution with one plugin into a folder on `sys.path`."""
    (folder / f"{plugin}.py").write_text(source)
    meta = folder / f"{name}-0.3.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.3\n")
    (meta / "entry_points.txt").write_text(f"[orchestrator]\n{name} = {plugin}\n")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's folder; it is the current one."""
    install(tmp_path, "acme", "acme_plugin", ACME)
    install(tmp_path, "ruin", "ruin_plugin", "import no_such_library_for_ruin\n")
    (tmp_path / "shop.py").write_text(SHOP.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(manager, "_default", None)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "") or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def shell(folder: Path) -> Shell:
    """Commands run in the user's folder."""
    return Shell()
