"""The torch backend: eager modules on any torch device.

A handle is a tensor. On a device with its own memory, host copies go through pinned buffers and do not block:
copies and kernels are ordered by the caller's current stream, and ``synchronize`` waits for that stream before a
downloaded tensor is read. The allocator keeps a pinned buffer until the copy out of it is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from orchestrator.backend import Capabilities, Handle, Link, TensorBackend
from orchestrator.errors import CompileError

__all__ = ["TorchBackend"]

#: PCI Express 5.0 x16 is 63 GB/s in one direction before protocol overhead (32 GT/s, 16 lanes, 128b/130b).
_PCIE = Link(63e9, 0.0, "PCI Express 5.0 x16, nominal: 32 GT/s x 16 lanes x 128/130 / 8")


class TorchBackend(TensorBackend):
    """Runs stages eagerly on one torch device."""

    def __init__(self, device: str, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(device, options)
        kind = self._torch_device.type
        self._pins_memory = kind == "cuda"
        self._capabilities = (
            Capabilities(host_memory=True)
            if kind == "cpu"
            else Capabilities(deferred=self._pins_memory, link=_PCIE)
        )

    @classmethod
    def accepts(cls, device: str) -> bool:
        """Tells whether ``torch.device`` takes the string."""
        try:
            return torch.device(device).type != "meta"
        except RuntimeError:
            return False

    @classmethod
    def canonical(cls, device: str) -> str:
        """Returns ``cuda:0`` for ``cuda``, and ``cpu`` for ``cpu:0``: the processor is one device."""
        torch_device = torch.device(device)
        return "cpu" if torch_device.type == "cpu" else f"{torch_device.type}:{torch_device.index or 0}"

    @property
    def capabilities(self) -> Capabilities:
        """Eager, no static shapes; on the CPU values are host memory."""
        return self._capabilities

    def open(self, budget: int = 0, reserved: int = 0) -> None:
        """Makes sure that torch sees the device.

        Raises:
            CompileError: It does not.
        """
        try:
            torch.empty(0, device=self._torch_device)
        except Exception as error:
            devices = [f"{kind}:{index}" for kind in ("cuda", "xpu", "mps") for index in range(_count(kind))]
            raise CompileError(
                f"The device {self.device!r} is not there: torch sees {['cpu', *devices]}. Plan for one of these, or "
                f"run where the device is. ({str(error).partition(chr(10))[0]})",
                device=self.device,
            ) from error

    def upload(self, value: torch.Tensor) -> Handle:
        """Copies a host tensor to the device without waiting."""
        if self._pins_memory and value.numel():
            value = value if value.is_pinned() else value.pin_memory()
            return value.to(self._torch_device, non_blocking=True)
        return value.to(self._torch_device)

    def download(self, handle: Handle) -> torch.Tensor:
        """Copies a tensor into a (pinned) host tensor; it is there after :meth:`synchronize`."""
        if self._pins_memory and handle.numel():
            host = torch.empty(handle.shape, dtype=handle.dtype, device="cpu", pin_memory=True)
            return host.copy_(handle, non_blocking=True)
        return handle.cpu()  # type: ignore[no-any-return]

    def copy(self, handle: Handle, device: str) -> Handle:
        """Copies a tensor from another torch device."""
        return handle.to(self._torch_device, non_blocking=self._pins_memory)

    def synchronize(self) -> None:
        """Waits for the caller's current stream on this device."""
        if self._pins_memory:
            torch.cuda.current_stream(self._torch_device).synchronize()


def _count(kind: str) -> int:
    module = getattr(torch, kind, None)
    count = getattr(module, "device_count", None)
    return int(count()) if count is not None else 0
