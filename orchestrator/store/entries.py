"""What a store holds, and in which state it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from orchestrator.store.files import size_of
from orchestrator.store.manifest import NAME, VERSION, OtherVersionError, fault_of, read_manifest

__all__ = ["StoreEntry", "inspect"]

State: TypeAlias = Literal["ok", "damaged", "other version"]


@dataclass(frozen=True)
class StoreEntry:
    """What a store holds under one key.

    Attributes:
        key: The content key.
        path: The artifact's folder.
        state: ``ok``; ``damaged``: a file is not as the manifest says; ``other version``: written by a release with
            another format, and not used by this one.
        bytes: Bytes on disk.
        creation_time: When it was made, in seconds since the epoch; 0: not known.
        last_use: When it was last asked for.
        about: What it is: stage, device, sizes.
        fault: What is wrong, unless it is ``ok``.
    """

    key: str
    path: Path
    state: State
    bytes: int = 0
    creation_time: float = 0.0
    last_use: float = 0.0
    about: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""


def inspect(place: Path, checksums: bool = True) -> StoreEntry:
    """Returns what a folder holds, and in which state.

    Args:
        place: The folder, named by its key.
        checksums: Read every byte; else the manifest and sizes alone tell what is damaged.
    """
    # The manifest's time is set whenever somebody asks for the artifact, so it is read before what may be damaged.
    last_use = 0.0
    try:
        last_use = (place / NAME).stat().st_mtime
        manifest = read_manifest(place)
    except OtherVersionError as error:
        return StoreEntry(
            place.name, place, "other version", size_of(place), last_use=last_use, fault=str(error)
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        return StoreEntry(
            place.name, place, "damaged", size_of(place), last_use=last_use, fault=_manifest_fault(error)
        )
    fault, state = fault_of(place, manifest, checksums), "damaged"
    # A whole artifact in another's place would be run under a key that is not that of its content.
    if manifest.key != place.name:
        fault = f"it is the artifact {manifest.key}, and was moved here"
    elif not fault and place.parent.parent.name != str(VERSION):
        fault, state = f"it is among those of version {place.parent.parent.name}", "other version"
    return StoreEntry(
        place.name,
        place,
        state if fault else "ok",  # type: ignore[arg-type]
        size_of(place),
        manifest.creation_time,
        last_use,
        manifest.about,
        fault,
    )


def _manifest_fault(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"it has no {NAME}"
    return f"{NAME} cannot be read: {error}"
