"""Memory use: the writes and shared memory of a stage, watched while it runs on fake tensors.

A version counter does not tell of a write through ``x.data``, and what ``contiguous`` gives is a copy or the tensor
itself, as its strides will have it. Both are seen operation by operation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree

from orchestrator.backend import Operation
from orchestrator.planner.infer.dtypes import SameDtypes

__all__ = ["MemoryUse", "foreign_tensors", "is_expanded", "tensors_of", "whole_inputs"]

_aten = torch.ops.aten

#: What ``contiguous``, ``reshape`` and ``to`` do where the tensor itself does not do.
_COPIES = frozenset({_aten.clone.default, _aten._to_copy.default})


class MemoryUse(SameDtypes):  # type: ignore[no-untyped-call]
    """Notes writes into inputs, and copies that may be an input itself at other strides; checks dtypes meanwhile.

    Args:
        inputs: Fake tensors by port.
        log: Where operations are noted, each as it ran; None: nowhere.

    Attributes:
        written_ports: Ports whose tensor was written into.
        operations: How many operations ran.
    """

    def __init__(self, inputs: Mapping[str, torch.Tensor], log: list[Operation] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.written_ports: set[str] = set()
        self.operations = 0
        self._log = log
        self._ports = {_place(value): port for port, value in inputs.items()}
        self._origins: dict[int, int] = {}
        self._copies: list[Any] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs one operation and notes its writes and copies."""
        self.operations += 1
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if self._log is not None:
            self._log.append(_operation(func, (args, kwargs), result))
        is_copy = func in _COPIES and not _is_own(func, kwargs or {})
        if is_copy and isinstance(args[0], torch.Tensor):  # vmap converts plain numbers as well
            self._origins[_place(result)] = _place(args[0])
            self._copies.append(result)  # a place is not used again
        elif getattr(getattr(func, "_schema", None), "is_mutable", False):
            self._note_writes(func, args, kwargs or {})
        return result

    def _note_writes(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        for at, parameter in enumerate(func._schema.arguments):
            value = args[at] if at < len(args) else kwargs.get(parameter.name)
            info = parameter.alias_info
            if info is not None and info.is_write and isinstance(value, torch.Tensor):
                self.written_ports |= {port for place, port in self._ports.items() if place == _place(value)}

    def may_be_input(self, value: torch.Tensor) -> bool:
        """Tells whether a tensor has the memory of an input, or would have it at other strides."""
        place = _place(value)
        while place in self._origins and place not in self._ports:
            place = self._origins[place]
        return place in self._ports

    def forget(self) -> None:
        """Lets go of the tensors it holds."""
        self._copies.clear()


def _operation(func: Any, arguments: Any, result: Any) -> Operation:
    reads, gives = (
        tuple(value.nbytes for value in pytree.tree_leaves(values) if isinstance(value, torch.Tensor))
        for values in (arguments, result)
    )
    schema = func._schema
    return Operation(schema.name, schema.overload_name, reads, gives)


def _is_own(func: Any, kwargs: Mapping[str, Any]) -> bool:
    """Tells whether a copy is one at all strides: an author's ``clone()``, which asks for no order of its elements."""
    order = kwargs.get("memory_format")
    return func is _aten.clone.default and order in (None, torch.preserve_format)


def _place(value: torch.Tensor) -> int:
    """Identity of the memory of a tensor; of the tensor itself where it has none of the plain kind."""
    try:
        return int(value.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return id(value)


def tensors_of(result: Any) -> list[torch.Tensor]:
    """Tensors that a result is, or holds."""
    if isinstance(result, Mapping):
        result = list(result.values())
    return [
        part
        for part in (result if isinstance(result, (tuple, list)) else [result])
        if isinstance(part, torch.Tensor)
    ]


def whole_inputs(result: Any, inputs: Mapping[str, torch.Tensor]) -> dict[int, str]:
    """Returns which tensors of a result, by position, are an input: its memory in its form; with the port."""
    ports = {_extent(value): port for port, value in inputs.items()}
    extents = [_extent(tensor) for tensor in tensors_of(result)]
    return {at: ports[extent] for at, extent in enumerate(extents) if extent in ports}


def _extent(value: torch.Tensor) -> tuple[Any, ...]:
    """Memory of a tensor, and which of its elements it is in what order."""
    return _place(value), value.storage_offset(), tuple(value.shape), tuple(value.stride()), value.dtype


def is_expanded(value: torch.Tensor) -> bool:
    """Tells whether several elements of a tensor are one place in memory, so that torch refuses to write into it."""
    return value.layout is torch.strided and any(
        size > 1 and not stride for size, stride in zip(value.shape, value.stride(), strict=True)
    )


def foreign_tensors(holder: list[Any]) -> set[int]:
    """Returns which tensors of a result lie in memory that is there still once it is gone, or in that of another.

    Args:
        holder: A list with the result alone, to which nothing else refers; the result is removed from it.
    """
    tensors = tensors_of(holder.pop())
    storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]  # type: ignore[no-untyped-call]
    keys = [storage.cdata for storage in storages]
    del tensors
    return {
        at
        for at, storage in enumerate(storages)
        if keys.count(keys[at]) > 1 or not storage.expired()  # type: ignore[no-untyped-call]
    }
