"""Cache layers whose tensors have one size from the first token to the last, so that a loop can carry them.

A layer of transformers grows with each token, or keeps only a window. Those here have a *slot* for every token that
there may be. The first forward, over the prompt, attends to the prompt alone, as the library's own layer has it, and
lays it down in the first slots; every later one writes behind it. Where its position is a number, it attends to what is
filled, within a window if there is one: what the library's own layer does, without its copies. Where the position is a
tensor, it attends to a window, or to all slots; of either the model's mask hides those that are empty.

What holds keys and values of an encoder, or the states of a recurrent layer, has a fixed size in the library as well
and stays as it is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = [
    "IndexedSlotLayer",
    "RecurrentSlotLayer",
    "SlotLayer",
    "cache_makers",
    "empty_cache",
    "empty_cross_cache",
]

# Typed by nothing: the versions of the library that are supported differ in what they declare.
cache_utils: Any = importlib.import_module("transformers.cache_utils")


class SlotLayer(cache_utils.CacheLayerMixin):  # type: ignore[misc]
    """Keys and values ``[batch, heads, slots, size]`` of one layer.

    Args:
        slots: How many tokens it holds.

    Attributes:
        position: The slot of the next token: a scalar, int64, or a number; None: the layer is empty.
        in_place: Write into the tensors that it was given, instead of new ones.
        slot_dims: Of attributes that have slots, the dim of these.
        reach: How many slots, from the first, are read; None: all.
    """

    is_compileable = (
        False  # else the library makes masks of four dims before each forward, of what is not there yet
    )
    is_sliding = False
    slot_dims: ClassVar[dict[str, int]] = {"keys": 2, "values": 2}

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots = slots
        self.position: Tensor | int | None = None
        self.in_place = False
        self.reach: int | None = None
        self.count = 0

    def lazy_initialization(self, key_states: Tensor, *_: Tensor) -> None:
        """Notes where and what the tensors are."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Lays new tokens down, and returns what they attend to.

        Args:
            key_states: ``[batch, heads, tokens, size]``.
            value_states: The same; its size may differ.
        """
        # The prompt attends to itself; only a layer that has a position has anything before.
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.position is None:
            self.count = key_states.shape[-2]
            self.keys, self.values = self._first(key_states, 2), self._first(value_states, 2)
            return key_states, value_states
        self.count += key_states.shape[-2]
        if self.in_place and isinstance(self.position, int):
            # What _write would do; this runs for each token.
            span = slice(self.position, self.position + self.count)
            self.keys[:, :, span], self.values[:, :, span] = key_states, value_states
        else:
            self.keys = self._write(self.keys, key_states, 2, self.position)
            self.values = self._write(self.values, value_states, 2, self.position)
        return self._read(key_states.shape[-2])

    def _read(self, tokens: int) -> tuple[Tensor, Tensor]:
        """What so many tokens attend to, the last that were laid down."""
        del tokens  # they attend to all that is filled
        readable = self._readable()
        return self.keys[:, :, readable], self.values[:, :, readable]

    def _readable(self, more: int = 0) -> slice:
        """Which slots are read when so many tokens more are laid down."""
        if isinstance(self.position, int):
            return slice(self.position + self.count + more)
        return slice(self.reach)

    def _first(self, states: Tensor, dim: int) -> Tensor:
        """Gives a prompt its slots, and empty ones behind it."""
        room = self.slots - states.shape[dim]
        return pad(states, (0, 0) * (states.dim() - 1 - dim) + (0, room))

    def _write(self, tensor: Tensor, states: Tensor, dim: int, position: Tensor | int) -> Tensor:
        """Writes states from a slot on."""
        if isinstance(position, int):
            slots = tensor if self.in_place else tensor.clone()
            slots[(slice(None),) * dim + (slice(position, position + states.shape[dim]),)] = states
            return slots
        places = position.reshape(1)
        if states.shape[dim] > 1:
            places = torch.arange(states.shape[dim], device=states.device) + position
        if self.in_place:
            return tensor.index_copy_(dim, places, states)
        return tensor.index_copy(dim, places, states)

    def get_seq_length(self, *_: Any) -> Any:
        """Returns how many slots are filled: an int over the prompt, afterwards what the position is."""
        return self.count if self.position is None else self.position + self.count

    def get_mask_sizes(self, query: Any) -> tuple[int, int]:
        """Returns how many slots a query attends to, and the first of them.

        Args:
            query: How many tokens it has; in older versions of the library, their places.
        """
        tokens = query.shape[0] if isinstance(query, Tensor) else int(query)
        if self.position is None:
            return self.count + tokens, 0
        first, end, _ = self._readable(tokens).indices(self.slots)
        return end - first, first

    def get_max_length(self) -> int:
        """Returns how many tokens it holds, of those that are read."""
        return self.slots if self.reach is None else self.reach

    get_max_cache_shape = get_max_length


class DecoderSlotLayer(SlotLayer):
    """The same for a decoder behind an encoder, whose loop reads the token in the first slot as well.

    The library leaves out the mask of such a token, which hides all other slots, unless it is told of a fixed size. No
    slot has to be hidden where the position is a number.
    """

    @property
    def is_compileable(self) -> bool:  # type: ignore[override]
        """Whether the mask of a single token is needed; the first tokens attend to themselves alone."""
        return isinstance(self.position, Tensor)


class SlidingSlotLayer(SlotLayer):
    """The same for a layer that attends to a window: what is outside of it is not read.

    Where the position is a tensor, that is so for a window smaller than what is read, and one token; else the mask
    hides what is outside.

    Args:
        slots: How many tokens it holds.
        window: To how many tokens, itself among them, a token attends.

    Attributes:
        is_masked: Where the position is no number all slots are read in any case, and the mask hides those outside.
    """

    is_sliding = True
    is_masked = False

    def __init__(self, slots: int, window: int) -> None:
        super().__init__(slots)
        self.window = window

    def _readable(self, more: int = 0) -> slice:
        filled = super()._readable(more)
        if not isinstance(self.position, int):
            return filled
        # The first of the tokens that are added attends to those before it, too.
        return slice(max(0, self.position + 1 - self.window), filled.stop)

    def _begin_of_window(self, tokens: int) -> Tensor | None:
        """The first slot of the window, a scalar; None: more than a window is read."""
        is_whole = self.is_masked or tokens > 1 or self.window >= self.get_max_length()
        if is_whole or not isinstance(self.position, Tensor):
            return None
        return (self.position + 1 - self.window).clamp(min=0)

    def _read(self, tokens: int) -> tuple[Tensor, Tensor]:
        first = self._begin_of_window(tokens)
        if first is None:
            return super()._read(tokens)
        places = torch.arange(self.window, device=first.device) + first
        return self.keys.index_select(2, places), self.values.index_select(2, places)

    def get_mask_sizes(self, query: Any) -> tuple[int, Any]:
        """Returns how many slots a query attends to, and the first of them: a scalar where its number is not known."""
        first = self._begin_of_window(query.shape[0] if isinstance(query, Tensor) else int(query))
        return super().get_mask_sizes(query) if first is None else (self.window, first)


class IndexedSlotLayer(SlotLayer):
    """The same with the keys of an indexer, ``[batch, slots, size]``, which chooses what is attended to.

    Attributes:
        indexer_keys: Its keys; None: none yet.
    """

    slot_dims: ClassVar[dict[str, int]] = {**SlotLayer.slot_dims, "indexer_keys": 1}

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.indexer_keys: Tensor | None = None
        self.indexer_position_ids: Tensor | None = None
        self.is_indexer_initialized = True

    def update_indexer(self, indexer_key_states: Tensor) -> Tensor:
        """Lays keys of the indexer down and returns those to choose from."""
        if self.position is None or self.indexer_keys is None:
            self.indexer_keys = self._first(indexer_key_states, 1)
            return indexer_key_states
        self.indexer_keys = self._write(self.indexer_keys, indexer_key_states, 1, self.position)
        is_number = isinstance(self.position, int)
        return self.indexer_keys[
            :, : self.position + indexer_key_states.shape[1] if is_number else self.reach
        ]


def _with_recurrence(base: Any) -> Any:
    """Returns a layer that has slots and, besides, the states of a recurrent layer of the library."""
    recurrent: Any = getattr(cache_utils, "LinearAttentionLayer", None)
    if recurrent is None:  # transformers 4 has models with caches of their own in its place
        return base

    class RecurrentLayer(recurrent, base):  # type: ignore[misc]
        is_compileable = False

        def __init__(self, number_of_states: int, *arguments: int) -> None:
            base.__init__(self, *arguments)
            recurrent.__init__(self, number_of_states=number_of_states)

        def lazy_initialization(self, *states: Tensor, **options: Any) -> None:
            # The library names what it initialises of a recurrence, and gives keys and values by place.
            if states:
                base.lazy_initialization(self, *states)
            else:
                recurrent.lazy_initialization(self, **options)

    return RecurrentLayer


RecurrentSlotLayer = _with_recurrence(SlotLayer)
RecurrentSlidingSlotLayer = _with_recurrence(SlidingSlotLayer)


def _slot_layer(layer: Any, slots: int) -> Any:
    """Returns the layer with slots that stands for a layer of the library; itself, if its size is fixed anyway."""
    # By exact class: a model's own subclass may keep what nobody here knows of.
    kind = type(layer).__name__ if type(layer).__module__ == cache_utils.__name__ else ""
    if kind == "DynamicLayer":
        return SlotLayer(slots)
    if kind == "DynamicSlidingWindowLayer":
        return SlidingSlotLayer(slots, layer.sliding_window)
    if kind == "DynamicIndexedLayer":
        return IndexedSlotLayer(slots)
    if kind == "LinearAttentionAndFullAttentionLayer":
        return RecurrentSlotLayer(layer.number_of_states, slots)
    if kind == "LinearAttentionAndSlidingWindowAttentionLayer":
        return RecurrentSlidingSlotLayer(layer.number_of_states, slots, layer.sliding_window)
    return layer


def empty_cache(config: Any, slots: int) -> Any:
    """Returns the cache that ``generate()`` of the library would make, with slots.

    Args:
        config: The config of the model.
        slots: How many tokens it holds.
    """
    cache = cache_utils.DynamicCache(config=config)
    cache.layers = [_slot_layer(layer, slots) for layer in cache.layers]
    if cache.layer_class_to_replicate is not None:
        cache.layer_class_to_replicate = lambda: SlotLayer(slots)
    return cache


def cache_makers(
    make_cache: Callable[[Any, int], Any], config: Any, slots: int
) -> list[Callable[[Any, int], Any]]:
    """Returns what makes caches of a model, to be tried one after the other.

    A mask that a model makes by itself, and not as the library does, need not know of a window whose first slot is no
    number: the second one reads all slots then. There is none if no window is smaller.

    Args:
        make_cache: As :func:`empty_cache`, or what a family has in its place.
        config: The config of the model.
        slots: How many tokens a cache holds.
    """

    def make_whole(config: Any, slots: int) -> Any:
        cache = make_cache(config, slots)
        for layer in cache.layers:
            if isinstance(layer, SlidingSlotLayer):
                layer.is_masked = True
        return cache

    try:
        layers = getattr(make_cache(config, slots), "layers", ())
    except Exception:  # the model is refused for it when it is run
        layers = ()
    has_window = any(isinstance(layer, SlidingSlotLayer) and layer.window < slots for layer in layers)
    return [make_cache, make_whole] if has_window else [make_cache]


def empty_cross_cache(config: Any, slots: int) -> Any:
    """Returns the same for a decoder that attends to an encoder; what it reads of the encoder is kept as it comes."""
    own = empty_cache(config, slots)
    own.layers = [DecoderSlotLayer(slots) if type(layer) is SlotLayer else layer for layer in own.layers]
    for layer in own.layers:
        if isinstance(layer, SlidingSlotLayer):
            layer.is_masked = True
    if own.layer_class_to_replicate is not None:
        own.layer_class_to_replicate = lambda: DecoderSlotLayer(slots)
    return cache_utils.EncoderDecoderCache(own, cache_utils.DynamicCache())
