"""Artifacts on disk: what a name of them depends on, and how they get there whole or not at all.

    keys           a digest of everything that goes into compiling
    artifacts      the store: find, obtain, list, verify, clean
    layout         where things are in it, and locks
    entries        what it holds, and in which state
    cleaning       removing artifacts
    manifest       what a folder must hold to be an artifact
    files          writing, hashing, moving away
    errors         errors of the file system, as a user can act on them

Nothing here needs torch. A name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.store.artifacts import ArtifactStore, Cleaned, Entry
    from orchestrator.store.files import write_atomically
    from orchestrator.store.keys import content_key

__all__ = [
    "ArtifactStore",
    "Cleaned",
    "Entry",
    "content_key",
    "write_atomically",
]

_HOMES = {
    "content_key": "keys",
    "write_atomically": "files",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'orchestrator.store' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"orchestrator.store.{_HOMES.get(name, 'artifacts')}"), name)
    globals()[name] = value
    return value
