"""Pictures and recordings among the tokens of a prompt: what one of them is, and the host stages that prepare them.

A request gives as many items as its prompts have places for them. An *item* is what the processor of a model gives for
one picture or recording: numbers, which differ from item to item, and integers such as the grid of its patches, which
are the same for all items of a pipeline.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orchestrator import Dim, GraphError, HostStage, InputError, TensorSpec

__all__ = ["ArrangeItems", "ItemKind", "RopePositions", "read_item"]

TOKENS = {"pixel_values": "image", "input_features": "audio", "input_values": "audio"}
"""By the argument of forward that has the numbers of an item, what its tokens are called in configs."""

TYPES = ("mm_token_type_ids", "token_type_ids")
"""Arguments of forward that say which tokens stand for items."""


@dataclass(frozen=True)
class ItemKind:
    """What is known of the items of a pipeline.

    Attributes:
        label: What they are: ``image`` or ``audio``.
        token: The token that stands for a part of one.
        count: How many of them one has.
        values: Of one item, what a request gives, by argument of forward.
        constants: What is the same for all items, likewise.
        types: Arguments of forward that say which tokens stand for items.
    """

    label: str
    token: int
    count: int
    values: Mapping[str, Tensor]
    constants: Mapping[str, Tensor]
    types: tuple[str, ...] = ()

    def arguments(self, ids: Tensor) -> dict[str, Tensor]:
        """What forward takes besides the values for prompts with this kind of items."""
        places = (ids == self.token).to(torch.int64)
        number = int(places.sum()) // self.count
        more = {
            name: value.repeat(number, *[1] * (value.dim() - 1)) for name, value in self.constants.items()
        }
        return {**more, **dict.fromkeys(self.types, places)}


def _token(config: Any, label: str) -> int:
    for name in (f"{label}_token_id", f"{label}_token_index"):
        token = getattr(config, name, None)
        if isinstance(token, int):
            return token
    raise GraphError(
        f"The config of the model names no token for its {label}s: it has neither {label}_token_id nor "
        f"{label}_token_index.",
        option=f"{label}_token_id",
    )


def _default_item(model: Any) -> dict[str, Tensor]:
    """One picture as an encoder of one size takes it."""
    vision = getattr(model.config, "vision_config", None)
    side = getattr(vision, "image_size", None)
    if side is None:
        raise GraphError(
            f"How large the items of {type(model).__name__} are depends on its processor. Say what that gives for one, "
            "prompt included: example=processor(text=..., images=[picture], return_tensors='pt').",
            option="example",
        )
    height, width = (side, side) if isinstance(side, int) else side
    return {"pixel_values": torch.zeros(1, getattr(vision, "num_channels", 3), height, width)}


def read_item(model: Any, example: Mapping[str, Any] | None) -> ItemKind | None:
    """Returns what an item of a model is; None: it reads text alone.

    Args:
        model: The model.
        example: What its processor gives for one item; None: as its config says.

    Raises:
        GraphError: It cannot be told, or the example is no example.
    """
    # Which argument has the numbers says what the items are; all other arguments are the same for each.
    names = inspect.signature(model.forward).parameters
    main = next((name for name in TOKENS if name in names), None)
    if main is None:
        return None
    if example is None:
        example = _default_item(model)
    tensors = {name: value for name, value in example.items() if isinstance(value, Tensor)}
    if main not in tensors:
        raise GraphError(
            f"example= is what the processor gives for one item, with {main!r} in it, not {list(example)}.",
            option="example",
        )
    label, dtype = TOKENS[main], next(model.parameters()).dtype
    token = _token(model.config, label)
    rest = {
        name: value for name, value in tensors.items() if name not in ("input_ids", "attention_mask", *TYPES)
    }
    values = {name: _telling(value).to(dtype) for name, value in rest.items() if value.is_floating_point()}
    constants = {name: value for name, value in rest.items() if name not in values}
    types = tuple(name for name in TYPES if name in tensors and name in names)
    if "input_ids" in tensors:
        count = int((tensors["input_ids"] == token).sum())
    else:
        count = _count(model, label, {**values, **constants})
    if count < 1:
        raise GraphError(
            f"The prompt of example= has no token {token} that stands for its {label}.", option="example"
        )
    return ItemKind(label, token, count, values, constants, types)


def _telling(value: Tensor) -> Tensor:
    """Numbers of an item: those of the example, or any if it is zero, which some models take for no picture at all."""
    if value.any():
        return value
    return torch.rand(value.shape, generator=torch.Generator().manual_seed(0))


def _count(model: Any, label: str, arguments: Mapping[str, Tensor]) -> int:
    """How many tokens an item has: how many features the library makes of it."""
    method = getattr(model, f"get_{label}_features", None)
    if method is None:
        raise GraphError(
            f"How many tokens an item of {type(model).__name__} has cannot be told: it has no get_{label}_features. "
            "Put the prompt's input_ids into example=.",
            option="example",
        )
    with torch.no_grad():
        features = method(**arguments)
    features = getattr(features, "pooler_output", features) if features is not None else None
    if not isinstance(features, (Tensor, list, tuple)):
        features = method(**arguments).last_hidden_state
    parts = [features] if isinstance(features, Tensor) else features
    return sum(part.shape[:-1].numel() for part in parts)


class ArrangeItems(HostStage):
    """Host stage: what a processor gave for all items, one after the other, with a dim for the items in front.

    Takes ``input_ids`` and the values. Gives the values ``[items, ...]``; where a request has none, one of zeros, which
    nothing reads.

    Args:
        kind: What the items are.
        items: Their dim.
    """

    def __init__(self, kind: ItemKind, items: Dim) -> None:
        super().__init__(tag="arrange")
        self.kind = kind
        self.inputs = {"input_ids": None, **dict.fromkeys(kind.values)}
        self.outputs = {
            name: TensorSpec((items, *value.shape), value.dtype, pad=0) for name, value in kind.values.items()
        }

    def forward(self, input_ids: Tensor, *values: Tensor) -> tuple[Tensor, ...] | Tensor:
        """Arranges them.

        Raises:
            InputError: The prompts have places for more of them, or for fewer.
        """
        places = int((input_ids == self.kind.token).sum())
        results = []
        for (name, item), value in zip(self.kind.values.items(), values, strict=True):
            number, rest = divmod(value.shape[0], item.shape[0])
            if rest or number * self.kind.count != places:
                raise InputError(
                    f"The prompts have {places} tokens {self.kind.token} that stand for {self.kind.label}s of "
                    f"{self.kind.count} each, but {name!r} {tuple(value.shape)} holds {number} of {item.shape[0]} rows"
                    f"{' and a part of one' * bool(rest)}; give one for each {self.kind.count} of these tokens.",
                    input=name,
                )
            arranged = value.reshape(number, *item.shape).to(item.dtype)
            results.append(arranged if number else torch.zeros(1, *item.shape, dtype=item.dtype))
        return tuple(results) if len(results) > 1 else results[0]


class RopePositions(HostStage):
    """Host stage: positions in several dims, as the model's own ``get_rope_index`` has them.

    Takes ``input_ids`` and ``attention_mask`` ``[batch, tokens]``. Gives ``position_ids`` ``[dims, batch, tokens]``.

    Args:
        owner: The model, or the part of it that has the method.
        kind: What the items are.
        dims: The dims of the prompts.
        axes: How many dims a position has.
    """

    def __init__(self, owner: Any, kind: ItemKind, dims: Iterable[Dim], axes: int) -> None:
        super().__init__(tag="positions")
        self.owner = owner
        self.kind = kind
        self.inputs = {"input_ids": None, "attention_mask": None}
        self.outputs = {"position_ids": TensorSpec((axes, *dims), torch.int64, pad=0)}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Counts them."""
        return rope_positions(self.owner, self.kind, input_ids, attention_mask)


def rope_positions(owner: Any, kind: ItemKind, ids: Tensor, mask: Tensor) -> Tensor:
    """Returns the positions ``[dims, batch, tokens]`` of prompts by the model's ``get_rope_index``."""
    known = inspect.signature(owner.get_rope_index).parameters
    arguments = {**kind.arguments(ids), "attention_mask": mask}
    if "mm_token_type_ids" in known:
        arguments["mm_token_type_ids"] = (ids == kind.token).to(torch.int64)
    places: Tensor = owner.get_rope_index(
        ids, **{name: value for name, value in arguments.items() if name in known}
    )[0]
    return places
