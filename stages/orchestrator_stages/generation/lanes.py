"""Several sequences of each row at the same time: tensors with a dim of lanes behind that of the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from orchestrator import Dim, TensorSpec

__all__ = ["SpreadState", "join_lanes", "lane_specs", "order_lanes", "split_lanes"]


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


def order_lanes(tensor: Tensor, dim: int | None, origin: Tensor) -> Tensor:
    """Returns lanes in another order.

    Args:
        tensor: With lanes behind the dim of the batch.
        dim: The dim of the batch; None: it has none, nor lanes.
        origin: ``[batch, lanes]``, int64: which lane of its row each lane goes on with.
    """
    if dim is None:
        return tensor
    rows, lanes = origin.shape
    places = torch.arange(rows, device=origin.device)[:, None] * lanes + origin
    state_in_order = join_lanes(tensor, dim).index_select(dim, places.flatten())
    return split_lanes(state_in_order, dim, lanes)


class SpreadState(nn.Module):
    """Gives every lane of a row what its prompt left.

    Args:
        names: The names of the tensors.
        dims: Their dims of the batch.
        lanes: How many lanes.
    """

    def __init__(self, names: Sequence[str], dims: Sequence[int | None], lanes: int) -> None:
        super().__init__()
        self.names = tuple(names)
        self.dims = tuple(dims)
        self.lanes = lanes

    def forward(self, *state: Tensor) -> dict[str, Tensor]:
        """Returns the tensors by name, with the dim of lanes."""
        spread = {}
        for name, dim, tensor in zip(self.names, self.dims, state, strict=True):
            if dim is not None:
                shape = (*tensor.shape[: dim + 1], self.lanes, *tensor.shape[dim + 1 :])
                tensor = tensor.unsqueeze(dim + 1).expand(shape).contiguous()
            spread[name] = tensor
        return spread
