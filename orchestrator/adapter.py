"""Adapters: what the planner puts on an edge so that its two ends fit.

    upload, download, copy   move a value: host to device, device to host, device to device
    pad                      grow to the consumer's size; named dims go to their bucket
    gather                   move to the host and join what the ranks hold of it, each a part
    slice                    cut to the consumer's fixed size, from the end
    cut                      undo a padding: named dims go back to the real size of the request
    cast                     change the dtype
    clone                    copy within its memory, so that a stage may update the copy in place

Where a device has no eager compute, an adapter has a *place*: it is folded into the ``producer`` or the ``consumer``
when that is compiled, or is a ``program`` of its own. Elsewhere it has none: it is an op, or happens on the host.

An adapter is data. :func:`apply` does a ``pad``, ``slice``, ``cut``, ``cast`` or ``clone`` with torch ops and serves
every backend with eager compute; moves belong to the backends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from orchestrator.specs import AnyDim, Derived, Pad, TensorSpec, dtype_name, plain_dims, size_of

__all__ = ["CLONE", "Adapter", "Kind", "Place", "apply", "check_cast", "pad_to", "part_of", "slice_to"]

Kind: TypeAlias = Literal["upload", "download", "copy", "gather", "pad", "slice", "cut", "cast", "clone"]
Place: TypeAlias = Literal["", "producer", "consumer", "program"]

MOVES = ("upload", "download", "copy", "gather")
#: Kinds whose result has the adapter's own dims.
RESIZES = ("pad", "slice", "cut", "gather")

_PLACES = {
    "producer": ", in the producer",
    "consumer": ", in the consumer",
    "program": ", a program of its own",
}


@dataclass(frozen=True)
class Adapter:
    """One thing done to a value on its way.

    Attributes:
        kind: See the module's table.
        dims: Target dims of ``pad``, ``slice``, ``cut`` and ``gather``.
        rule: What ``pad`` fills with; ``None`` is an exact fit: growing there is an error.
        dtype: Target of ``cast``.
        device: Target of a move.
        to_bucket: A ``pad`` that takes named dims from the request's size to their bucket.
        place: Where it happens on a device without eager compute; see the module.
    """

    kind: Kind
    dims: tuple[AnyDim, ...] = ()
    rule: Pad = None
    dtype: torch.dtype | None = None
    device: str = ""
    to_bucket: bool = False
    place: Place = ""

    def __str__(self) -> str:
        return f"{self._what()}{_PLACES.get(self.place, '')}"

    def _what(self) -> str:
        if self.kind == "gather":
            return f"gather to [{', '.join(str(dim) for dim in self.dims)}] on the host"
        if self.kind in MOVES:
            return f"{self.kind} to {self.device}"
        if self.kind == "cast":
            return f"cast to {dtype_name(self.dtype)}" if self.dtype else "cast"
        if self.kind == "clone":
            return "clone"
        rule = "" if self.kind != "pad" else f" ({'exact fit only' if self.rule is None else self.rule})"
        return f"{self.kind} to [{', '.join(str(dim) for dim in self.dims)}]{rule}"

    def result(self, spec: TensorSpec) -> TensorSpec:
        """Returns the spec of the value that comes out."""
        dims = self.dims if self.kind in RESIZES else spec.dims
        return TensorSpec(plain_dims(dims), self.dtype or spec.dtype)

    def shape(self, actual: tuple[int, ...], sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Returns the target of ``pad``, ``slice`` or ``cut``; a size derived from dims of any size stays as given."""
        return tuple(
            size if isinstance(dim, Derived) and not dim.is_proven(sizes) else size_of(dim, sizes)
            for dim, size in zip(self.dims, actual, strict=True)
        )


#: The one adapter of its kind.
CLONE = Adapter("clone")


def pad_to(value: torch.Tensor, shape: tuple[int, ...], rule: Pad) -> torch.Tensor:
    """Grows a tensor at the end of its dims.

    Args:
        value: Any tensor.
        shape: Target, no smaller than ``value`` in any dim.
        rule: A number to fill with, or ``"repeat_first"``.

    Returns:
        A new tensor of that shape; ``value`` itself where it fits already.
    """
    # Dim after dim, each time of what has grown so far: a corner repeats the first slice of a repeated slice.
    if rule == "repeat_first":
        for dim, size in enumerate(shape):
            missing = size - value.shape[dim]
            if missing:
                first = value.narrow(dim, 0, 1)
                value = torch.cat(
                    [value, first.expand(*value.shape[:dim], missing, *value.shape[dim + 1 :])], dim
                )
        return value
    if tuple(value.shape) == shape:
        return value
    result = value.new_full(shape, rule)  # type: ignore[arg-type]
    result[tuple(slice(size) for size in value.shape)] = value
    return result


def slice_to(value: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Cuts a tensor at the end of its dims.

    Returns:
        A new tensor that is as dense as the whole was, so that it does not hold what was cut off; ``value`` itself
        where it fits already.
    """
    cut = value
    for dim, size in enumerate(shape):
        if cut.shape[dim] > size:
            cut = cut.narrow(dim, 0, size)
    return value if cut is value else cut.clone()


def part_of(value: torch.Tensor, dim: int, start: int, size: int) -> torch.Tensor:
    """Takes a chunk of a tensor: a view where that is as dense as the whole, else a new tensor."""
    part = value.narrow(dim, start, size)
    return part if part.is_contiguous() or not value.is_contiguous() else part.contiguous()


def _is_wider(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Tells whether an integer dtype holds all that another one does."""
    own, its = torch.iinfo(dtype), torch.iinfo(other)
    return own.min <= its.min and its.max <= own.max


def check_cast(value: torch.Tensor, dtype: torch.dtype) -> None:
    """Makes sure that an integer dtype holds every element; torch itself would wrap them.

    Args:
        value: A tensor of the host: its content is looked at.
        dtype: The target.

    Raises:
        OverflowError: An element does not fit.
    """
    if dtype.is_floating_point or dtype.is_complex or value.is_complex() or not value.numel():
        return
    if torch.bool in (dtype, value.dtype) or (
        not value.is_floating_point() and _is_wider(dtype, value.dtype)
    ):
        return
    limits = torch.iinfo(dtype)
    low, high = (end.item() for end in torch.aminmax(value))
    if low < limits.min or high > limits.max:
        odd = low if low < limits.min else high
        raise OverflowError(
            f"{odd} does not fit {dtype_name(dtype)}, which holds {limits.min} to {limits.max}"
        )


def apply(adapter: Adapter, value: torch.Tensor, sizes: Mapping[str, int]) -> torch.Tensor:
    """Does a ``pad``, ``slice``, ``cut``, ``cast`` or ``clone`` with torch ops.

    Args:
        adapter: What to do.
        value: A tensor on any device torch computes on.
        sizes: Sizes of names that the result is at: buckets, or the real ones for a value of the host.
    """
    if adapter.kind == "cast":
        return value.to(adapter.dtype)
    if adapter.kind == "clone":
        return value.clone()
    shape = adapter.shape(value.shape, sizes)
    return pad_to(value, shape, adapter.rule) if adapter.kind == "pad" else slice_to(value, shape)
