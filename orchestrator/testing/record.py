"""What a null device did: handles, events, and records of them.

A *handle* stands for a value on a null device. It has a shape and a dtype and nothing to look into. A *storage* is
what a real device would allocate; handles that a slice makes share one. An *event* is one call of a backend; a
*record* holds the events of the time it was open, from every null device and thread.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import torch

__all__ = ["Event", "HandleError", "Kind", "NullHandle", "Record", "recording"]

Kind: TypeAlias = Literal[
    "open",
    "compile",
    "load",
    "run",
    "upload",
    "download",
    "copy",
    "adapt",
    "join",
    "part",
    "select",
    "stack",
    "empty",
    "free",
    "synchronize",
    "close",
]

_serial = itertools.count()
_lock = threading.RLock()
_open: tuple[Record, ...] = ()


class HandleError(RuntimeError):
    """A handle was used after it was freed, freed twice, given to another device, or leaked."""


class _NullStorage:
    """Bytes on a device, shared by the handles that hold it."""

    __slots__ = ("holders", "nbytes")

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.holders = 0


class NullHandle:
    """A value on a null device.

    Attributes:
        shape: Its shape.
        dtype: Its element type.
        device: Where it is.
        serial: Tells handles apart.
        is_freed: It was freed, or its device closed.
    """

    __slots__ = ("__weakref__", "_content", "_storage", "device", "dtype", "is_freed", "serial", "shape")

    def __init__(
        self,
        shape: Iterable[int],
        dtype: torch.dtype,
        device: str,
        content: torch.Tensor | None = None,
        base: NullHandle | None = None,
    ) -> None:
        self.shape = tuple(shape)
        self.dtype = dtype
        self.device = device
        self.serial = next(_serial)
        self.is_freed = False
        self._content = content
        # A slice shares the bytes of the value it was taken from, as a view does; so peaks count them once.
        self._storage: _NullStorage = _NullStorage(self.nbytes) if base is None else base._storage

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def nbytes(self) -> int:
        """Bytes of one rank."""
        return self.numel * self.dtype.itemsize

    def __repr__(self) -> str:
        state = ", freed" if self.is_freed else ""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"<NullHandle {self.serial}: {list(self.shape)} {dtype} on {self.device}{state}>"


@dataclass(frozen=True)
class Event:
    """One call of a null backend.

    Attributes:
        kind: What was called.
        device: On which device.
        name: The stage, or the kind of adapter; empty for everything else.
        reads: Handles that it read.
        makes: Handles that it made.
        ranks: Tensors that were moved: an upload is one for each rank.
    """

    kind: Kind
    device: str
    name: str = ""
    reads: tuple[NullHandle, ...] = ()
    makes: tuple[NullHandle, ...] = ()
    ranks: int = 1

    @property
    def nbytes(self) -> int:
        """Bytes it made, or (a download, a free) read; times ranks."""
        return self.ranks * sum(handle.nbytes for handle in self.makes or self.reads)

    def __str__(self) -> str:
        reads = ", ".join(str(list(handle.shape)) for handle in self.reads)
        makes = ", ".join(str(list(handle.shape)) for handle in self.makes)
        arrow = f" -> {makes}" if makes else ""
        return f"{self.device} {self.kind} {self.name}".rstrip() + f"({reads}){arrow}"


@dataclass(eq=False)
class Record:
    """Events in order, and what is alive of the handles they made.

    Attributes:
        calls: The events.
        peak_bytes: For each device, the most bytes alive at once among the values made since the record was opened.
    """

    calls: list[Event] = field(default_factory=list)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    _alive: dict[int, NullHandle] = field(default_factory=dict)
    _bytes: dict[str, int] = field(default_factory=dict)
    _live_storages: set[_NullStorage] = field(default_factory=set)

    @property
    def live(self) -> tuple[NullHandle, ...]:
        """Handles made since the record was opened that nobody has freed."""
        with _lock:
            return tuple(self._alive.values())

    def of(self, kind: Kind, name: str | None = None, device: str | None = None) -> list[Event]:
        """Returns the events of one kind; of one name or device, unless that is None."""
        return [
            event
            for event in list(self.calls)
            if event.kind == kind and name in (None, event.name) and device in (None, event.device)
        ]

    def counts(self) -> dict[str, Any]:
        """Returns what the events add up to, with the keys of ``plan.summary``.

        ``dispatches`` are the stage calls on null devices and ``pad_waste`` is that of pads done there: a pad of zero
        elements that the runner leaves out makes no event.
        """
        pads = self.of("adapt", "pad")
        output_elements = sum(event.makes[0].numel for event in pads)
        padding_elements = output_elements - sum(event.reads[0].numel for event in pads)
        uploads, downloads = self.of("upload"), self.of("download")
        return {
            "uploads": sum(event.ranks for event in uploads),
            "upload_bytes": sum(event.nbytes for event in uploads),
            "downloads": len(downloads),
            "download_bytes": sum(event.nbytes for event in downloads),
            "dispatches": len(self.of("run")),
            "pad_waste": padding_elements / output_elements if output_elements else 0.0,
            "peak_bytes": dict(self.peak_bytes),
        }

    def clear(self) -> None:
        """Forgets events and peaks; what is alive stays known, and counts for new peaks."""
        with _lock:
            self.calls.clear()
            self.peak_bytes = dict(self._bytes)

    def assert_no_leaks(self, keep: Iterable[NullHandle] = ()) -> None:
        """Raises unless every handle made since the record was opened is freed, those in ``keep`` excepted.

        Open the record after ``load``, so that constants, which live as long as the session, are not in it.

        Raises:
            HandleError: Some are alive; the message lists them with the calls that made them.
        """
        kept_serials = {handle.serial for handle in keep}
        leaks = [handle for handle in self.live if handle.serial not in kept_serials]
        if leaks:
            makers = {handle.serial: event for event in list(self.calls) for handle in event.makes}
            lines = [
                f"{handle!r}, made by {makers.get(handle.serial, 'an earlier call')}" for handle in leaks
            ]
            raise HandleError("Nobody freed these handles:\n  " + "\n  ".join(lines))

    def _add(self, event: Event) -> None:
        self.calls.append(event)
        for handle in event.makes:
            self._alive[handle.serial] = handle
            if handle._storage.holders == 1:
                self._live_storages.add(handle._storage)
                bytes_now = self._bytes.get(handle.device, 0) + handle._storage.nbytes
                self._bytes[handle.device] = bytes_now
                self.peak_bytes[handle.device] = max(self.peak_bytes.get(handle.device, 0), bytes_now)

    def _drop(self, handle: NullHandle) -> None:
        self._alive.pop(handle.serial, None)
        if handle._storage in self._live_storages and not handle._storage.holders:
            self._live_storages.remove(handle._storage)
            self._bytes[handle.device] -= handle._storage.nbytes


@contextlib.contextmanager
def recording() -> Iterator[Record]:
    """Records what every null device does while the block runs, in every thread.

    ``with plan.load() as session, recording() as record: session(...)``; blocks may be nested.
    """
    global _open
    record = Record()
    with _lock:
        _open = (*_open, record)
    try:
        yield record
    finally:
        with _lock:
            _open = tuple(other for other in _open if other is not record)


def note(event: Event) -> None:
    """Adds an event to every open record."""
    with _lock:
        for handle in event.makes:
            handle._storage.holders += 1
        for record in _open:
            record._add(event)


def forget(handle: NullHandle) -> None:
    """Marks a handle as freed, and drops what it holds."""
    with _lock:
        handle.is_freed = True
        handle._content = None
        handle._storage.holders -= 1
        for record in _open:
            record._drop(handle)
