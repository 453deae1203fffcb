"""What an expert writes around a model that generates: a cache that is made once, and a loop around a compiled step."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


@functools.cache
def expert_layer() -> Any:
    """The class of a layer of the expert's cache: made once, each token is written into its place."""
    base: Any = importlib.import_module("transformers.cache_utils").CacheLayerMixin

    class ExpertLayer(base):  # type: ignore[misc]
        is_sliding = False
        is_compileable = False
        is_initialized = True

        def __init__(self, batch: int, length: int, filled: int, size: int, heads: int) -> None:
            self.keys, self.values = (torch.zeros(batch, heads, length, size) for _ in range(2))
            self.filled = filled

        def lazy_initialization(self, *_: Tensor) -> None:
            """It is made already."""

        def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            """Writes tokens; gives what is filled, which is the prompt as it is where there is nothing else."""
            at, self.filled = self.filled, self.filled + keys.shape[2]
            self.keys[:, :, at : self.filled], self.values[:, :, at : self.filled] = keys, values
            if not at:
                return keys, values
            return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]

        def get_seq_length(self) -> int:
            return self.filled

        def get_mask_sizes(self, query: Any) -> tuple[int, int]:
            return self.filled + (query.shape[0] if isinstance(query, Tensor) else int(query)), 0

        def get_max_length(self) -> int:
            return int(self.keys.shape[2])

        get_max_cache_shape = get_max_length

    return ExpertLayer


def expert_cache(model: Any, batch: int, length: int, filled: int) -> Any:
    """A cache of such layers."""
    cache = importlib.import_module("transformers.cache_utils").DynamicCache()
    heads = model.config.num_attention_heads
    layers = range(model.config.num_hidden_layers)
    cache.layers = [
        expert_layer()(batch, length, filled, model.config.hidden_size // heads, heads) for _ in layers
    ]
    return cache


def compiled_by_hand(
    model: Any,
    request: dict[str, Tensor],
    length: int,
    step: Callable[..., Tensor],
    first: Callable[..., tuple[Tensor, Tensor]],
    end: int,
) -> Callable[[], Tensor]:
    """The expert's loop around a compiled step, from the prompt to the last token.

    A compiled step has one shape, so it reads all slots of the cache, of which the model's mask hides the empty ones.

    Args:
        model: The model.
        request: Its prompts.
        length: Tokens at the end.
        step: Of a token, the cache, the mask and places, the next token.
        first: Of the model, a request and the cache, the first token, and the place of the last one of each prompt.
        end: The token that ends a text.
    """
    caches = importlib.import_module("transformers.cache_utils")
    compiled_step = torch.compile(step, dynamic=False, fullgraph=True)
    batch, prompt = request["input_ids"].shape
    ends = torch.tensor([end])

    @torch.no_grad()
    def run() -> Tensor:
        cache = caches.StaticCache(config=model.config, max_cache_len=length)
        token, place = first(model, request, cache)
        mask = torch.cat(
            [request["attention_mask"], torch.ones(batch, length - prompt, dtype=torch.int64)], 1
        )
        chosen = torch.zeros(batch, length - prompt, dtype=torch.int64)
        finished = torch.zeros(batch, dtype=torch.bool)
        for at in range(length - prompt):
            if at:
                place = place + 1
                token = torch.where(finished, 0, compiled_step(token, cache, mask, place))
            chosen[:, at] = token
            finished = finished | torch.isin(token, ends)
            if finished.all():
                break
        return torch.cat([request["input_ids"], chosen[:, : at + 1]], 1)

    return run
