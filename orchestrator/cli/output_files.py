"""Write files so that no reader ever sees half of one, and that nothing is written outside of a folder.

A file is written under a temporary name in its own folder, then renamed, which replaces an older file (or a symbolic
link, not what it leads to) in one step. It gets the permissions of any new file. A *batch* of files is written whole
before the first of them is renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from orchestrator.cli.report import JobError
from orchestrator.store.files import write_beside

__all__ = ["Batch", "file_stem", "file_stems", "write_file", "write_text"]

Fill = Callable[[BinaryIO], object]

#: Characters that separate folders or mean something to a file system or a shell of one of the systems.
_SPECIAL = frozenset('/\\:*?"<>|%')
#: Names that Windows keeps for devices, whatever their ending.
_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}
)
#: Bytes of a name, so that an ending and a temporary name fit beside it.
_LONGEST = 180


def write_file(path: Path, fill: Fill) -> Path:
    """Writes a file atomically and returns its path.

    Args:
        path: The file.
        fill: Writes the content to an open file.

    Raises:
        JobError: It cannot be written.
    """
    with Batch() as batch:
        batch.write(path, fill)
    return path


def write_text(path: Path, text: str) -> Path:
    """Writes a text file in UTF-8 atomically and returns its path.

    Raises:
        JobError: It cannot be written.
    """
    return write_file(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))


class Batch:
    """Files that are there all, or not at all: a context that renames them at its end, or removes them."""

    def __init__(self) -> None:
        self._files: list[tuple[Path, Path]] = []
        self._folders: list[Path] = []

    def write(self, path: Path, fill: Fill) -> Path:
        """Writes the content of a file beside its place, and returns the place.

        Raises:
            JobError: It cannot be written.
        """
        try:
            if path.is_dir() and not path.is_symlink():
                raise IsADirectoryError(None, "there is a folder of that name")
            self._files.append((write_beside(path, fill), path))
        except OSError as error:
            raise _unwritable(path, error) from error
        return path

    def folder(self, path: Path) -> Path:
        """Makes a folder below one that exists, unless it is there; it does not lead elsewhere.

        Raises:
            JobError: It cannot be made, or is a symbolic link.
        """
        try:
            if path.is_symlink():
                raise OSError(None, "it is a symbolic link, and outputs stay in their folder")
            if not path.is_dir():
                path.mkdir()
                self._folders.append(path)
        except OSError as error:
            raise _unwritable(path, error) from error
        return path

    def __enter__(self) -> Batch:
        """Begins."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Puts all files in their places, or removes them.

        Raises:
            JobError: One cannot be put there.
        """
        # All content is written by now; renaming is all that is left, and the first that fails ends it.
        try:
            while error is None and self._files:
                temporary, path = self._files[0]
                try:
                    temporary.replace(path)
                except OSError as cause:
                    raise _unwritable(path, cause) from cause
                del self._files[0]
            self._folders = [] if error is None else self._folders
        # What is still listed was not put in its place: it goes, and the folders made for it.
        finally:
            for temporary, _ in self._files:
                with contextlib.suppress(OSError):
                    temporary.unlink()
            for folder in self._folders:
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _unwritable(path: Path, error: OSError) -> JobError:
    return JobError(f"{str(path)!r} cannot be written: {error.strerror or error}.")


def file_stem(name: str) -> str:
    """Returns the file name of an output, without its ending, that every system takes: no path, and none too long.

    Characters that a file name may not have are written in hexadecimal after ``%``, as in an address.
    """
    text = "".join(f"%{ord(char):02X}" if _is_special(char) else char for char in name)
    if text.startswith((".", "~")) or text.endswith((".", " ")) or text.partition(".")[0].lower() in _DEVICES:
        text = f"_{text}_"
    octets = text.encode("utf-8", "surrogatepass")
    if len(octets) > _LONGEST:
        digest = hashlib.sha256(octets).hexdigest()[:12]
        return f"{octets[: _LONGEST - 13].decode('utf-8', 'ignore')}~{digest}"
    return text or "_"


def file_stems(names: Iterable[str]) -> dict[str, str]:
    """Returns the file name of each output; they differ also where case or Unicode form do not count."""
    stems: dict[str, str] = {}
    keys: set[str] = set()
    for name in names:
        stem = plain = file_stem(name)
        number = 2
        while (key := unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem).casefold())) in keys:
            stem = f"{plain}~{number}"
            number += 1
        keys.add(key)
        stems[name] = stem
    return stems


def _is_special(char: str) -> bool:
    return char in _SPECIAL or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")
