"""Run a forward of transformers without a look at any value, so that it can be planned, exported and never waits.

Some forwards ask their tensors: whether a mask is all ones and can be left out, whether a half-precision layer has
overflown, at which position a slice begins. Each of these questions has an answer that holds for any value:

- a mask may always be applied, also where it hides nothing;
- what an overflow is clamped to is a choice between two tensors;
- a range or slice that begins at a position holds one element, where one token is read at a time;
- no position lies outside of the table of positions: how many there are is compared before anything is planned.

Any other question is left to the library; on fake tensors it raises, which says that the forward cannot be followed.
Masks are made by broadcasting: see :mod:`orchestrator_stages.generation.masks`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from orchestrator_stages.generation.masks import broadcast_masks

__all__ = ["StaticForward", "forward_context"]


@contextlib.contextmanager
def forward_context(is_static: bool) -> Iterator[None]:
    """What a forward of the library runs in.

    Args:
        is_static: Answer what it asks of values.
    """
    with broadcast_masks(), StaticForward() if is_static else contextlib.nullcontext():
        yield


class StaticForward(TorchFunctionMode):
    """Answers the questions above while a forward reads one token, or any number of them that begin at 0."""

    def __init__(self) -> None:
        super().__init__()
        self._false: list[Tensor] = []
        self._finite: list[tuple[Tensor, Tensor]] = []
        self._guards: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        answer = _ANSWERS.get(func)
        return func(*args, **kwargs) if answer is None else answer(self, func, *args, **kwargs)

    def _isfinite(self, func: Callable[..., Any], value: Tensor) -> Any:
        result = func(value)
        self._finite.append((result, value))
        return result

    def _every(self, func: Callable[..., Any], value: Tensor, *args: Any, **kwargs: Any) -> Any:
        # The whole tensor's truth is remembered, with the value whose infinities it was asked of, if it was.
        result = func(value, *args, **kwargs)
        if not args and not kwargs:
            self._false.append(result)
            self._guards += [(states, result) for finite, states in self._finite if finite is value]
        return result

    def _bool(self, func: Callable[..., Any], value: Tensor) -> Any:
        return False if any(value is item for item in self._false) else func(value)

    def _greater(self, func: Callable[..., Any], value: Tensor, other: Any) -> Any:
        result = func(value, other)
        if not value.dim() and not value.is_floating_point() and isinstance(other, int):
            self._false.append(result)
        return result

    def _clamp(self, func: Callable[..., Any], value: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = func(value, *args, **kwargs)
        is_finite = next((truth for states, truth in self._guards if states is value), None)
        return result if is_finite is None else torch.where(is_finite, value, result)

    def _arange(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if len(args) < 2 or not isinstance(args[0], Tensor):
            return func(*args, **kwargs)
        return args[0].reshape(1).to(kwargs.get("dtype") or torch.int64)

    def _item(self, func: Callable[..., Any], value: Tensor, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        if not any(isinstance(part, slice) and isinstance(part.start, Tensor) for part in parts):
            return func(value, index)
        for dim, part in enumerate(parts):
            if isinstance(part, slice) and isinstance(part.start, Tensor):
                value = value.index_select(dim, part.start.reshape(1))
            elif part != slice(None):
                return func(value, index)
        return value


_ANSWERS: dict[Any, Callable[..., Any]] = {
    torch.isfinite: StaticForward._isfinite,
    torch.Tensor.isfinite: StaticForward._isfinite,
    torch.all: StaticForward._every,
    torch.Tensor.all: StaticForward._every,
    torch.Tensor.__bool__: StaticForward._bool,
    torch.Tensor.gt: StaticForward._greater,
    torch.clamp: StaticForward._clamp,
    torch.Tensor.clamp: StaticForward._clamp,
    torch.arange: StaticForward._arange,
    torch.Tensor.__getitem__: StaticForward._item,
}
