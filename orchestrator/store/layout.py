"""Where things are in a store, and who may touch them.

    store.json                         version of the layout
    artifacts/<version>/ab/<key>/      an artifact in that version of the format, with its manifest.json
    artifacts/<version>/ab/.<key>.*    being made or being removed by who holds the lock; else a *stale build*
    locks/<key>.lock                   empty; never removed, since two processes could then hold one lock

The *lock* of a key holds across processes and ends with the process that holds it.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator
from pathlib import Path

from orchestrator.errors import CompileError
from orchestrator.store.files import write_atomically
from orchestrator.store.keys import is_key
from orchestrator.store.manifest import VERSION
from orchestrator.store.owners import check_private, make_private, permissions

__all__ = ["LAYOUT", "StoreLayout"]

LAYOUT = 1
_MARKER = "store.json"


class StoreLayout:
    """The places of one store.

    Args:
        root: Its folder; it need not exist.

    Raises:
        CompileError: A newer release made it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._check()

    def _check(self) -> None:
        layout = self._layout() or 0
        if layout > LAYOUT:
            raise CompileError(
                f"The store {str(self.root)!r} has layout {layout} in its {_MARKER}, and this release knows layout "
                f"{LAYOUT}: a newer release made it. Use that release, or give another folder; this one is left as it "
                f"is.",
                path=self.root,
                layout=layout,
            )

    def _layout(self) -> int | None:
        """The layout that the marker says; None: there is no marker, or it is damaged.

        Where the file cannot be opened, so that nobody knows, this release's is assumed.
        """
        try:
            marker = json.loads((self.root / _MARKER).read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
            return None
        except OSError:
            return LAYOUT
        layout = marker.get("layout") if isinstance(marker, dict) else None
        return layout if type(layout) is int and layout >= 1 else None

    def prepare(self) -> None:
        """Makes the store's own files; a damaged marker is written anew, since each artifact has its own manifest.

        Raises:
            CompileError: A newer release made the store meanwhile, or somebody else can write to it.
            OSError: It cannot be written to.
        """
        self._check()
        check_private(self.root)
        make_private(self.root / "locks")
        check_private(self.root, self.root / "locks")
        if self._layout() is None:
            write_atomically(self.root / _MARKER, json.dumps({"layout": LAYOUT}).encode())

    def place(self, key: str) -> Path:
        """Returns where an artifact is, if it is there."""
        if not is_key(key):
            raise ValueError(f"{key!r} is no content key: 16 or more of 0-9 and a-f.")
        return self.root / "artifacts" / str(VERSION) / key[:2] / key

    def places(self) -> list[Path]:
        """Returns folders of artifacts in every version of the format, by key."""
        folders = (self.root / "artifacts").glob("*/??/*")
        return sorted(
            (folder for folder in folders if is_key(folder.name) and folder.is_dir()),
            key=lambda folder: folder.name,
        )

    def staging_path(self, place: Path) -> Path:
        """Returns a new name for what is being made, or removed, at a place; nobody else uses it, now or later.

        A compiler that outlived its killed parent may still write to its own name.
        """
        return place.with_name(f".{place.name}.{secrets.token_hex(6)}")

    def stale_builds(self, key: str = "") -> list[Path]:
        """Returns what builds and removals left, of a key or of all; those under way are among them."""
        if key:
            return sorted(self.place(key).parent.glob(f".{key}.*"))
        folders = (self.root / "artifacts").glob("*/??/.*.*")
        return sorted(folder for folder in folders if is_key(self.key_of(folder)))

    def key_of(self, stale_build: Path) -> str:
        """Returns the key that a stale build belongs to."""
        return stale_build.name.split(".")[1]

    @contextlib.contextmanager
    def lock(self, key: str, wait: bool = True) -> Iterator[bool]:
        """Holds the lock of a key; gives False at once if somebody else does and one is not to wait.

        Raises:
            OSError: The store cannot be written to.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.root / "locks" / f"{key}.lock", mode=permissions(self.root, 0o666))
        try:
            lock.acquire(timeout=-1 if wait else 0)
            mine = True
        except Timeout:
            mine = False
        try:
            yield mine
        finally:
            lock.release()
