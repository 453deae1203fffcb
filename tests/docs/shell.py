"""Command lines run in processes that start with torch imported: that is two thirds of what a short one costs.

A server process imports what commands need and forks for each of them; the child has a folder, an environment and
streams of its own and ends as the command ends. A line that needs a shell gets one.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import shlex
import subprocess
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path

__all__ = ["run_line"]

SECONDS = 300
NEEDS_SHELL = re.compile(r"[|&;<>$`*?~]")
QUOTED = re.compile(r"'[^']*'|\"[^\"$`]*\"")
PRELOADED = [
    "torch",
    "torch._dynamo",
    "orchestrator.cli.commands.check",
    "orchestrator.cli.commands.plan",
    "orchestrator.cli.commands.run",
    "orchestrator.pipeline",
]


def run_line(line: str, folder: Path) -> tuple[int | None, str]:
    """Runs a line that starts with ``orchestrator`` in a folder; returns its exit code and all that it printed.

    Raises:
        subprocess.TimeoutExpired: It takes more than 300 seconds.
    """
    if NEEDS_SHELL.search(QUOTED.sub("", line)):
        done = subprocess.run(
            line,
            shell=True,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
        )
        return done.returncode, done.stdout
    printed = folder / "printed.txt"
    child = _server().Process(target=_command, args=(shlex.split(line), folder, printed, dict(os.environ)))
    child.start()
    child.join(SECONDS)
    if child.exitcode is None:
        child.kill()
        child.join()
        raise subprocess.TimeoutExpired(line, SECONDS)
    return child.exitcode, printed.read_text(encoding="utf-8")


def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _command(words: list[str], folder: Path, printed: Path, environment: dict[str, str]) -> None:
    """What the child does: the command's entry point, as the script in ``bin`` calls it."""
    with printed.open("wb") as file, contextlib.suppress(OSError):
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - it stays open until the process ends
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    from orchestrator.cli import main

    try:
        main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
