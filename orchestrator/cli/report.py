"""How a command ends: its result, or one line that says what is wrong, and the exit code.

A *usage error* is one that another command line would mend; a *job error* is any other. The package's table
says which is which. A *reply* is the answer of a command to a program that asked with ``--json``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import typer

from orchestrator.errors import OrchestratorError

__all__ = ["JobError", "Reply", "UsageError", "reporting"]

EXIT_FAILURE, EXIT_USAGE = 1, 2


class UsageError(Exception):
    """The command line is at fault: exit code 2."""


class JobError(Exception):
    """The job failed on something outside the library, such as a file or a factory: exit code 1."""


@dataclass
class Reply:
    """The document that ``--json`` prints.

    Attributes:
        data: The document; ``None`` if there is none.
        text: The document where it is JSON text already.
    """

    data: Any = None
    text: str | None = None

    def dump(self) -> str:
        """Returns the document as JSON text."""
        return self.text if self.text is not None else json.dumps(self.data, indent=2, allow_nan=False)


@contextlib.contextmanager
def reporting(*, as_json: bool = False, debug: bool = False) -> Iterator[Reply]:
    """Runs a command's body and turns how it ends into output and exit code.

    Args:
        as_json: Keep stdout for the reply or the error, as JSON.
        debug: Show the traceback of an error.

    Raises:
        typer.Exit: With the exit code of an error; the message went to stderr.
    """
    reply = Reply()
    try:
        with _stdout_kept() if as_json else contextlib.nullcontext():
            yield reply
    except (UsageError, JobError, OrchestratorError) as error:
        if debug:
            traceback.print_exc()
        typer.echo(f"error: {error}", err=True)
        if as_json:
            typer.echo(_error_json(error))
        raise typer.Exit(EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILURE) from None
    except Exception as error:
        # A fault of this program or of a library: the traceback follows, since nobody else can explain it.
        if as_json:
            typer.echo(_error_json(error))
        raise
    if as_json:
        typer.echo(reply.dump())


def _error_json(error: Exception) -> str:
    return json.dumps({"error": {"type": type(error).__name__, "message": str(error)}}, indent=2)


@contextlib.contextmanager
def _stdout_kept() -> Iterator[None]:
    """Sends prints of a user's module, of a stage and of a compiler's process to stderr."""
    sys.stdout.flush()
    try:
        stdout_copy = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # a closed stream: there is nothing to keep
        stdout_copy = None
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stderr.flush()
        if stdout_copy is not None:
            os.dup2(stdout_copy, 1)
            os.close(stdout_copy)
