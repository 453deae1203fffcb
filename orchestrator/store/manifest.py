"""The manifest of an artifact: the file whose presence and truth make a folder an artifact.

It names the format and its version, the key, what the artifact is *about* (stage, device, sizes, for a person), and
every file with its size and SHA-256; and it holds a digest of itself. So a flipped byte is found wherever it is.
"""

from __future__ import annotations

import hashlib
import json
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.store.files import digest_of, files_in, sync
from orchestrator.store.owners import without_others

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
#: A manifest of an artifact of 100,000 files has fewer.
_MOST_BYTES = 32 << 20
#: The year 9999, in seconds.
_LATEST = 253_370_764_800


class OtherVersionError(Exception):
    """The folder was written in another version of the format."""


@dataclass(frozen=True)
class Manifest:
    """What a manifest says.

    Attributes:
        key: The artifact's content key.
        about: JSON-like data for a person.
        creation_time: Seconds since the epoch.
        files: Path in the folder, size in bytes and SHA-256 of every file.
    """

    key: str
    about: Mapping[str, Any]
    creation_time: float
    files: tuple[tuple[str, int, str], ...]

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size, _ in self.files)


def write_manifest(folder: Path, key: str, about: Mapping[str, Any]) -> None:
    """Describes what a folder holds now, and syncs all of it.

    Raises:
        ValueError: It holds what is no plain file, or one with the manifest's name.
    """
    files = []
    for path in files_in(folder):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ValueError(f"{path.name!r} in an artifact's folder is no plain file.")
        without_others(path)
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
    (folder / NAME).write_text(_with_digest(plain), encoding="utf-8")
    for path in (folder / NAME, *{file.parent for file in files_in(folder)}, folder):
        without_others(path)
        sync(path)


def read_manifest(folder: Path) -> Manifest:
    """Reads a manifest and checks it against itself.

    Raises:
        OtherVersionError: It is in another version of the format.
        ValueError: It is damaged.
        OSError: It is not there, or cannot be read.
    """
    text = _text(folder / NAME)
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{NAME} is nested too deeply") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{NAME} is not that of an artifact")
    if content.get("version") != VERSION:
        raise OtherVersionError(f"it is in version {content.get('version')!r} of the format, not {VERSION}")
    body = {name: value for name, value in content.items() if name != "digest"}
    if _with_digest(body) != text:
        raise ValueError(f"{NAME} was changed after it was written")
    return _parse(body)


def _text(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"{NAME} has more than {_MOST_BYTES:,} bytes")
    return data.decode()


def _parse(body: Mapping[str, Any]) -> Manifest:
    """Checks every part of a manifest, since somebody else may have written it."""
    files = tuple((item["path"], item["size"], item["sha256"]) for item in body["files"])
    for name, size, digest in files:
        if not (_is_inside(name) and type(size) is int and isinstance(digest, str)):
            raise ValueError(f"{NAME} lists {name!r}, which is no file in the folder")
    key, about, creation_time = body["key"], body["about"], body["created"]
    if not (isinstance(key, str) and isinstance(about, dict) and _is_time(creation_time)):
        raise ValueError(f"{NAME} is malformed")
    return Manifest(key, about, creation_time, files)


def _is_inside(name: object) -> bool:
    """Whether a name is that of a file below a folder: relative, and going down only."""
    if not isinstance(name, str) or not name or "\\" in name or "\0" in name:
        return False
    return not any(part in ("", ".", "..") for part in name.split("/"))


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < _LATEST


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
            # Links are not followed: not the last one, and none on the way.
            links = [each for each in (path, *path.parents) if folder in each.parents and each.is_symlink()]
            status = path.lstat()
            if links or not stat.S_ISREG(status.st_mode):
                return f"{name} is no plain file"
            if status.st_size != size:
                return f"{name} has {status.st_size} bytes, not {size}"
            if checksums and digest_of(path) != digest:
                return f"the content of {name} is not what was written"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
    return ""


def _with_digest(body: dict[str, Any]) -> str:
    """The manifest's one spelling, with a digest of all the rest at its end."""
    digest = hashlib.sha256(json.dumps(body, indent=1).encode()).hexdigest()
    return json.dumps({**body, "digest": digest}, indent=1)
