"""Removing artifacts, and what builds that did not end left behind; never what somebody is making now."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from orchestrator.store.entries import StoreEntry, inspect
from orchestrator.store.files import remove, size_of
from orchestrator.store.layout import StoreLayout

__all__ = ["CleanReport", "clean"]

_DAY = 86400.0


@dataclass(frozen=True)
class CleanReport:
    """What a cleaning did.

    Attributes:
        artifacts: Artifacts that are gone.
        stale_builds: How many folders of builds that did not end are gone.
        bytes: What that freed.
        busy_keys: Keys that were left alone, since somebody holds their lock.
    """

    artifacts: tuple[StoreEntry, ...] = ()
    stale_builds: int = 0
    bytes: int = 0
    busy_keys: tuple[str, ...] = ()


def clean(layout: StoreLayout, only_damaged: bool, unused_days: float | None) -> CleanReport:
    """Removes what :meth:`ArtifactStore.clean` says.

    Raises:
        OSError: The store cannot be written to.
    """
    if not layout.places() and not layout.stale_builds():
        return CleanReport()
    layout.prepare()
    # What was last used before this moment goes.
    before = time.time() - unused_days * _DAY if unused_days is not None else float("inf")
    artifacts: list[StoreEntry] = []
    busy_keys: list[str] = []
    for place in layout.places():
        if _entry_to_remove(place, only_damaged, before):
            with layout.lock(place.name, wait=False) as mine:
                # Inspected again under the lock: whoever held it may have built the artifact anew.
                entry = _entry_to_remove(place, only_damaged, before)
                if mine and entry:
                    remove(place, layout.staging_path(place))
                    artifacts.append(entry)
                elif entry:
                    busy_keys.append(place.name)
    stale_sizes = [_remove_stale(layout, stale_build, busy_keys) for stale_build in layout.stale_builds()]
    removed_sizes = [size for size in stale_sizes if size is not None]
    total_bytes = sum(entry.bytes for entry in artifacts) + sum(removed_sizes)
    return CleanReport(tuple(artifacts), len(removed_sizes), total_bytes, tuple(dict.fromkeys(busy_keys)))


def _entry_to_remove(place: Path, only_damaged: bool, before: float) -> StoreEntry | None:
    if not place.is_dir():
        return None
    entry = inspect(place, checksums=only_damaged)
    return entry if entry.last_use < before and (entry.state == "damaged" or not only_damaged) else None


def _remove_stale(layout: StoreLayout, stale_build: Path, busy_keys: list[str]) -> int | None:
    """Removes a stale build; returns its bytes, or None if its builder lives."""
    key = layout.key_of(stale_build)
    with layout.lock(key, wait=False) as mine:
        if not mine:
            busy_keys.append(key)
            return None
        size = size_of(stale_build)
        shutil.rmtree(stale_build, ignore_errors=True)
        return size
