"""Results of fake operations that outlive their process, so that the first plan of the next one costs less.

What an operation gives by the metadata of its arguments hangs on torch alone, never on a user's code. So a line of this
file is a fact about one release of torch: a digest of the operation with its arguments, and the metadata of the result.
A file is read whole when the first result is asked for, and each plan appends what it learned in one write; a line that
is damaged is no line.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from pathlib import Path

import torch

from orchestrator.errors import CompileError
from orchestrator.store.owners import check_private, make_private

__all__ = ["FOLDER_VARIABLE", "ResultFile", "cache_folder", "digest_of"]

#: Environment variable that names the folder of these files; empty: nothing is kept.
FOLDER_VARIABLE = "ORCHESTRATOR_CACHE"

#: Goes up when a key or a result is written in another way.
_VERSION = 1

#: Bytes of a file that is read, 60,000 results or so; a larger one is begun anew.
LIMIT_BYTES = 16 << 20

_DIGEST_LENGTH = 32


def cache_folder() -> Path | None:
    """Returns the folder of what may be thrown away at any time; None: there is none.

    It is what ``ORCHESTRATOR_CACHE`` names, else the usual place of the system below the home of the user.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is not None:
        return Path(folder) if folder else None
    with contextlib.suppress(RuntimeError):  # a user without a home
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "stage-orchestrator"
        base = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
        return (Path(base) if base else Path.home() / ".cache") / "stage-orchestrator"
    return None


class ResultFile:
    """The results that are known for the torch of this process.

    A folder that cannot be read or written, or that somebody else could write to, is left alone: then nothing is kept.
    """

    # Without a lock, which a thread could hold while another one forks: each step below is one of a dict, and whole.
    def __init__(self) -> None:
        self._lines: dict[str, str] | None = None
        self._new_lines: dict[str, str] = {}

    def get(self, digest: str) -> str | None:
        """Returns the text of the result of a digest by :func:`digest_of`; None: it is not known."""
        if self._lines is None:
            self._lines = _read()
        return self._lines.get(digest)

    def put(self, digest: str, text: str) -> None:
        """Notes a result, as one line of text; :meth:`save` keeps it."""
        self._new_lines[digest] = text

    def save(self) -> None:
        """Appends what was noted since the last time."""
        lines: list[str] = []
        with contextlib.suppress(KeyError):
            while True:
                lines.append("{} {}\n".format(*self._new_lines.popitem()))
        if lines:
            with contextlib.suppress(OSError, CompileError):
                _append("".join(lines).encode())


def digest_of(key: object) -> str:
    """Returns the digest of an operation with its arguments, of values whose ``repr`` says all."""
    return hashlib.blake2b(repr(key).encode(), digest_size=_DIGEST_LENGTH // 2).hexdigest()


def _path() -> Path | None:
    folder = cache_folder()
    release = f"{torch.__version__}-{(torch.version.git_version or '')[:12]}"
    return None if folder is None else folder / "shapes" / f"{_VERSION}-torch-{release}.txt"


def _read() -> dict[str, str]:
    path = _path()
    if path is None:
        return {}
    try:
        check_private(path.parent)
        if path.stat().st_size > LIMIT_BYTES:
            return {}
        check_private(path)
        text = path.read_text(encoding="ascii")
    except (OSError, ValueError, CompileError):
        return {}
    # The last line may be under way still, or have been cut off by a full disk.
    lines = text.splitlines()[: None if text.endswith("\n") else -1]
    return {line[:_DIGEST_LENGTH]: line[_DIGEST_LENGTH + 1 :] for line in lines}


def _append(data: bytes) -> None:
    path = _path()
    if path is None:
        return
    make_private(path.parent)
    check_private(path.parent)
    is_full = path.exists() and path.stat().st_size + len(data) > LIMIT_BYTES
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if is_full else os.O_APPEND)
    descriptor = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)
