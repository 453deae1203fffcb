"""The tensors that a cache holds, by the places where it holds them; and a cache with other tensors in those places.

A loop carries tensors, a model wants a cache. The cache that the first forward leaves is made a template: which layers
there are, and what they know besides tensors, does not change any more. Scalars count tokens: they follow from the
position and are no state.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orchestrator_stages.generation.cache import SlotLayer, cache_utils
from orchestrator_stages.generation.lanes import copy_steps, reorder

__all__ = ["CacheTemplate", "Place", "slot_number", "state_of"]


@dataclass(frozen=True)
class Place:
    """Where a cache holds a tensor.

    Attributes:
        cross: In the cache of what the encoder gave.
        layer: The number of the layer; None: the cache itself.
        attribute: The attribute of the layer.
        key: The key or index in the attribute; None: the attribute is the tensor.
    """

    cross: bool
    layer: int | None
    attribute: str
    key: Any = None

    @property
    def name(self) -> str:
        """What the tensor is called as a port: ``keys_0``, ``cross_keys_0``, ``conv_states0_1``, ..."""
        parts = ["cross" if self.cross else "", self.attribute + ("" if self.key is None else str(self.key))]
        return "_".join(filter(None, [*parts, "" if self.layer is None else str(self.layer)]))

    def _container(self, cache: Any) -> tuple[Any, Any]:
        if isinstance(cache, cache_utils.EncoderDecoderCache):
            cache = cache.cross_attention_cache if self.cross else cache.self_attention_cache
        attributes = vars(cache if self.layer is None else cache.layers[self.layer])
        return (attributes, self.attribute) if self.key is None else (attributes[self.attribute], self.key)

    def read(self, cache: Any) -> Any:
        """Returns what a cache holds here."""
        container, key = self._container(cache)
        return container[key]

    def write(self, cache: Any, value: Tensor | None) -> None:
        """Puts a tensor here."""
        container, key = self._container(cache)
        container[key] = value


def _places(cache: Any) -> Iterator[Place]:
    """Where a cache holds tensors, scalars included, in an order that is always the same."""
    is_pair = isinstance(cache, cache_utils.EncoderDecoderCache)
    sides = (cache.self_attention_cache, cache.cross_attention_cache) if is_pair else (cache,)
    for cross, side in zip((False, True), sides, strict=False):
        for layer, owner in ((None, side), *enumerate(side.layers)):
            for attribute, value in vars(owner).items():
                if isinstance(value, Tensor):
                    yield Place(cross, layer, attribute)
                elif isinstance(value, (list, dict)):
                    items = enumerate(value) if isinstance(value, list) else value.items()
                    yield from (
                        Place(cross, layer, attribute, key) for key, item in items if isinstance(item, Tensor)
                    )


def _twin(owner: Any) -> Any:
    """Copies a cache or a layer with its lists and dicts, faster than ``copy.copy``: this is done for each token."""
    twin = object.__new__(type(owner))
    for attribute, value in vars(owner).items():
        vars(twin)[attribute] = copy.copy(value) if isinstance(value, (list, dict)) else value
    return twin


def _copy(cache: Any) -> Any:
    """Copies a cache down to its layers and their lists of tensors; the tensors are the same."""
    duplicate = _twin(cache)
    if isinstance(cache, cache_utils.EncoderDecoderCache):
        duplicate.self_attention_cache = _copy(cache.self_attention_cache)
        duplicate.cross_attention_cache = _copy(cache.cross_attention_cache)
    else:
        duplicate.layers = [_twin(layer) for layer in cache.layers]
    return duplicate


def state_of(cache: Any) -> dict[str, Tensor]:
    """Returns the tensors of a cache by the names of their places."""
    return {place.name: value for place in _places(cache) if (value := place.read(cache)).dim()}


def slot_number(position: Tensor) -> Tensor | int:
    """Returns the number in a tensor, or the tensor where that would wait for a device or cannot be traced."""
    is_plain = type(position) is Tensor and position.device.type == "cpu"
    return int(position) if is_plain and not torch.compiler.is_compiling() else position


class CacheTemplate:
    """What caches of a model have in common after the first forward: everything but the tensors.

    Args:
        cache: The cache that it left, over real or fake tensors.

    Attributes:
        places: Where the tensors are.
        names: The names of the places, in the order of :func:`state_of`.
    """

    def __init__(self, cache: Any) -> None:
        self.places = tuple(place for place in _places(cache) if place.read(cache).dim())
        self.names = tuple(place.name for place in self.places)
        self._cache = _copy(cache)
        for place in tuple(_places(cache)):
            place.write(self._cache, None)

    @property
    def has_slots_only(self) -> bool:
        """Whether each layer has a slot for every token, and attends to all of them."""
        return all(type(layer) is SlotLayer for layer in getattr(self._cache, "layers", [None]))

    def reorder(
        self,
        state: Sequence[Tensor],
        dims: Mapping[str, int | None],
        aliases: Collection[str],
        order: Tensor,
        position: Tensor | int,
        reach: int | None = None,
    ) -> list[Tensor]:
        """Returns the tensors of a cache with rows in another order; what is held of an encoder stays as it is.

        Args:
            state: As of :meth:`cache`.
            dims: The dim of the batch of each by name; None: it has none.
            aliases: The names of those whose rows change places where they are, of what has slots those that are
                filled; others are copied.
            order: ``[batch]``, int64: which row each is to be, one of the same request.
            position: As of :meth:`cache`; a number: rows that stay are not copied.
            reach: Likewise.
        """
        # Which copies are needed is the same for all tensors; which part is filled depends on where the slots are.
        filled = position if isinstance(position, int) else reach
        steps = copy_steps(order.tolist()) if isinstance(position, int) else order
        result = list(state)
        for number, place in enumerate(self.places):
            tensor, dim = state[number], dims[place.name]
            if place.cross or dim is None:
                continue
            if place.name not in aliases:
                result[number] = tensor.index_select(dim, order)
                continue
            slots = self._slot_dim(place)
            part = tensor if slots is None or filled is None else tensor.narrow(slots, 0, filled)
            reorder(part, dim, steps)
        return result

    def _slot_dim(self, place: Place) -> int | None:
        """The dim of the slots of a tensor that has them."""
        layer = None if place.layer is None else self._own(self._cache).layers[place.layer]
        return layer.slot_dims.get(place.attribute) if isinstance(layer, SlotLayer) else None

    @staticmethod
    def _own(cache: Any) -> Any:
        """What is held of the tokens themselves, not of an encoder."""
        return cache.self_attention_cache if isinstance(cache, cache_utils.EncoderDecoderCache) else cache

    def state(self, cache: Any) -> dict[str, Tensor]:
        """Returns what :func:`state_of` does of a cache like the template."""
        return {name: place.read(cache) for name, place in zip(self.names, self.places, strict=True)}

    def cache(
        self,
        state: Sequence[Tensor],
        position: Tensor | int,
        *,
        in_place: bool = False,
        reach: int | None = None,
    ) -> Any:
        """Returns a cache like the template with these tensors in it.

        Args:
            state: A tensor for each place, in their order.
            position: The slot of the next token: int64, of one element; or a number, and only what is filled is read.
            reach: How many slots are read where it is a tensor, from the first; None: all.
            in_place: A forward may write into the tensors; else those of recurrent layers are copied first.
        """
        cache = _copy(self._cache)
        slot = position.reshape(()) if isinstance(position, Tensor) else position
        for place, tensor in zip(self.places, state, strict=True):
            place.write(cache, tensor)
        for layer in self._own(cache).layers:
            # A recurrent layer of the library writes its states in place, whatever it is told.
            for name in () if in_place else ("conv_states", "recurrent_states"):
                states = vars(layer).get(name) or {}
                states.update({key: item.clone() for key, item in states.items() if item is not None})
            if isinstance(layer, SlotLayer):
                layer.position, layer.count = slot, 0
                layer.in_place, layer.reach = in_place, reach
        return cache
