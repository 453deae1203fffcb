"""A folder of artifacts, keyed by content.

An artifact's *key* is a digest of everything that went into compiling it. A file is complete or absent: it is
written beside its place, flushed, and renamed into it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from orchestrator.backend import Artifact

__all__ = ["ArtifactStore", "content_key", "write_atomically"]


def content_key(parts: Any) -> str:
    """Returns the digest (SHA-256, hex) of JSON-like data; other objects count by their ``repr``."""
    text = json.dumps(parts, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that a reader, or a crash, sees the old content or the new one, nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class ArtifactStore:
    """Artifacts below one folder.

    Args:
        path: The folder; made when something is written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def write_plan(self, plan: str, artifacts: Iterable[Artifact]) -> None:
        """Writes the plan's JSON and the index of its artifacts."""
        index = [{"stage": item.stage, "key": item.key, "sizes": dict(item.sizes)} for item in artifacts]
        write_atomically(self.path / "artifacts.json", json.dumps(index, indent=1).encode())
        write_atomically(self.path / "plan.json", plan.encode())
