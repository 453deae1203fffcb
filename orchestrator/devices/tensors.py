"""A backend whose values are tensors of one torch device, and whose stages are torch modules with their weights there.

A handle is a tensor. The user's module stays as it is: where its weights are elsewhere, a copy of it runs, whose
parameters and buffers are made on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from orchestrator.adapter import Adapter, apply, part_of
from orchestrator.devices.base import EagerBackend, Handle
from orchestrator.duplicate import duplicate, owner_of
from orchestrator.errors import CompileError
from orchestrator.specs import TensorSpec
from orchestrator.stage import Stage

__all__ = ["TensorBackend"]


class TensorBackend(EagerBackend):
    """Runs stages eagerly on one torch device; a subclass says which devices are of its family.

    Args:
        device: A device string that ``torch.device`` takes.
        options: Values for names in :attr:`option_types`.
    """

    def __init__(self, device: str, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(device, options)
        self._torch_device = torch.device(self.device)
        self._copies: dict[int, Any] = {}

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
        """Copies a host tensor to the device."""
        return value.to(self._torch_device)

    def download(self, handle: Handle) -> torch.Tensor:
        """Copies a tensor to the host."""
        return handle.cpu()  # type: ignore[no-any-return]

    def copy(self, handle: Handle, device: str) -> Handle:
        """Copies a tensor from another torch device."""
        return handle.to(self._torch_device)

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


def _is_computed(value: Any) -> bool:
    """Tells whether an attribute is a tensor made from parameters, as older weight normalisation keeps it."""
    return isinstance(value, torch.Tensor) and value.grad_fn is not None
