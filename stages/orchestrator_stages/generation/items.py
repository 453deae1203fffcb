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
from torch import Tensor, nn

from orchestrator import Dim, GraphError, HostStage, InputError, TensorSpec

__all__ = [
    "ArrangeItems",
    "ItemKind",
    "ReadPrompts",
    "RopePositions",
    "merge_features",
    "read_item",
    "rope_positions",
    "show_item",
]

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


def show_item(processor: Any, model: Any) -> dict[str, Any] | None:
    """Returns what a processor gives for one grey picture and a prompt; None: it has no mark for one."""
    mark = getattr(processor, "image_token", None)
    if not isinstance(mark, str) or "pixel_values" not in inspect.signature(model.forward).parameters:
        return None
    side = getattr(getattr(model.config, "vision_config", None), "image_size", None)
    height, width = (side, side) if isinstance(side, int) else side or (224, 224)
    picture = torch.full((height, width, 3), 127, dtype=torch.uint8).numpy()
    return dict(processor(text=[mark], images=[picture], return_tensors="pt"))


def read_item(model: Any, example: Mapping[str, Any] | None) -> ItemKind | None:
    """Returns what an item of a model is; None: it reads text alone.

    Args:
        model: The model.
        example: What its processor gives for one item; None: as its config says.

    Raises:
        GraphError: It cannot be told, or the example is no example.
    """
    # Which argument has the numbers says what the items are; all other arguments are the same for each. Then what one
    # item has is split into numbers, which a request gives, and integers, which every item shares; last how many tokens
    # of the prompt stand for it.
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


def arranged_specs(kind: ItemKind, rows: Dim | int, items: Dim) -> dict[str, TensorSpec]:
    """What :class:`ArrangeItems` gives, by name."""
    return {
        "first": TensorSpec((rows,), torch.int64, pad=0),
        **{
            name: TensorSpec((items, *value.shape), value.dtype, pad=0) for name, value in kind.values.items()
        },
    }


def merge_features(
    embedding: nn.Module, token: int, input_ids: Tensor, first: Tensor, features: Tensor
) -> dict[str, Tensor]:
    """Puts features into the embeddings of a prompt, where its tokens stand for them.

    Args:
        embedding: Of tokens of text.
        token: The token that stands for features.
        input_ids: ``[batch, tokens]``, int64.
        first: ``[batch]``, int64: how many such tokens are in the rows before.
        features: ``[items, count, width]``: one for each such token of all prompts, in their order; what is left over
            is read by nothing.

    Returns:
        ``inputs_embeds`` ``[batch, tokens, width]``, and ``types`` ``[batch, tokens]``, int64, 1 where there are
        features.
    """
    is_item = input_ids == token
    text = embedding(torch.where(is_item, 0, input_ids).clamp(min=0))
    rows = features.flatten(0, 1).to(text.dtype)
    place = (first[:, None] + is_item.cumsum(1) - 1).clamp(min=0, max=rows.shape[0] - 1)
    parts = rows.index_select(0, place.flatten()).view(*text.shape[:2], rows.shape[1])
    # Features for layers of the decoder come behind those in place of tokens; text has none.
    text = torch.nn.functional.pad(text, (0, rows.shape[1] - text.shape[2]))
    return {
        "inputs_embeds": torch.where(is_item[..., None], parts, text),
        "types": is_item.to(torch.int64),
    }


class ArrangeItems(HostStage):
    """Host stage: what a processor gave for all items, one after the other, with a dim for the items in front.

    Takes ``input_ids`` and the values. Gives ``first`` ``[batch]``, int64: how many of the tokens that stand for items
    are in the rows before; and the values ``[items, ...]``, one of zeros, which nothing reads, where there is none.

    Args:
        kind: What the items are.
        rows: The dim of the prompts, or how many there always are.
        items: The dim of the items.
    """

    def __init__(self, kind: ItemKind, rows: Dim | int, items: Dim) -> None:
        super().__init__(tag="arrange")
        self.kind = kind
        self.inputs = {"input_ids": None, **dict.fromkeys(kind.values)}
        self.outputs = arranged_specs(kind, rows, items)

    def forward(self, input_ids: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        """Arranges them.

        Raises:
            InputError: The prompts have places for more of them, or for fewer.
        """
        numbers = (input_ids == self.kind.token).sum(1)
        places, results = int(numbers.sum()), [numbers.cumsum(0) - numbers]
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
        return tuple(results)


class ReadPrompts(HostStage):
    """Host stage: texts with pictures or recordings among them, to tokens and what an encoder takes.

    Takes ``text``, a list of strings with a mark for each item, as the processor has it, and ``image`` or ``audio``, a
    list of all items in the order of their marks, or a list of such lists, one for each text. Gives ``input_ids`` and
    ``attention_mask`` ``[batch, tokens]``, int64, padded on the left, and the values ``[items, ...]``.

    Args:
        processor: A processor of transformers.
        kind: What the items are.
        rows: The dim of the texts.
        tokens: The dim of the ids; a prompt that is longer than its largest bucket is refused.
        items: The dim of the items.
        pad: What fills up the ids.
    """

    def __init__(self, processor: Any, kind: ItemKind, rows: Dim, tokens: Dim, items: Dim, pad: int) -> None:
        super().__init__(tag="read")
        self.processor = processor
        self.arrange = ArrangeItems(kind, rows, items)
        self.longest = tokens.buckets[-1]
        self.arranged = arranged_specs(kind, rows, items)
        self.inputs = {"text": list, kind.label: list}
        self.outputs = {
            "input_ids": TensorSpec((rows, tokens), torch.int64, pad=pad),
            "attention_mask": TensorSpec((rows, tokens), torch.int64, pad=0),
            **self.arranged,
        }

    def forward(self, text: list[str], items: list[Any]) -> tuple[Tensor, ...]:
        """Reads them; raises as :meth:`read` does."""
        return self.read(text, items)

    def read(
        self, text: list[str], items: list[Any], *, is_bounded: bool = True, **more: Any
    ) -> tuple[Tensor, ...]:
        """Reads prompts.

        Args:
            text: The prompts.
            items: Their items.
            is_bounded: A prompt has to fit the largest bucket.
            more: Options of the tokenizer.

        Raises:
            ValueError: A prompt is longer than the largest bucket, or an item has another grid or size than others.
            InputError: The prompts have marks for more items, or for fewer.
        """
        # The processor sees everything at once; what it says of the items has to be what the pipeline was made for.
        kind = self.arrange.kind
        label = "images" if kind.label == "image" else kind.label
        options = {"padding": True, "padding_side": "left", "return_tensors": "pt", **more}
        result = self.processor(text=text, **({label: items} if items else {}), **options)
        ids, mask = result["input_ids"], result["attention_mask"]
        if is_bounded and ids.shape[1] > self.longest:
            raise ValueError(
                f"The longest prompt has {ids.shape[1]} tokens with its {kind.label}s, but the largest bucket is "
                f"{self.longest}. Shorten it, or give from_transformers larger buckets: tokens=(...)."
            )
        for name, value in kind.constants.items() if items else ():
            rows = result[name].reshape(-1, *value.shape[1:])
            if not all(part.equal(value) for part in rows.split(value.shape[0])):
                raise ValueError(
                    f"{name} of the {kind.label}s is {rows.tolist()}, but the pipeline was made for {value.tolist()} "
                    "each. Bring them to one size, or make a pipeline for these: example=processor(...)."
                )
        none = {name: item.new_zeros(0, *item.shape[1:]) for name, item in kind.values.items()}
        values = (result[name] if items else none[name] for name in kind.values)
        return (ids, mask, *self.arrange.forward(ids, *values))


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
    """Returns the positions ``[dims, batch, tokens]``, int64, of prompts by the model's ``get_rope_index``.

    Raises:
        GraphError: They are no whole numbers.
    """
    parameters = inspect.signature(owner.get_rope_index).parameters
    arguments = {**kind.arguments(ids), "attention_mask": mask}
    if "mm_token_type_ids" in parameters:
        arguments["mm_token_type_ids"] = (ids == kind.token).to(torch.int64)
    places: Tensor = owner.get_rope_index(
        ids, **{name: value for name, value in arguments.items() if name in parameters}
    )[0]
    # Models that tell the time of a video count in floats; of pictures and words they are whole all the same.
    whole = places.to(torch.int64)
    if (whole != places).any():
        raise GraphError(
            f"{type(owner).__name__} counts positions that are no whole numbers, which is not followed.",
            model=owner,
        )
    return whole
