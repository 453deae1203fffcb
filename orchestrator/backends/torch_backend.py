"""The torch backend: eager modules on any torch device.

A handle is a tensor. On a device with its own memory, host copies go through pinned buffers and do not block:
copies and kernels are ordered by the caller's current stream, and ``synchronize`` waits for that stream before a
downloaded tensor is read. The allocator keeps a pinned buffer until the copy out of it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from orchestrator.adapter import Adapter, apply, part_of
from orchestrator.backend import Capabilities, EagerBackend, Handle, Link
from orchestrator.duplicate import duplicate, owner_of
from orchestrator.errors import CompileError
from orchestrator.specs import TensorSpec
from orchestrator.stage import Stage

__all__ = ["TorchBackend"]

#: PCI Express 5.0 x16 is 63 GB/s in one direction before protocol overhead (32 GT/s, 16 lanes, 128b/130b).
_PCIE = Link(63e9, 0.0, "PCI Express 5.0 x16, nominal: 32 GT/s x 16 lanes x 128/130 / 8")


class TorchBackend(EagerBackend):
    """Runs stages eagerly on one torch device."""

    def __init__(self, device: str, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(device, options)
        self._torch_device = torch.device(self.device)
        kind = self._torch_device.type
        self._copies: dict[int, Any] = {}
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

    def load(self, stage: Stage, sizes: Sequence[Mapping[str, int]] = ()) -> Callable[..., Any]:
        """Returns the stage's own module where it is on the device already, else a copy that is.

        Raises:
            CompileError: It cannot be built or moved.
        """
        try:
            target = stage.module()
            owner, wrapper = owner_of(target), stage.wrapper
            if wrapper is not None and wrapper.makes_model:
                owner = wrapper.model
            # A wrapper that makes its model keeps it apart from what is called; the weights to move are the model's.
            if not isinstance(owner, torch.nn.Module) or self._is_here(owner):
                return target  # type: ignore[no-any-return]
            self._check_content(stage, owner)
            return self._copy_on_device(target, owner)
        except CompileError:
            raise
        except Exception as error:
            raise CompileError(
                f"Stage {stage.name!r} cannot be loaded onto {self.device!r}: {type(error).__name__}: {error}",
                stage=stage.name,
                device=self.device,
            ) from error

    def _is_here(self, module: torch.nn.Module) -> bool:
        return all(
            tensor.device == self._torch_device for tensor in (*module.parameters(), *module.buffers())
        )

    def _check_content(self, stage: Stage, owner: torch.nn.Module) -> None:
        tensors = (*owner.named_parameters(), *owner.named_buffers())
        empty = [name for name, tensor in tensors if tensor.is_meta]
        if empty:
            raise CompileError(
                f"{empty[0]!r} of stage {stage.name!r} is on the meta device, without content, so that it cannot run "
                f"on {self.device!r}. Load weights into the module first: "
                f"module.to_empty(device='cpu').load_state_dict(...).",
                stage=stage.name,
                device=self.device,
                weight=empty[0],
            )

    def _copy_on_device(self, target: Callable[..., Any], owner: torch.nn.Module) -> Callable[..., Any]:
        """A deep copy whose parameters and buffers are made on the device; the user's module stays as it is.

        What stages share is copied once: the copies of all stages of a device have one memo.
        """
        derived_tensors = [
            value for part in owner.modules() for value in vars(part).values() if _is_computed(value)
        ]
        for tensor in (*owner.parameters(), *owner.buffers(), *derived_tensors):
            if id(tensor) in self._copies:
                continue
            copied_tensor = tensor.detach().to(self._torch_device, copy=True)
            if isinstance(tensor, torch.nn.Parameter):
                copied_tensor = torch.nn.Parameter(copied_tensor, requires_grad=tensor.requires_grad)
            self._copies[id(tensor)] = copied_tensor
        return duplicate(target, self._copies)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Forgets the copies of modules."""
        self._copies.clear()

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

    def adapt(self, adapter: Adapter) -> Callable[[Handle, Mapping[str, int]], Handle]:
        """Returns the eager op; a target that no name can change is worked out once."""
        if adapter.kind not in ("cast", "clone") and not TensorSpec(adapter.dims).names:
            shape = TensorSpec(adapter.dims).shape({})
            resolved_adapter = Adapter(adapter.kind, shape, adapter.rule)
            return lambda handle, _sizes: apply(resolved_adapter, handle, {})
        return lambda handle, sizes: apply(adapter, handle, sizes)

    def join(self, handles: list[Handle], dim: int) -> Handle:
        """Concatenates chunks."""
        return torch.cat(handles, dim)

    def part(self, handle: Handle, dim: int, start: int, size: int) -> Handle:
        """Takes one chunk, dense."""
        return part_of(handle, dim, start, size)

    def select(self, handle: Handle, index: int) -> Handle:
        """Takes a view of one slice."""
        return handle[index]

    def stack(self, handles: list[Handle]) -> Handle:
        """Stacks with torch."""
        return torch.stack(handles)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Handle:
        """Makes a tensor with undefined content."""
        return torch.empty(shape, dtype=dtype, device=self._torch_device)

    def synchronize(self) -> None:
        """Waits for the caller's current stream on this device."""
        if self._pins_memory:
            torch.cuda.current_stream(self._torch_device).synchronize()


def _is_computed(value: Any) -> bool:
    """Tells whether an attribute is a tensor made from parameters, as older weight normalisation keeps it."""
    return isinstance(value, torch.Tensor) and value.grad_fn is not None


def _count(kind: str) -> int:
    module = getattr(torch, kind, None)
    count = getattr(module, "device_count", None)
    return int(count()) if count is not None else 0
