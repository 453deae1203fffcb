"""Several sequences of each row at the same time: tensors with a dim of lanes behind that of the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from orchestrator import Dim, TensorSpec

__all__ = ["SpreadState", "copy_steps", "join_lanes", "lane_specs", "reorder", "split_lanes"]

SCRATCH = -1
"""Stands for a row of its own, in which one is kept while others move."""


def lane_specs(specs: Mapping[str, TensorSpec], rows: Dim, lanes: int) -> dict[str, TensorSpec]:
    """Returns specs with a dim of lanes behind that of the batch, where there is one.

    Args:
        specs: By name.
        rows: The dim of the batch.
        lanes: How many sequences a row has; 1: there is no such dim.
    """
    result = dict(specs)
    for name, spec in specs.items():
        if lanes > 1 and rows in spec.dims:
            place = spec.dims.index(rows) + 1
            result[name] = TensorSpec((*spec.dims[:place], lanes, *spec.dims[place:]), spec.dtype)
    return result


def join_lanes(tensor: Tensor, dim: int | None) -> Tensor:
    """Returns a tensor in which each lane is a row; ``dim`` is that of the batch, None: it has none."""
    return tensor if dim is None else tensor.flatten(dim, dim + 1)


def split_lanes(tensor: Tensor, dim: int | None, lanes: int) -> Tensor:
    """Undoes :func:`join_lanes`."""
    if dim is None:
        return tensor
    shape = tensor.shape
    return tensor.reshape(*shape[:dim], shape[dim] // lanes, lanes, *shape[dim + 1 :])


def copy_steps(order: Sequence[int]) -> list[tuple[int, int]]:
    """Returns what to copy, one after the other, so that each row becomes the one that ``order`` names for it.

    Args:
        order: For each row, which one it is to be.

    Returns:
        Pairs of a target and a source, -1 for a scratch row. A row that stays is in none as a target.
    """
    # First rows that nobody reads any more; each that is written may leave another one that nobody reads.
    sources = {row: source for row, source in enumerate(order) if row != source}
    readers = [0] * len(order)
    for source in sources.values():
        readers[source] += 1
    steps: list[tuple[int, int]] = []
    free = [row for row in sources if not readers[row]]
    while free:
        row = free.pop()
        source = sources.pop(row)
        steps.append((row, source))
        readers[source] -= 1
        if not readers[source] and source in sources:
            free.append(source)
    # What is left are circles, each of which is opened by one row that waits beside the others.
    while sources:
        first = row = next(iter(sources))
        steps.append((SCRATCH, first))
        while (source := sources.pop(row)) != first:
            steps.append((row, source))
            row = source
        steps.append((row, SCRATCH))
    return steps


def reorder(tensor: Tensor, dim: int, order: Tensor | Sequence[tuple[int, int]]) -> None:
    """Puts the rows of a tensor into another order, in place.

    Args:
        tensor: The tensor.
        dim: The dim of the rows.
        order: What :func:`copy_steps` returns: nothing is copied but rows that move, with one more as scratch. Or
            ``[rows]``, int64, which row each is to be, where values cannot be read: all of it is copied.
    """
    if isinstance(order, Tensor):
        tensor.copy_(tensor.index_select(dim, order))
        return
    parts = tensor.unbind(dim)
    scratch = tensor
    for target, source in order:
        if target == SCRATCH:
            scratch = parts[source].clone()
        else:
            parts[target].copy_(scratch if source == SCRATCH else parts[source])


class SpreadState(nn.Module):
    """Gives every lane of a row what its prompt left.

    Args:
        owner: The module that updates it from then on: on a device that compiles both are one application, and it is a
            state of that.
        dims: By name and in order the dims of the batch of what it takes.
        lanes: How many lanes.
    """

    def __init__(self, owner: Any, dims: Mapping[str, int], lanes: int) -> None:
        super().__init__()
        self.owner = owner
        self.dims = dict(dims)
        self.lanes = lanes
        self.training = owner.training

    def forward(self, *state: Tensor) -> dict[str, Tensor]:
        """Returns the tensors by name, with the dim of lanes: memory of their own, which a loop may update."""
        spread = {}
        for (name, dim), tensor in zip(self.dims.items(), state, strict=True):
            shape = (*tensor.shape[: dim + 1], self.lanes, *tensor.shape[dim + 1 :])
            spread[name] = tensor.unsqueeze(dim + 1).expand(shape).clone()
        return spread
