"""Memory and counters of an emulated device.

A device has a number of *ranks*, each with memory of its own; a *block* is a piece of one rank's memory, freed when
nobody refers to it any more. From :meth:`Device.begin_counting` on, moves over the link and program starts are counted,
and a *virtual clock* adds up what they would take by the figures of the cost model: an estimate, nothing is measured.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import torch

from orchestrator.backend import Link
from orchestrator.errors import StageError

__all__ = ["Device", "DeviceError", "MemoryBlock", "poison", "size_of"]


class DeviceError(StageError, RuntimeError):
    """The device refuses something; to torch code it is an ordinary ``RuntimeError``."""


class MemoryBlock:
    """A piece of one rank's memory.

    Attributes:
        device: The device.
        rank: The rank.
        nbytes: Its size.
        epoch: How often counting had begun when it was taken for a request; 0: it is of no request.
    """

    __slots__ = ("device", "epoch", "nbytes", "rank")

    def __init__(self, device: Device, rank: int, nbytes: int, epoch: int) -> None:
        self.device = device
        self.rank = rank
        self.nbytes = nbytes
        self.epoch = epoch

    def __del__(self) -> None:
        self.device.release(self)


class Device:
    """One emulated device, from open to close.

    Args:
        ranks: Logical cores.
        budget: Bytes of memory of each; 0: without limit.
        link: Figures for the virtual clock.
        reserved: Bytes of each rank's memory that loading must leave free, for requests.

    Attributes:
        core: Held while a program runs: a core runs one at a time, whichever requests want it.
    """

    def __init__(self, ranks: int, budget: int, link: Link, reserved: int = 0) -> None:
        self.ranks = ranks
        self.budget = budget
        self.reserved = reserved
        self.link = link
        self.is_open = True
        self.allocated_bytes = [0] * ranks
        self._request = [0] * ranks
        self._epoch = 0
        self.core = threading.Lock()
        # Reentrant, since the collector may free a block while another one is made.
        self._lock = threading.RLock()
        self._zero()

    def _zero(self) -> None:
        self._counts = dict.fromkeys(
            ("uploads", "upload_bytes", "downloads", "download_bytes", "dispatches"), 0
        )
        self._seconds = 0.0
        self._peak = max(self._request)
        self.peak_allocated_bytes = max(self.allocated_bytes)

    def begin_counting(self) -> None:
        """Sets all counts to zero; memory in use by now belongs to no request."""
        with self._lock:
            self._request = [0] * self.ranks
            self._epoch += 1
            self._zero()

    def allocate(self, rank: int, nbytes: int, what: str, persistent: bool = False) -> MemoryBlock:
        """Takes memory of one rank.

        Args:
            rank: The rank.
            nbytes: Bytes.
            what: Its purpose, for the message.
            persistent: It is a weight or a buffer, part of no request.

        Raises:
            DeviceError: The device is closed, has no such rank, or has too little memory left.
        """
        self.check(rank)
        if self.budget and self.allocated_bytes[rank] + nbytes > self.budget:
            raise DeviceError(
                f"{what} takes {nbytes:,} bytes of rank {rank}, but {self.allocated_bytes[rank]:,} of its "
                f"{self.budget:,} are taken. Plan with a smaller batch, a larger tp_degree, or more edges over the "
                f"host.",
                rank=rank,
                bytes=nbytes,
            )
        # Epoch 0 marks memory of no request. A block is counted and given back in its own epoch only: one that outlives
        # `begin_counting` must not lower the count of the next.
        block = MemoryBlock(self, rank, nbytes, 0 if persistent else self._epoch)
        with self._lock:
            self._hold(block, nbytes)
            self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes[rank])
            self._peak = max(self._peak, self._request[rank])
        return block

    def _hold(self, block: MemoryBlock, nbytes: int) -> None:
        self.allocated_bytes[block.rank] += nbytes
        if block.epoch and block.epoch == self._epoch:
            self._request[block.rank] += nbytes

    def release(self, block: MemoryBlock) -> None:
        """Gives a block back; called when its last reference goes."""
        with self._lock:
            self._hold(block, -block.nbytes)

    def check(self, rank: int = 0) -> None:
        """Makes sure that the device is open and has this rank.

        Raises:
            DeviceError: It is not, or has not.
        """
        if not self.is_open:
            raise DeviceError(
                "The emulated Neuron device is closed; its values went with it. Read them before the session closes."
            )
        if not 0 <= rank < self.ranks:
            raise DeviceError(
                f"The device has {self.ranks} ranks, privateuseone:0 to privateuseone:{self.ranks - 1}, not {rank}; "
                f"plan with options={{'tp_degree': {rank + 1}}}."
            )

    def count_upload(self, nbytes: int) -> None:
        """Counts one tensor that went to one rank."""
        self._count("uploads", nbytes, "upload_bytes")

    def count_download(self, nbytes: int) -> None:
        """Counts one tensor that came from one rank."""
        self._count("downloads", nbytes, "download_bytes")

    def _count(self, moves: str, nbytes: int, total: str) -> None:
        if self._epoch:
            with self._lock:
                self._counts[moves] += 1
                self._counts[total] += nbytes
                self._seconds += self.link.seconds(nbytes)

    def count_dispatch(self) -> None:
        """Counts one program start, on all ranks together."""
        if self._epoch:
            with self._lock:
                self._counts["dispatches"] += 1
                self._seconds += self.link.dispatch_seconds

    def measured(self) -> dict[str, Any]:
        """Returns counts since counting began.

        ``peak_bytes`` is what uploads and copies of requests took at most, on one rank; ``estimated_seconds`` is the
        virtual clock: what moves and program starts would take one after another, compute left out.
        """
        return {**self._counts, "peak_bytes": self._peak, "estimated_seconds": self._seconds}

    def close(self) -> None:
        """Ends it: whatever was on it cannot be read any more."""
        self.is_open = False


def size_of(shape: Iterable[int], dtype: torch.dtype) -> int:
    """Returns the bytes of a tensor."""
    return torch.Size(shape).numel() * dtype.itemsize


def poison(value: torch.Tensor) -> None:
    """Fills a tensor with a value that shows when it is read: NaN, the largest integer, or True."""
    floating = value.is_floating_point() or value.is_complex()
    whole = True if value.dtype is torch.bool else None
    value.fill_(float("nan") if floating else whole or torch.iinfo(value.dtype).max)
