"""A folder of artifacts, keyed by content, which several processes may use at once.

An artifact's *key* is a digest of everything that went into compiling it. An artifact is *valid* if every file in it is
as its manifest says. It is made in a folder of its own beside its place and renamed into it, under a lock of its key:
so it is whole or absent, and made once. Readers take no lock: what is removed while they read it is not valid.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.store import cleaning
from orchestrator.store.cleaning import CleanReport
from orchestrator.store.entries import StoreEntry, inspect
from orchestrator.store.errors import as_compile_error, disk_full_error, disk_is_full, release_frames
from orchestrator.store.files import remove, sync, write_if_changed
from orchestrator.store.layout import StoreLayout
from orchestrator.store.manifest import NAME, write_manifest
from orchestrator.store.owners import check_private, make_private
from orchestrator.store.seals import bring_sealed, has_seals, remove_seals

__all__ = ["ArtifactStore", "CleanReport", "StoreEntry"]


class ArtifactStore:
    """Artifacts below one folder.

    Args:
        path: The folder; made when something is written.

    Raises:
        CompileError: The folder is the store of a newer release.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._layout = StoreLayout(self.path)

    def write_plan(self, plan: str) -> None:
        """Writes the plan's JSON beside its artifacts; the same that is there already is left alone.

        Raises:
            CompileError: Somebody else can write to the store.
            OSError: The store cannot be written to.
        """
        check_private(self.path)
        make_private(self.path)
        write_if_changed(self.path / "plan.json", plan.encode())

    def find(self, key: str) -> Path | None:
        """Returns the folder of a valid artifact, every byte of it checked, or None; notes that it was used.

        Raises:
            CompileError: Somebody else can write to the store, or to the artifact.
        """
        place = self._layout.place(key)
        check_private(self.path, place if place.is_dir() else None)
        if inspect(place).state != "ok":
            return None
        with contextlib.suppress(OSError):  # a store that can only be read
            os.utime(place / NAME)
        return place

    def get_or_build(
        self, key: str, build: Callable[[Path], object], about: Mapping[str, Any] | None = None
    ) -> Path:
        """Returns the folder of a valid artifact; what is missing or damaged is built.

        Whoever asks for a key while it is being built waits, and gets what was built.

        Args:
            key: The content key.
            build: Fills a folder. It is empty, but for what an earlier build of this key has sealed (see
                ``orchestrator.store.seals``) before it was interrupted or killed.
            about: JSON-like data that says what it is, for a person.

        Raises:
            CompileError: The store cannot be written to, somebody else can write to it, or its disk is full.
            Exception: Whatever ``build`` raises. In both cases nothing of the artifact is left, but what is sealed
                where it was interrupted.
        """
        valid_place = self.find(key)
        if valid_place is not None:
            return valid_place
        about = about or {}
        name = f"of stage {about['stage']!r}" if about.get("stage") else key[:12]
        what = f"The artifact {name} cannot be stored"
        with contextlib.ExitStack() as stack:
            with as_compile_error(what, self.path, key=key):
                self._layout.prepare()
                stack.enter_context(self._layout.lock(key))
            return self.find(key) or self._build(key, build, about, what)

    def entries(self, checksums: bool = False) -> tuple[StoreEntry, ...]:
        """Returns what is there, by key.

        Args:
            checksums: Read every byte; else manifests and sizes alone tell what is damaged.
        """
        return tuple(inspect(place, checksums) for place in self._layout.places())

    def verify(self) -> tuple[StoreEntry, ...]:
        """Reads every byte and returns what is damaged; nothing is changed."""
        return tuple(entry for entry in self.entries(checksums=True) if entry.state == "damaged")

    def clean(self, *, only_damaged: bool = False, unused_days: float | None = None) -> CleanReport:
        """Removes artifacts, and always what builds that did not end left behind.

        What somebody is building is left alone. Everything that is removed can be compiled again.

        Args:
            only_damaged: Only those that are damaged; every byte is read.
            unused_days: Only those that nobody asked for in as many days.

        Raises:
            CompileError: The store cannot be written to.
        """
        with as_compile_error("Artifacts cannot be removed", self.path):
            return cleaning.clean(self._layout, only_damaged, unused_days)

    def _build(self, key: str, build: Callable[[Path], object], about: Mapping[str, Any], what: str) -> Path:
        """Makes an artifact; the lock of its key is held."""
        place = self._layout.place(key)
        folder = self._layout.staging_path(place)
        # 1. The place is free and the new folder is ours alone; what earlier builds have sealed is in it.
        with as_compile_error(what, self.path, key=key):
            stale_builds = self._layout.stale_builds(key)
            make_private(folder)
            bring_sealed(stale_builds, folder)
            self._make_way(place, stale_builds)
        is_interrupted = False
        try:
            # 2. What the builder raises is its own error, not one of the store.
            self._fill(folder, build, what, key)
            # 3. The manifest is written last and the folder renamed after it: whoever sees the place sees all of it.
            with as_compile_error(what, self.path, key=key):
                remove_seals(folder)
                write_manifest(folder, key, about)
                folder.replace(place)
                sync(place.parent)
        except BaseException as error:
            is_interrupted = not isinstance(error, Exception)
            raise
        finally:
            if not (is_interrupted and has_seals(folder)):
                shutil.rmtree(folder, ignore_errors=True)
        return place

    def _fill(self, folder: Path, build: Callable[[Path], object], what: str, key: str) -> None:
        try:
            build(folder)
        except Exception as error:
            if disk_is_full(error, self.path):
                release_frames(error)
                raise disk_full_error(what, error, self.path, key=key) from error
            raise

    def _make_way(self, place: Path, stale_builds: Iterable[Path]) -> None:
        """Removes what is not valid, and what builds left that did not end."""
        if place.exists():
            remove(place, self._layout.staging_path(place))
        for stale_build in stale_builds:
            shutil.rmtree(stale_build, ignore_errors=True)
