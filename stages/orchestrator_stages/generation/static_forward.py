"""Run a forward of transformers without a look at any value, so that it can be planned, exported and never waits.

Some forwards ask their tensors: whether a mask is all ones and can be left out, whether a half-precision layer has
overflown, at which position a slice begins. Each of these questions has an answer that holds for any value:

- a mask may always be applied, also where it hides nothing;
- what an overflow is clamped to is a choice between two tensors;
- a range or slice that begins at a position holds one element, where one token is read at a time;
- no position lies outside of the table of positions, no slot behind the end of a mask: how many there are is compared
  before anything is planned;
- every expert of a mixture may be run on every token, where what it makes of others than its own is not added.

The last one is much work, so it is given only where no value can be seen: on a device, and where shapes are found out.

Any other question is left to the library; on fake tensors it raises, which says that the forward cannot be followed.
Masks are made by broadcasting: see :mod:`orchestrator_stages.generation.masks`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from orchestrator_stages.generation.masks import BroadcastMasks

__all__ = ["StaticForward", "forward_context", "without_values"]

_is_blind: ContextVar[bool] = ContextVar("is_blind", default=False)


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Makes forwards run as where no value can be seen, in this thread, until it is left."""
    token = _is_blind.set(True)
    try:
        yield
    finally:
        _is_blind.reset(token)


def forward_context(is_static: bool) -> contextlib.AbstractContextManager[None]:
    """Returns what a forward of the library runs in.

    Args:
        is_static: Answer what it asks of values.
    """
    return _answering() if is_static else BroadcastMasks()


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    with BroadcastMasks(), StaticForward():
        yield


class StaticForward(TorchFunctionMode):
    """Answers the questions above while a forward reads one token, or any number of them that begin at 0."""

    def __init__(self) -> None:
        super().__init__()
        self._false: list[Tensor] = []
        self._finite: list[tuple[Tensor, Tensor]] = []
        self._guards: list[tuple[Tensor, Tensor]] = []
        self._hits: list[Tensor] = []
        self._picks: list[tuple[Tensor, Tensor]] = []
        self._is_visiting = False

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

    def _exceed(self, func: Callable[..., Any], value: Tensor, other: Any) -> Any:
        result = func(value, other)
        if value.dim() == 1 and other == 0:
            self._hits.append(result)
        return result

    def _visit(self, func: Callable[..., Any], value: Tensor, **kwargs: Any) -> Any:
        # Experts that a token was routed to: all of them, each a number that can be seen, in the form of a row.
        if _sees(value) or not any(value is item for item in self._hits):
            return func(value, **kwargs)
        self._is_visiting = True
        return [torch.tensor([place], device=value.device) for place in range(value.shape[0])]

    def _format(self, func: Callable[..., Any], value: Tensor, spec: str) -> Any:
        # Experts may be parts with numbers as names.
        return format(value.item(), spec) if self._is_visiting and not value.dim() else func(value, spec)

    def _pick(self, func: Callable[..., Any], condition: Tensor, *values: Any) -> Any:
        # Tokens of an expert, by choice and place: all of them. Which are its own is asked where they are added.
        if values or not self._is_visiting or condition.dim() != 2 or _sees(condition):
            return func(condition, *values)
        choices, tokens = condition.shape
        places = torch.arange(tokens, device=condition.device).repeat(choices)
        self._picks.append((places, condition.flatten().bool()))
        return torch.arange(choices, device=condition.device).repeat_interleave(tokens), places

    def _add(self, func: Callable[..., Any], value: Tensor, dim: int, index: Tensor, source: Tensor) -> Any:
        is_own = next((truth for places, truth in self._picks if places is index), None)
        return func(value, dim, index, source if is_own is None else source.where(is_own[:, None], 0))

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


def _sees(value: Tensor) -> bool:
    """Tells whether the numbers in a tensor can be had without waiting for a device."""
    is_plain = type(value) is Tensor and value.device.type == "cpu"
    return is_plain and not torch.compiler.is_compiling() and not _is_blind.get()


_ANSWERS: dict[Any, Callable[..., Any]] = {
    torch.isfinite: StaticForward._isfinite,
    torch.Tensor.isfinite: StaticForward._isfinite,
    torch.all: StaticForward._every,
    torch.Tensor.all: StaticForward._every,
    torch.Tensor.__bool__: StaticForward._bool,
    torch.Tensor.gt: StaticForward._greater,
    torch.greater: StaticForward._exceed,
    torch.Tensor.nonzero: StaticForward._visit,
    torch.Tensor.__format__: StaticForward._format,
    torch.where: StaticForward._pick,
    torch.Tensor.index_add_: StaticForward._add,
    torch.clamp: StaticForward._clamp,
    torch.Tensor.clamp: StaticForward._clamp,
    torch.arange: StaticForward._arange,
    torch.Tensor.__getitem__: StaticForward._item,
}
