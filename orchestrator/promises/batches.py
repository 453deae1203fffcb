"""Cutting, permuting and enlarging the values of one call along a batch dim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from orchestrator.specs import Derived, PortSpec, TensorSpec, plain_dims

__all__ = ["Axes", "Pick", "chunk_of", "is_uniform", "make_batch", "picks"]


@dataclass(frozen=True)
class Pick:
    """Some items of a batch, in some order.

    Attributes:
        items: Their places.
        is_permuted: All items in another order; else a chunk.
    """

    items: tuple[int, ...]
    is_permuted: bool = False

    def of(self, value: torch.Tensor, axis: int, count: int, *, blocks: bool) -> torch.Tensor:
        """Returns these items of a value.

        Args:
            value: The value.
            axis: Where its items are.
            count: How many items there are; the axis is a multiple of that.
            blocks: Where it is larger: all items come again and again, one block after another; else what belongs to
                one item is side by side.
        """
        times = value.shape[axis] // count
        shape = (times, count) if blocks else (count, times)
        parts = value.reshape(*value.shape[:axis], *shape, *value.shape[axis + 1 :])
        items = parts.index_select(axis + blocks, torch.tensor(self.items, device=value.device))
        return items.flatten(axis, axis + 1)


def picks(count: int) -> list[Pick]:
    """Returns two chunks of different size, where there are more than two items, and a permutation."""
    cut = count // 2
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count)).tolist()
    if order == list(range(count)):
        order = order[::-1]
    return [Pick(tuple(range(cut))), Pick(tuple(range(cut, count))), Pick(tuple(order), is_permuted=True)]


@dataclass(frozen=True)
class Axes:
    """Where the ports of one side of a call carry a dim.

    Attributes:
        plain_axes: Port to the axis that is the dim itself.
        derived_axes: Port to the axis whose size only follows from it; None: there are several.
    """

    plain_axes: Mapping[str, int]
    derived_axes: Mapping[str, int | None]

    @property
    def axes(self) -> dict[str, int]:
        """Port to axis, of both kinds."""
        return {
            **self.plain_axes,
            **{port: axis for port, axis in self.derived_axes.items() if axis is not None},
        }

    def present(self, values: Mapping[str, Any]) -> Axes:
        """Returns those of ports that have a tensor."""
        there = {port for port, value in values.items() if isinstance(value, torch.Tensor)}
        plain = {port: axis for port, axis in self.plain_axes.items() if port in there}
        return Axes(plain, {port: axis for port, axis in self.derived_axes.items() if port in there})

    @staticmethod
    def of(ports: tuple[tuple[str, PortSpec], ...], name: str) -> Axes:
        """Finds them."""
        plain_axes: dict[str, int] = {}
        derived_axes: dict[str, int | None] = {}
        for port, spec in ports:
            dims = plain_dims(spec.dims) if isinstance(spec, TensorSpec) else ()
            follows = [at for at, dim in enumerate(dims) if isinstance(dim, Derived) and name in dim.names]
            whole = [at for at, dim in enumerate(dims) if dim == name]
            if len(follows) + len(whole) > 1:
                derived_axes[port] = None
            elif follows:
                derived_axes[port] = follows[0]
            elif whole:
                plain_axes[port] = whole[0]
        return Axes(plain_axes, derived_axes)


def make_batch(value: torch.Tensor, axis: int, count: int, seed: int) -> torch.Tensor:
    """Makes a batch of ``count`` items out of the first one: the others have other content of the same range.

    Floats are moved by a part of their spread; integers and booleans are drawn from those that there are.
    """
    # Masks hold values near infinity, which noise would turn into numbers: those stay, and count for no spread.
    generator = torch.Generator().manual_seed(seed)
    first = value.narrow(axis, 0, 1).cpu()
    parts = [first]
    for _ in range(count - 1):
        if first.is_floating_point():
            finite = first.to(torch.float64).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            moderate = finite.masked_fill(finite.abs() > 1e4, 0.0)
            spread = float(moderate.std(correction=0)) or float(moderate.abs().max()) or 1.0
            noise = torch.randn(first.shape, generator=generator, dtype=torch.float32) * 0.5 * spread
            parts.append(torch.where(finite.abs() > 1e4, first, first + noise.to(first.dtype)))
        elif first.numel():
            flat = first.flatten()
            parts.append(flat[torch.randint(0, flat.numel(), first.shape, generator=generator)])
        else:
            parts.append(first)
    return torch.cat(parts, axis).to(value.device)


def is_uniform(value: torch.Tensor, axis: int) -> bool:
    """Tells whether all items along an axis are equal, so that nobody sees whether they change one another."""
    return torch.equal(value, value.narrow(axis, 0, 1).expand_as(value))


def chunk_of(value: Any, pick: Pick, count: int) -> Any:
    """Returns the items of a Python value that is one list or tuple with an entry for each item; else the value."""
    if isinstance(value, (list, tuple)) and len(value) == count and not hasattr(value, "_fields"):
        return type(value)(value[item] for item in pick.items)
    return value
