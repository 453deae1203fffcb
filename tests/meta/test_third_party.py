"""A distribution that somebody else made: built, installed, and used by name from the command line.

Its source is in `acme/` beside this file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).parent / "acme"

COMMANDS = """
import json
from typer.testing import CliRunner
from orchestrator.cli import app

for words in {commands}:
    done = CliRunner().invoke(app, words, prog_name="orchestrator")
    assert done.exit_code == 0, done.output
    print(json.dumps(json.loads(done.stdout)))
"""


def run(*words: str | Path, cwd: Path, site: Path | None = None) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site)} if site else None
    command = [sys.executable, "-m", *(str(word) for word in words)]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the distribution is installed in."""
    folder = tmp_path_factory.mktemp("acme")
    run("hatchling", "build", "-t", "wheel", "-d", folder / "dist", cwd=SOURCE)
    (wheel,) = (folder / "dist").glob("*.whl")
    options = ("--quiet", "--no-index", "--no-deps", "--target", folder / "site")
    run("pip", "install", *options, wheel, cwd=folder)
    return folder / "site"


def test_all_it_registers_is_listed_with_its_distribution(site: Path, tmp_path: Path):
    found = json.loads(run("orchestrator", "list", "--json", cwd=tmp_path, site=site))
    names = {kind: {row["name"]: row for row in rows} for kind, rows in found.items()}
    for kind, name in (("stages", "acme.scale"), ("backends", "acme"), ("pipelines", "acme-scales")):
        row = names[kind][name]
        assert (row["distribution"], row["version"]) == ("acme-orchestrator", "3.2")
    assert names["plugins"]["acme"]["status"] == "loaded"


def test_its_pipeline_runs_on_its_device_and_on_others(site: Path, tmp_path: Path):
    """One process runs the command on each device: torch is imported once."""
    devices = ["acme", "acme:1", "cpu"]
    x = np.arange(9, dtype=np.float32).reshape(3, 3)
    np.save(tmp_path / "x.npy", x)
    words = ("run", "acme-scales", "--input", "x=x.npy", "--set", "small.factor=3.0", "--json")
    commands = [[*words, "--device", device, "--out", f"out {device}"] for device in devices]
    (tmp_path / "commands.py").write_text(COMMANDS.format(commands=commands), encoding="utf-8")
    replies = run("commands", cwd=tmp_path, site=site).splitlines()
    for device, reply in zip(devices, replies, strict=True):
        np.testing.assert_array_equal(np.load(tmp_path / f"out {device}" / "y.npy"), x * 30)
        assert json.loads(reply)["stats"]["uploads"] == (0 if device == "cpu" else 1)


def test_its_device_mixes_with_another(site: Path, tmp_path: Path):
    words = ("plan", "acme-scales", "--placement", "large=acme", "--json")
    plan = json.loads(run("orchestrator", *words, cwd=tmp_path, site=site))
    assert {group["device"] for group in plan["groups"]} == {"cpu", "acme:0"}
