"""Artifacts on disk: what a name of them depends on, and how they get there whole or not at all.

    keys           a digest of everything that goes into compiling
    artifacts      the store: find, obtain, list, verify, clean
    layout         where things are in it, and locks
    entries        what it holds, and in which state
    cleaning       removing artifacts
    manifest       what a folder must hold to be an artifact
    seals          files that are finished before all of an artifact is
    files          writing, hashing, moving away
    errors         errors of the file system, as a user can act on them

Nothing here needs torch. A name is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.lazy import lazy_names

if TYPE_CHECKING:
    from orchestrator.store.artifacts import ArtifactStore, CleanReport, StoreEntry
    from orchestrator.store.files import write_atomically
    from orchestrator.store.keys import content_key

__all__ = [
    "ArtifactStore",
    "CleanReport",
    "StoreEntry",
    "content_key",
    "write_atomically",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Artifact": ".artifacts",
        "ArtifactStore": ".artifacts",
        "Cleaned": ".artifacts",
        "Entry": ".artifacts",
        "content_key": ".keys",
        "write_atomically": ".files",
    },
)
