"""Ranked values: results that stay on the device, one tensor for each rank.

NxD Inference hands values about as ``[rank][output]``, a list of lists whose tensors are of device type
``privateuseone``, and a stage that is given one takes output 0 of every row, whatever else is there. So a handle here
has exactly one output: ``[[tensor of rank 0], [tensor of rank 1], ...]``. To NxD Inference it is an ordinary list of
lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["RankedValue", "is_ranked", "split_outputs"]

#: Names of the device type: torch's own, and the one that Neuron's runtime may give it.
DEVICE_TYPES = ("privateuseone", "neuron")


class RankedValue(list[list[torch.Tensor]]):
    """One value on the device: a row for each rank, with one tensor in it.

    Two of them are equal if they are the same object: comparing contents would be compute on the device.
    """

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    @property
    def shape(self) -> torch.Size:
        """Shape on rank 0; a sharded value has a part of the whole there."""
        return self[0][0].shape

    @property
    def dtype(self) -> torch.dtype:
        """Element type."""
        return self[0][0].dtype

    def __repr__(self) -> str:
        if not self or not self[0]:
            return "RankedValue(no ranks)"
        name = str(self.dtype).removeprefix("torch.")
        return f"RankedValue({len(self)} x {list(self.shape)} {name} on {self[0][0].device.type})"


def is_ranked(value: object) -> bool:
    """Tells whether a value is ``[rank][output]`` on a Neuron device.

    Unlike NxD Inference's ``is_ranked_io`` it takes tuples for lists, knows both names of the device type, and answers
    for empty lists.
    """
    row = value[0] if isinstance(value, (list, tuple)) and value else None
    first = row[0] if isinstance(row, (list, tuple)) and row else None
    return isinstance(first, torch.Tensor) and first.device.type in DEVICE_TYPES


def split_outputs(rows: Sequence[Sequence[Any]]) -> tuple[RankedValue, ...]:
    """Turns the result of a program, ``[rank][output]``, into one ranked value for each output.

    Args:
        rows: A row for each rank, all of the same length.

    Raises:
        ValueError: The rows differ in length.
    """
    return tuple(RankedValue([tensor] for tensor in column) for column in zip(*rows, strict=True))
