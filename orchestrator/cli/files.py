"""Write files so that no reader ever sees half of one.

A file is written under a temporary name in its own folder, then renamed, which replaces an older file in one
step. It gets the permissions of any new file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from orchestrator.cli.report import JobError

__all__ = ["write_file", "write_text"]


def write_file(path: Path, fill: Callable[[BinaryIO], object]) -> Path:
    """Writes a file atomically and returns its path.

    Args:
        path: The file.
        fill: Writes the content to an open file.

    Raises:
        JobError: It cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                fill(file)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise JobError(f"{str(path)!r} cannot be written: {error.strerror or error}.") from error
    return path


def write_text(path: Path, text: str) -> Path:
    """Writes a text file in UTF-8 atomically and returns its path.

    Raises:
        JobError: It cannot be written.
    """
    return write_file(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))
