"""Errors of the file system while a store is written, in words that a user can act on.

A full disk is not always an ``OSError``: torch reports it as a ``RuntimeError``, a compiler's wrapper as whatever it
likes. So an error counts as one of a full disk if a cause of it says so, or if the disk has no room now.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path

from orchestrator.errors import CompileError

__all__ = ["as_compile_error", "disk_full_error", "disk_is_full", "release_frames"]

_FULL = (errno.ENOSPC, errno.EDQUOT)
#: Less than this cannot hold an artifact.
_NO_ROOM = 16 * 1024


def disk_is_full(error: BaseException, folder: Path) -> bool:
    """Tells whether an error, or what it came from, is that of a full disk."""
    is_full_disk = any(isinstance(cause, OSError) and cause.errno in _FULL for cause in _chain(error))
    return is_full_disk or _free(folder) < _NO_ROOM


def release_frames(error: BaseException) -> None:
    """Lets go of what the frames of an error hold: a file still open in one keeps its room on the disk."""
    for cause in _chain(error):
        traceback.clear_frames(cause.__traceback__)


def _chain(error: BaseException) -> Iterator[BaseException]:
    visited_ids: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in visited_ids:
        yield cause
        visited_ids.add(id(cause))
        cause = cause.__cause__ or cause.__context__


@contextlib.contextmanager
def as_compile_error(what: str, folder: Path, **objects: object) -> Iterator[None]:
    """Turns an error of the file system into a :class:`CompileError` that says what, where and the way out.

    Args:
        what: What is being done, as in "The artifact of 'vision' cannot be stored".
        folder: The store.
        objects: Attributes of the error.
    """
    try:
        yield
    except OSError as error:
        raise _compile_error(what, error, folder, objects) from error


def disk_full_error(what: str, error: Exception, folder: Path, **objects: object) -> CompileError:
    """Returns the error of a full disk."""
    return CompileError(
        f"{what} in {str(folder)!r}: the disk is full ({_free(folder):,} bytes are free). Nothing half-written is "
        f"left; free some space (`orchestrator cache clean --store {folder}` removes artifacts) or use a folder on "
        f"another disk, and compile again. ({_first_line(error)})",
        path=folder,
        **objects,
    )


def _compile_error(what: str, error: OSError, folder: Path, objects: dict[str, object]) -> CompileError:
    if error.errno in _FULL:
        return disk_full_error(what, error, folder, **objects)
    return CompileError(
        f"{what} in {str(folder)!r}: {_first_line(error)}. Give a folder that can be made and written to.",
        path=folder,
        **objects,
    )


def _free(folder: Path) -> int:
    """Bytes that can be written where a folder is or would be."""
    for place in (folder, *folder.absolute().parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return 1 << 62


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
