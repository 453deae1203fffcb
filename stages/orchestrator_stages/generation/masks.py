"""Make the masks of transformers by broadcasting, while a forward is followed.

A mask of the library is a function of four places: of the row, the head, the query and the key. The library runs it
with ``torch.vmap`` over all of them (always before 5.0, and since then where a model adds a function of its own). A
program that is exported can hold such a run, but nobody can write it to a file. The same function over places that are
broadcast against each other gives the same mask, of operators that any device knows; whether it does so for a model is
seen when its logits are compared with those of its own ``generate()``, which makes its masks as the library does.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from torch import Tensor

__all__ = ["BroadcastMasks"]

_broadcasts: ContextVar[bool] = ContextVar("broadcasts", default=False)

Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class BroadcastMasks:
    """Makes masks by broadcasting, in this thread, until it is left."""

    def __enter__(self) -> None:
        self._token = _broadcasts.set(True)

    def __exit__(self, *_: object) -> None:
        _broadcasts.reset(self._token)


def _broadcast(mask: Mask) -> Mask:
    def expanded(rows: Tensor, heads: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        places = rows[:, None, None, None], heads[:, None, None], queries[:, None], keys
        return mask(*places).expand(len(rows), len(heads), len(queries), len(keys))

    return expanded


def _offer(masks: Any, name: str, broadcast: Callable[..., Any]) -> None:
    """Lets a module of the library choose; outside of :class:`BroadcastMasks` it does what it did."""
    original = getattr(masks, name, None)
    if original is None:
        return

    def choice(*args: Any) -> Any:
        return (broadcast if _broadcasts.get() else original)(*args)

    setattr(masks, name, choice)


masks: Any = importlib.import_module("transformers.masking_utils")
# The first two are one function, in 4.57 and later. The third turns an index by a scalar into one by a tensor, which
# only a function under vmap needs.
_offer(masks, "_vmap_for_bhqkv", _broadcast)
_offer(masks, "_vmap_expansion_sdpa", _broadcast)
_offer(masks, "TransformGetItemToIndex", contextlib.nullcontext)
