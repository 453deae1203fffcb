"""Values that a region is compiled for and compared on: what it reads while the example request runs.

A request has one size and a region several programs: values are repeated or cut to the shapes of each. So an index
stays one that some request had. Where there is no example, numbers are drawn and indices are 0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from orchestrator.specs import TensorSpec

__all__ = ["InputRecorder", "fit_sample", "make_sample"]


class InputRecorder:
    """Stands for the programs of a region, runs its stages, and notes what the first run of it reads.

    Args:
        function: The stages, as a function of the region's inputs.

    Attributes:
        values: What it read; None: it did not run.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.values: list[Tensor] | None = None
        self._function = function

    def get(self, _: tuple[Any, ...], /) -> Callable[[list[Any]], Any]:
        """Returns the stages, for any shapes."""
        return self._run

    def _run(self, values: Sequence[Tensor]) -> Any:
        if self.values is None:
            self.values = [value.detach().clone() for value in values]
        return self._function(*values)


def fit_sample(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns a dense tensor of a shape with the elements of a value, repeated or cut."""
    for dim, size in enumerate(shape):
        if value.shape[dim] != size:
            index = torch.arange(size, device=value.device) % max(value.shape[dim], 1)
            value = value.index_select(dim, index) if value.shape[dim] else _zeros(value, dim, size)
    return value.clone(memory_format=torch.contiguous_format)


def _zeros(value: Tensor, dim: int, size: int) -> Tensor:
    return value.new_zeros((*value.shape[:dim], size, *value.shape[dim + 1 :]))


def make_sample(spec: TensorSpec, sizes: Mapping[str, int], device: str) -> Tensor:
    """Returns a tensor of a spec: drawn floats, integers that are 0, flags that are true."""
    shape = spec.shape(sizes)
    if spec.dtype.is_floating_point:
        generator = torch.Generator().manual_seed(0)
        with contextlib.suppress(RuntimeError):
            return torch.randn(shape, generator=generator).to(device, spec.dtype)
    return torch.full(shape, spec.dtype is torch.bool, dtype=spec.dtype, device=device)
