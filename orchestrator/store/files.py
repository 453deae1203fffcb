"""Files and folders that are there whole or not at all, also after a crash or a power cut.

What is *synced* is on the disk, not only in the system's cache. A file's data is synced before the name that makes it
count, and the folder that holds the name after it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from orchestrator.store.owners import make_private, permissions

__all__ = [
    "digest_of",
    "files_in",
    "remove",
    "size_of",
    "sync",
    "write_atomically",
    "write_beside",
    "write_if_changed",
]

_BLOCK = 1 << 20


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that a reader, or a crash, sees the old content or the new one, nothing between."""
    make_private(path.parent)
    temporary = write_beside(path, lambda file: file.write(data), permissions(path, 0o666))
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_beside(path: Path, fill: Callable[[BinaryIO], object], mode: int = 0o666) -> Path:
    """Writes what is to be a file under a temporary name beside it, syncs it, and returns that name.

    Renaming it puts the file in its place in one step; what fails before leaves nothing behind.

    Args:
        path: Where the file is to be.
        fill: Writes the content to an open file.
        mode: Permissions of the new file, before the process's mask.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    # New, and no link: nobody else has put anything under this name.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(temporary, flags, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def write_if_changed(path: Path, data: bytes) -> None:
    """Writes a file atomically, unless it has that content: a folder that can only be read may have it."""
    with contextlib.suppress(OSError):
        if path.read_bytes() == data:
            return
    write_atomically(path, data)


def files_in(folder: Path) -> list[Path]:
    """Returns the files below a folder, in order of their path."""
    paths = [Path(base, name) for base, _, names in os.walk(folder) for name in names]
    return sorted(paths, key=lambda path: path.relative_to(folder).as_posix())


def size_of(folder: Path) -> int:
    """Returns the bytes of all files below a folder; what vanishes meanwhile counts as nothing."""
    total = 0
    for path in files_in(folder):
        with contextlib.suppress(OSError):
            total += path.lstat().st_size
    return total


def digest_of(path: Path) -> str:
    """Returns a file's SHA-256, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Syncs a file's data or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(folder: Path, staging_path: Path) -> None:
    """Removes a folder in one step for whoever looks: it is renamed first, then emptied.

    Args:
        folder: The folder.
        staging_path: A name beside it that nobody uses; it stays behind if the process is killed meanwhile.

    Raises:
        OSError: It cannot be moved away; what cannot be emptied then is left for the next cleaning.
    """
    folder.replace(staging_path)
    shutil.rmtree(staging_path, ignore_errors=True)
