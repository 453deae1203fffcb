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

PAIR = ("self_attention_cache", "cross_attention_cache")
"""The parts of a cache of a decoder behind an encoder: of what was decoded, and of what the encoder gave."""

RECURRENT = ("conv_states", "recurrent_states")
"""What layers of the library with a recurrence call their states."""


@dataclass(frozen=True)
class Place:
    """Where a cache holds a tensor.

    Attributes:
        name: What the tensor is called as a port: ``keys_0``, ``cross_keys_0``, ``conv_states0_1``, ...
        cross: In the cache of what the encoder gave.
        owner: Which of :func:`_owners` it belongs to.
        attribute: The attribute of that.
        key: The key or index in the attribute; None: the attribute is the tensor.
    """

    name: str
    cross: bool
    owner: int
    attribute: str
    key: Any = None

    def read(self, owners: Sequence[dict[str, Any]]) -> Any:
        """Returns what a cache with these owners holds here."""
        value = owners[self.owner][self.attribute]
        return value if self.key is None else value[self.key]


@dataclass(frozen=True)
class Mold:
    """A cache or a layer without its tensors, of which there is a copy for each token.

    Attributes:
        kind: Its class.
        attributes: What all copies have in common.
        containers: Which of these are lists and dicts: each copy has its own.
    """

    kind: type
    attributes: dict[str, Any]
    containers: tuple[str, ...]

    def copy(self) -> Any:
        """Returns one, faster than ``copy.copy``."""
        twin: Any = object.__new__(self.kind)
        attributes = vars(twin)
        attributes.update(self.attributes)
        for name in self.containers:
            attributes[name] = copy.copy(attributes[name])
        return twin


def _mold(owner: Any, *parts: str) -> Mold:
    """Takes the tensors and some parts out of a cache or a layer; lists and dicts keep their length."""
    attributes = {}
    for name, value in vars(owner).items():
        if name in parts:
            continue
        if isinstance(value, list):
            value = [None if isinstance(item, Tensor) else item for item in value]
        elif isinstance(value, dict):
            value = {key: None if isinstance(item, Tensor) else item for key, item in value.items()}
        attributes[name] = None if isinstance(value, Tensor) else value
    containers = tuple(name for name, value in attributes.items() if isinstance(value, (list, dict)))
    return Mold(type(owner), attributes, containers)


def _sides(cache: Any) -> tuple[Any, ...]:
    """The parts of a cache, or the cache itself."""
    is_pair = isinstance(cache, cache_utils.EncoderDecoderCache)
    return tuple(getattr(cache, name) for name in PAIR) if is_pair else (cache,)


def _owners(cache: Any) -> list[dict[str, Any]]:
    """The attributes of what holds tensors: of each side, and behind it of its layers."""
    return [vars(owner) for side in _sides(cache) for owner in (side, *side.layers)]


def _places(cache: Any) -> Iterator[Place]:
    """Where a cache holds tensors, scalars included, in an order that is always the same."""
    numbers = (
        (cross, layer)
        for cross, side in enumerate(_sides(cache))
        for layer in ("", *map(str, range(len(side.layers))))
    )
    for owner, ((cross, layer), attributes) in enumerate(zip(numbers, _owners(cache), strict=True)):
        prefix = "cross" * cross
        for attribute, value in attributes.items():
            items: Any = [(None, value)]
            if isinstance(value, (list, dict)):
                items = enumerate(value) if isinstance(value, list) else value.items()
            for key, item in items:
                if isinstance(item, Tensor):
                    what = attribute if key is None else f"{attribute}{key}"
                    name = "_".join(filter(None, (prefix, what, layer)))
                    yield Place(name, bool(cross), owner, attribute, key)


def state_of(cache: Any) -> dict[str, Tensor]:
    """Returns the tensors of a cache by the names of their places."""
    owners = _owners(cache)
    return {place.name: value for place in _places(cache) if (value := place.read(owners)).dim()}


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
        owners = _owners(cache)
        self.places = tuple(place for place in _places(cache) if place.read(owners).dim())
        self.names = tuple(place.name for place in self.places)
        self._sides = tuple((_mold(side, "layers"), tuple(map(_mold, side.layers))) for side in _sides(cache))
        holders = [owner for side in _sides(cache) for owner in (side, *side.layers)]
        self._slot_dims = [item.slot_dims if isinstance(item, SlotLayer) else {} for item in holders]
        is_pair = isinstance(cache, cache_utils.EncoderDecoderCache)
        self._pair = _mold(cache, *PAIR) if is_pair else None

    @property
    def has_slots_only(self) -> bool:
        """Whether each layer has a slot for every token, and attends to all of them."""
        return self._pair is None and all(mold.kind is SlotLayer for mold in self._sides[0][1])

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
            slots = self._slot_dims[place.owner].get(place.attribute)
            part = tensor if slots is None or filled is None else tensor.narrow(slots, 0, filled)
            reorder(part, dim, steps)
        return result

    def state(self, cache: Any) -> dict[str, Tensor]:
        """Returns what :func:`state_of` does of a cache like the template."""
        owners = _owners(cache)
        return {place.name: place.read(owners) for place in self.places}

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
        # Molds have no tensors; those that are given are put in their places, and copied where the library would write
        # into them unasked.
        sides, owners = [], []
        slot = position.reshape(()) if isinstance(position, Tensor) else position
        reading = {"position": slot, "count": 0, "in_place": in_place, "reach": reach}
        for mold, layer_molds in self._sides:
            side = mold.copy()
            side.layers = [layer.copy() for layer in layer_molds]
            sides.append(side)
            owners.append(vars(side))
            for layer in side.layers:
                attributes = vars(layer)
                owners.append(attributes)
                if isinstance(layer, SlotLayer):
                    attributes.update(reading)
        for place, tensor in zip(self.places, state, strict=True):
            attributes = owners[place.owner]
            if place.key is None:
                attributes[place.attribute] = tensor
            else:
                # A recurrent layer of the library writes its states in place, whatever it is told.
                is_kept = in_place or place.attribute not in RECURRENT
                attributes[place.attribute][place.key] = tensor if is_kept else tensor.clone()
        if self._pair is None:
            return sides[0]
        pair = self._pair.copy()
        vars(pair).update(zip(PAIR, sides, strict=True))
        return pair
