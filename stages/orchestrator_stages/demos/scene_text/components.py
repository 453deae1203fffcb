"""Connected components: which cells of a map hang together, side by side or one below the other."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def label_components(mask: Tensor) -> Tensor:
    """Numbers the connected components of a map.

    Each row is cut into runs of cells; runs of neighbouring rows that share a column are one component.

    Args:
        mask: bool ``[rows, columns]``.

    Returns:
        int64 of the same shape: 0 where ``mask`` is false, else 1, 2, ... in the order in which reading row by row
        meets the components.
    """
    # A pass over the runs joins each to those of the row above that touch it. Runs are ordered by row and column, so
    # `above` only moves on: it is the first run of the row above that may still touch.
    rows, starts, stops = _runs(mask.numpy())
    parent = list(range(len(rows)))
    above = 0
    for run, row in enumerate(rows):
        while above < run and (
            rows[above] < row - 1 or (rows[above] == row - 1 and stops[above] <= starts[run])
        ):
            above += 1
        other = above
        while other < run and rows[other] == row - 1 and starts[other] < stops[run]:
            _join(parent, other, run)
            other += 1
    # Roots are final now; a root is its component's earliest run, so numbers rise in reading order.
    numbers: dict[int, int] = {}
    labels = torch.zeros(mask.shape, dtype=torch.int64)
    for run, row in enumerate(rows):
        labels[row, starts[run] : stops[run]] = numbers.setdefault(_root(parent, run), len(numbers) + 1)
    return labels


def _runs(mask: np.ndarray) -> tuple[list[int], list[int], list[int]]:
    """Row, first column and end of each run, row by row."""
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(edges == 1)
    _, stops = np.nonzero(edges == -1)
    return rows.tolist(), starts.tolist(), stops.tolist()


def _root(parent: list[int], run: int) -> int:
    while parent[run] != run:
        parent[run] = parent[parent[run]]
        run = parent[run]
    return run


def _join(parent: list[int], one: int, other: int) -> None:
    """Makes two runs one component; its root is the earlier one."""
    first, second = sorted((_root(parent, one), _root(parent, other)))
    parent[second] = first
