"""The manifest of an artifact: the file whose presence and truth make a folder an artifact.

It names the format and its version, the key, what the artifact is *about* (stage, device, sizes, for a person), and
every file with its size and SHA-256; and it holds a digest of itself. So a flipped byte is found wherever it is.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.store.files import digest_of, files_in, sync

__all__ = [
    "FORMAT",
    "NAME",
    "VERSION",
    "Manifest",
    "OtherVersionError",
    "fault_of",
    "read_manifest",
    "write_manifest",
]

FORMAT = "stage-orchestrator artifact"
#: Version of the form of a manifest and of what its folder holds.
VERSION = 1
NAME = "orchestrator-manifest.json"


class OtherVersionError(Exception):
    """The folder was written in another version of the format."""


@dataclass(frozen=True)
class Manifest:
    """What a manifest says.

    Attributes:
        key: The artifact's content key.
        about: JSON-like data for a person.
        created: Seconds since the epoch.
        files: Path in the folder, size in bytes and SHA-256 of every file.
    """

    key: str
    about: Mapping[str, Any]
    created: float
    files: tuple[tuple[str, int, str], ...]

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size, _ in self.files)


def write_manifest(folder: Path, key: str, about: Mapping[str, Any]) -> None:
    """Describes what a folder holds now, and syncs all of it."""
    files = []
    for path in files_in(folder):
        sync(path)
        name = path.relative_to(folder).as_posix()
        if name == NAME:
            raise ValueError(f"The name {NAME!r} in an artifact's folder belongs to the store.")
        files.append({"path": name, "size": path.stat().st_size, "sha256": digest_of(path)})
    body = {
        "format": FORMAT,
        "version": VERSION,
        "key": key,
        "created": round(time.time(), 3),
        "about": dict(about),
        "files": files,
    }
    # To JSON and back: what is read again must have the same spelling.
    plain = json.loads(json.dumps(body, default=str))
    (folder / NAME).write_text(_sealed(plain), encoding="utf-8")
    for path in (folder / NAME, *{file.parent for file in files_in(folder)}, folder):
        sync(path)


def read_manifest(folder: Path) -> Manifest:
    """Reads a manifest and checks it against itself.

    Raises:
        OtherVersionError: It is in another version of the format.
        ValueError: It is damaged.
        OSError: It is not there, or cannot be read.
    """
    text = (folder / NAME).read_text(encoding="utf-8")
    found = json.loads(text)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{NAME} is not that of an artifact")
    if found.get("version") != VERSION:
        raise OtherVersionError(f"it is in version {found.get('version')!r} of the format, not {VERSION}")
    body = {name: value for name, value in found.items() if name != "digest"}
    if _sealed(body) != text:
        raise ValueError(f"{NAME} was changed after it was written")
    files = tuple((item["path"], item["size"], item["sha256"]) for item in found["files"])
    return Manifest(found["key"], found["about"], found["created"], files)


def fault_of(folder: Path, manifest: Manifest, checksums: bool = True) -> str:
    """Returns what is wrong with an artifact's files; empty: nothing is.

    Args:
        folder: The artifact.
        manifest: Its manifest.
        checksums: Read every byte; else only sizes are compared.
    """
    for name, size, digest in manifest.files:
        path = folder / name
        try:
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes, not {size}"
            if checksums and digest_of(path) != digest:
                return f"the content of {name} is not what was written"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
    return ""


def _sealed(body: dict[str, Any]) -> str:
    """The manifest's one spelling, with a digest of all the rest at its end."""
    digest = hashlib.sha256(json.dumps(body, indent=1).encode()).hexdigest()
    return json.dumps({**body, "digest": digest}, indent=1)
