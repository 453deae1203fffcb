"""How long ``import orchestrator`` and ``orchestrator --help`` take, as whole processes."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.bench.measure import ROOT, Effort, Row, processes

LIMIT = 2.5
BARE = """\
import typer

app = typer.Typer()


@app.command()
def main(name: str, count: int = 1) -> None:
    print(name * count)


if __name__ == "__main__":
    app()
"""
HEAVY = ("torch", "networkx", "numpy")


def rows(effort: Effort, device: str) -> Iterator[Row]:
    """Measures; yields rows."""
    assert device == "cpu"
    rounds = effort.rounds(31)
    yield _import("orchestrator", rounds)
    if not effort.quick:
        yield _import("torch", 5)
    yield _help(rounds)


def _import(module: str, rounds: int) -> Row:
    pair = processes([sys.executable, "-c", f"import {module}"], [sys.executable, "-c", "pass"], rounds)
    found = loaded(module)
    ours = module == "orchestrator"
    note = f"loads {' and '.join(found)}" if found else "loads neither torch nor networkx"
    return Row(
        "start",
        f"import {module}",
        "ms",
        pair.ours * 1e3,
        pair.reference * 1e3,
        pair.difference * 1e3,
        "ms",
        equal=not found if ours else None,
        note=note if ours else "for comparison",
    )


def loaded(module: str) -> list[str]:
    """Returns which heavy modules an import brings along."""
    code = f"import sys, {module}; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    return done.stdout.split()


def command() -> list[str]:
    """The installed command; the module where there is none."""
    script = Path(sysconfig.get_path("scripts")) / "orchestrator"
    return [sys.executable, str(script)] if script.is_file() else [sys.executable, "-m", "orchestrator"]


def _help(rounds: int) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder, "bare.py")
        bare.write_text(BARE, encoding="utf-8")
        pair = processes([*command(), "--help"], [sys.executable, str(bare), "--help"], rounds)
    return pair.row(
        "start", "orchestrator --help", limit=LIMIT, note="against a typer program of one command"
    )
