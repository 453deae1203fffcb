"""What a store holds, and in which state it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from orchestrator.store.files import size_of
from orchestrator.store.manifest import NAME, VERSION, OtherVersionError, fault_of, read_manifest

__all__ = ["Entry", "look"]

State: TypeAlias = Literal["ok", "damaged", "other version"]


@dataclass(frozen=True)
class Entry:
    """What a store holds under one key.

    Attributes:
        key: The content key.
        path: The artifact's folder.
        state: ``ok``; ``damaged``: a file is not as the manifest says; ``other version``: written by a release with
            another format, and not used by this one.
        bytes: Bytes on disk.
        created: When it was made, in seconds since the epoch; 0: not known.
        used: When it was last asked for.
        about: What it is: stage, device, sizes.
        fault: What is wrong, unless it is ``ok``.
    """

    key: str
    path: Path
    state: State
    bytes: int = 0
    created: float = 0.0
    used: float = 0.0
    about: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""


def look(place: Path, checksums: bool = True) -> Entry:
    """Says what a folder holds, and in which state.

    Args:
        place: The folder, named by its key.
        checksums: Read every byte; else the manifest and sizes alone tell what is damaged.
    """
    used = 0.0
    try:
        used = (place / NAME).stat().st_mtime
        manifest = read_manifest(place)
    except OtherVersionError as error:
        return Entry(place.name, place, "other version", size_of(place), used=used, fault=str(error))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Entry(place.name, place, "damaged", size_of(place), used=used, fault=_told(error))
    fault, state = fault_of(place, manifest, checksums), "damaged"
    if manifest.key != place.name:
        fault = f"it is the artifact {manifest.key}, and was moved here"
    elif not fault and place.parent.parent.name != str(VERSION):
        fault, state = f"it is among those of version {place.parent.parent.name}", "other version"
    return Entry(
        place.name,
        place,
        state if fault else "ok",  # type: ignore[arg-type]
        size_of(place),
        manifest.created,
        used,
        manifest.about,
        fault,
    )


def _told(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"it has no {NAME}"
    return f"{NAME} cannot be read: {error}"
