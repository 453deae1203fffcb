"""Tensors on an emulated device.

To torch such a tensor is on ``privateuseone:<rank>``. Its *payload* is a host tensor that nobody but the device sees.
A Neuron device computes in compiled programs only, so outside of them all that can be done to it is a move to or from
the host, or a view; everything else is refused, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch.utils import _pytree as pytree

from orchestrator.specs import dtype_name
from orchestrator_neuron.emulated.device import Device, DeviceError, MemoryBlock, poison, size_of
from orchestrator_neuron.family import DTYPES

__all__ = ["EmulatedTensor", "allocate", "copy_tensor", "download", "payload_of", "upload"]

_WAY_OUT = (
    "A Neuron device computes nothing outside compiled programs: make it part of a stage, or bring the value to the "
    "host first, with .cpu()."
)

aten = torch.ops.aten

VIEWS = frozenset(
    {
        aten.alias.default,
        aten.as_strided.default,
        aten.detach.default,
        aten.diagonal.default,
        aten.expand.default,
        aten.permute.default,
        aten.select.int,
        aten.slice.Tensor,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.t.default,
        aten.transpose.int,
        aten.unbind.int,
        aten.unfold.default,
        aten.unsqueeze.default,
        aten.view.default,
        aten._reshape_alias.default,
    }
)


def _refuser(what: str) -> Callable[..., NoReturn]:
    def refuse(self: EmulatedTensor, *_args: Any, **_keywords: Any) -> NoReturn:
        raise DeviceError(f"{what} of a tensor on {self.device} ({_shape_and_dtype(self)}). {_WAY_OUT}")

    return refuse


class EmulatedTensor(torch.Tensor):
    """A tensor on one rank.

    Args:
        payload: The host tensor behind it.
        block: Its memory; of a view, that of the whole tensor.
    """

    payload: torch.Tensor
    block: MemoryBlock

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, payload: torch.Tensor, block: MemoryBlock) -> EmulatedTensor:
        """Makes a tensor that torch takes for one of that device; no memory comes with it."""
        tensor: EmulatedTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            payload.size(),
            strides=payload.stride(),
            storage_offset=payload.storage_offset(),
            dtype=payload.dtype,
            layout=payload.layout,
            device=torch.device("privateuseone", block.rank),
        )
        tensor.payload = payload
        tensor.block = block
        return tensor

    def __init__(self, payload: torch.Tensor, block: MemoryBlock) -> None:
        pass

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        return f"EmulatedTensor({_shape_and_dtype(self)}, device='{self.device}')"

    numpy = __array__ = _refuser("numpy()")
    tolist = _refuser("tolist()")
    __dlpack__ = _refuser("dlpack")
    __deepcopy__ = _refuser("A copy")
    __reduce_ex__ = _refuser("A pickle")

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Does moves and views, and refuses all else."""
        keywords = kwargs or {}
        if func in VIEWS:
            return _view(func, args[0], args[1:], keywords)
        if func is aten._to_copy.default:
            return _to_copy(args[0], **keywords)
        if func is aten.copy_.default:
            return _copy(*args[:2])
        raise _refusal(func, args, keywords)


def allocate(
    device: Device, rank: int, shape: tuple[int, ...], dtype: torch.dtype, what: str, persistent: bool = False
) -> EmulatedTensor:
    """Makes a tensor of undefined content, which shows when it is read; see :func:`upload` for errors."""
    _check_dtype(dtype, what)
    block = device.allocate(rank, size_of(shape, dtype), what, persistent)
    with torch.inference_mode(False):
        payload = torch.empty(shape, dtype=dtype, device="cpu")
        poison(payload)
        return EmulatedTensor(payload, block)


def upload(
    device: Device, rank: int, value: torch.Tensor, what: str = "A value", persistent: bool = False
) -> EmulatedTensor:
    """Copies a host tensor to one rank, as one contiguous block; counted unless ``persistent``.

    Raises:
        DeviceError: The device is closed, does not hold the dtype, has no such rank, or lacks the memory.
    """
    if not value.is_cpu:
        raise DeviceError(f"An upload takes a tensor of the host, not one on {value.device}.")
    _check_dtype(value.dtype, what, persistent)
    block = device.allocate(rank, size_of(value.shape, value.dtype), what, persistent)
    with torch.inference_mode(False), torch.no_grad():
        tensor = EmulatedTensor(torch.empty(value.shape, dtype=value.dtype, device="cpu").copy_(value), block)
    if not persistent:
        device.count_upload(block.nbytes)
    return tensor


def download(tensor: EmulatedTensor) -> torch.Tensor:
    """Copies a tensor to the host; counted.

    Raises:
        DeviceError: The device is closed.
    """
    payload = payload_of(tensor)
    tensor.block.device.count_download(size_of(payload.shape, payload.dtype))
    return payload.clone(memory_format=torch.contiguous_format)


def copy_tensor(tensor: EmulatedTensor) -> EmulatedTensor:
    """Copies a tensor into other memory of its rank, as one contiguous block; nothing crosses the link.

    Raises:
        DeviceError: The device is closed, or lacks the memory.
    """
    device, rank = tensor.block.device, tensor.block.rank
    block = device.allocate(rank, size_of(tensor.shape, tensor.dtype), "A copy of a value")
    with torch.inference_mode(False), torch.no_grad():
        return EmulatedTensor(payload_of(tensor).clone(memory_format=torch.contiguous_format), block)


def payload_of(tensor: EmulatedTensor) -> torch.Tensor:
    """Returns the host tensor behind a tensor; for the device's own use.

    Raises:
        DeviceError: The device is closed.
    """
    if not tensor.block.device.is_open:
        tensor.block.device.check()
    return tensor.payload


def _view(func: Any, tensor: EmulatedTensor, args: Any, kwargs: Any) -> Any:
    views = func(payload_of(tensor), *args, **kwargs)
    if isinstance(views, torch.Tensor):
        return EmulatedTensor(views, tensor.block)
    return [EmulatedTensor(part, tensor.block) for part in views]


def _to_copy(source: EmulatedTensor, **options: Any) -> torch.Tensor:
    device = torch.device(options.get("device") or source.device)
    if device.type == "cpu":
        dtype = options.get("dtype") or source.dtype
        return download(source).to(dtype)
    if device == source.device:
        raise DeviceError(
            f"A conversion to {options.get('dtype')} on {source.device} ({_shape_and_dtype(source)}). {_WAY_OUT}"
        )
    raise DeviceError(
        f"A copy from {source.device} to {device} ({_shape_and_dtype(source)}): ranks reach each other inside programs "
        f"only. Go over the host: .cpu(), then .to('{device}')."
    )


def _copy(target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """``target.copy_(source)``: a move if exactly one of them is on the device."""
    # Into the device a copy is bytes alone, so dtypes must be equal; out of it the host converts.
    if isinstance(target, EmulatedTensor) and isinstance(source, EmulatedTensor):
        raise DeviceError(
            f"A copy from {source.device} to {target.device} ({_shape_and_dtype(source)}). {_WAY_OUT}"
        )
    if isinstance(source, EmulatedTensor):
        return target.copy_(download(source))
    assert isinstance(target, EmulatedTensor)
    if target.dtype != source.dtype:
        raise DeviceError(
            f"{dtype_name(source.dtype)} on the host cannot be written into {_shape_and_dtype(target)} on "
            f"{target.device}: convert it first, with .to({target.dtype})."
        )
    payload_of(target).copy_(source)
    target.block.device.count_upload(size_of(target.shape, target.dtype))
    return target


def _check_dtype(dtype: torch.dtype, what: str, persistent: bool = False) -> None:
    if dtype not in DTYPES and not persistent:
        to = "int32" if dtype is torch.int64 else "float32"
        raise DeviceError(
            f"{what} is {dtype_name(dtype)}, which a Neuron device does not hold; convert it on the host, e.g. with "
            f".to(torch.{to})."
        )


def _refusal(func: Any, args: Any, kwargs: Any) -> DeviceError:
    tensors = [item for item in pytree.tree_leaves((args, kwargs)) if isinstance(item, torch.Tensor)]
    own = [tensor for tensor in tensors if isinstance(tensor, EmulatedTensor)]
    others = [tensor for tensor in tensors if not isinstance(tensor, EmulatedTensor)]
    ranks = sorted({tensor.block.rank for tensor in own})
    # From the narrowest reason to the widest: whoever reads `item()` is not helped by its operator's name, and a mix of
    # host and device explains more than the device alone.
    name = str(func)
    if func is aten._local_scalar_dense.default:
        return DeviceError(f"item() or bool() of {own[0]!r} reads it from the device, unseen. {_WAY_OUT}")
    if others:
        return DeviceError(
            f"{name} mixes a tensor on {own[0].device} ({_shape_and_dtype(own[0])}) with one on {others[0].device} "
            f"({_shape_and_dtype(others[0])}). {_WAY_OUT}"
        )
    if len(ranks) > 1:
        return DeviceError(f"{name} mixes tensors of the ranks {ranks}. {_WAY_OUT}")
    return DeviceError(f"{name} on {own[0].device} ({_shape_and_dtype(own[0])}). {_WAY_OUT}")


def _shape_and_dtype(tensor: torch.Tensor) -> str:
    return f"{list(tensor.shape)} {dtype_name(tensor.dtype)}"
