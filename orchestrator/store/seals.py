"""Seals: files of an artifact that are finished before all of it is, so that a build that was cut short goes on.

Who builds an artifact of many parts seals each of its files once it is whole. If the build is interrupted or killed,
the next one of the same key finds the files whose seal is true in its folder, and makes only the others. A seal is a
small file beside the one that it is of, with its digest; when the artifact is done, seals go.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.store.files import digest_of, files_in, sync, write_atomically

__all__ = ["bring_sealed", "has_seals", "remove_seals", "seal", "sealed_content"]

_SUFFIX = ".seal"


def seal(path: Path, content: Mapping[str, Any] | None = None) -> None:
    """Says that a file is whole.

    Args:
        path: The file; it does not change any more.
        content: JSON-like data about it, for the build that finds it.
    """
    sync(path)
    text = json.dumps({"sha256": digest_of(path), "content": dict(content or {})})
    write_atomically(_seal_of(path), text.encode())


def sealed_content(path: Path) -> dict[str, Any] | None:
    """Returns what was said of a file when it was sealed; None: it is not there, not sealed, or has changed since."""
    try:
        data = json.loads(_seal_of(path).read_bytes())
        content = data["content"]
        return content if data["sha256"] == digest_of(path) and isinstance(content, dict) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def bring_sealed(folders: Iterable[Path], target: Path) -> None:
    """Copies sealed files of builds that did not end into the folder of the next one.

    They are copied, not moved: a compiler that outlived its builder may still write there.
    """
    for folder in folders:
        for mark in (path for path in files_in(folder) if path.name.endswith(_SUFFIX)):
            source = mark.with_name(mark.name.removeprefix(".").removesuffix(_SUFFIX))
            copy = target / source.relative_to(folder)
            if source.is_symlink() or copy.exists() or sealed_content(source) is None:
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
            shutil.copyfile(mark, _seal_of(copy))


def has_seals(folder: Path) -> bool:
    """Tells whether a file in a folder is sealed."""
    return any(path.name.endswith(_SUFFIX) for path in files_in(folder))


def remove_seals(folder: Path) -> None:
    """Removes all seals, once all is there."""
    for path in files_in(folder):
        if path.name.endswith(_SUFFIX):
            path.unlink()


def _seal_of(path: Path) -> Path:
    return path.with_name(f".{path.name}{_SUFFIX}")
