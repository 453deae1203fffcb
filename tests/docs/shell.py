"""Command lines run in processes that start with torch imported: that is two thirds of what a short one costs.

A server process imports what commands need and forks for each of them; the child has a folder, an environment and
streams of its own and ends as the command ends. A line that needs a shell gets one.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shlex
import subprocess
import sys
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

__all__ = ["join", "run_line", "start"]

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
    code = join(start(shlex.split(line), folder, printed, printed, dict(os.environ)))
    return code, printed.read_text(encoding="utf-8")


def start(
    words: list[str], folder: Path, stdout: Path, stderr: Path, environment: dict[str, str]
) -> ForkServerProcess:
    """Starts a command; the first word is its name, and both streams are files, which may be one, or terminals."""
    child = _server().Process(target=_command, args=(words, folder, stdout, stderr, environment))
    child.start()
    return child


def join(child: ForkServerProcess) -> int:
    """Waits for a command; returns its exit code.

    Raises:
        subprocess.TimeoutExpired: It takes more than 300 seconds.
    """
    child.join(SECONDS)
    if child.exitcode is None:
        child.kill()
        child.join()
        raise subprocess.TimeoutExpired(child.name, SECONDS)
    return child.exitcode


def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _command(words: list[str], folder: Path, stdout: Path, stderr: Path, environment: dict[str, str]) -> None:
    """What the child does: the command's entry point, as the script in ``bin`` calls it."""
    for path, number in ((stdout, 1), (stderr, 2)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY)
        os.dup2(descriptor, number)
        os.close(descriptor)
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
