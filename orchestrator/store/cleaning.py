"""Removing artifacts, and what builds that did not end left behind; never what somebody is making now."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from orchestrator.store.entries import Entry, look
from orchestrator.store.files import remove, size_of
from orchestrator.store.layout import Layout

__all__ = ["Cleaned", "clean"]

_DAY = 86400.0


@dataclass(frozen=True)
class Cleaned:
    """What a cleaning did.

    Attributes:
        removed: Artifacts that are gone.
        leftovers: How many folders of builds that did not end are gone.
        bytes: What that freed.
        held: Keys that were left alone, since somebody holds their lock.
    """

    removed: tuple[Entry, ...] = ()
    leftovers: int = 0
    bytes: int = 0
    held: tuple[str, ...] = ()


def clean(layout: Layout, damaged: bool, unused_days: float | None) -> Cleaned:
    """Removes what :meth:`ArtifactStore.clean` says.

    Raises:
        OSError: The store cannot be written to.
    """
    if not layout.places() and not layout.leftovers():
        return Cleaned()
    layout.prepare()
    before = time.time() - unused_days * _DAY if unused_days is not None else float("inf")
    removed: list[Entry] = []
    held: list[str] = []
    for place in layout.places():
        if _unwanted(place, damaged, before):
            with layout.locked(place.name, wait=False) as mine:
                # Looked at again: whoever held the lock may have mended it.
                entry = _unwanted(place, damaged, before)
                if mine and entry:
                    remove(place, layout.aside(place))
                    removed.append(entry)
                elif entry:
                    held.append(place.name)
    swept = [_sweep(layout, leftover, held) for leftover in layout.leftovers()]
    gone = [size for size in swept if size is not None]
    freed = sum(entry.bytes for entry in removed) + sum(gone)
    return Cleaned(tuple(removed), len(gone), freed, tuple(dict.fromkeys(held)))


def _unwanted(place: Path, damaged: bool, before: float) -> Entry | None:
    if not place.is_dir():
        return None
    entry = look(place, checksums=damaged)
    return entry if entry.used < before and (entry.state == "damaged" or not damaged) else None


def _sweep(layout: Layout, leftover: Path, held: list[str]) -> int | None:
    """Removes a leftover; returns its bytes, or None if its maker lives."""
    key = layout.key_of(leftover)
    with layout.locked(key, wait=False) as mine:
        if not mine:
            held.append(key)
            return None
        size = size_of(leftover)
        shutil.rmtree(leftover, ignore_errors=True)
        return size
