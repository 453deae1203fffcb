"""A model of transformers that generates, as two functions of tensors: the prompt, and one more token.

Both are the model's own forward. What it keeps between two tokens is found out by one run of it over fake tensors,
which computes nothing: whatever the cache holds then is what a loop has to carry.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator import Dim, GraphError, TensorSpec
from orchestrator_stages.generation.cache import empty_cache
from orchestrator_stages.generation.items import ItemKind, merge_features
from orchestrator_stages.generation.processors import to_the_left
from orchestrator_stages.generation.state import CacheTemplate, slot_number, state_of
from orchestrator_stages.generation.static_forward import forward_context
from orchestrator_stages.generation.tree import fake_weights
from orchestrator_stages.generation.versions import prepare_inputs, without_selection

__all__ = ["Generator"]

transformers: Any = importlib.import_module("transformers")

CACHES = ("past_key_values", "cache_params")
"""What models call their cache."""

TRIAL = 5
"""Tokens of the prompt that is run over fake tensors."""


class Generator(nn.Module):
    """Runs a model over a prompt and then token by token.

    Args:
        model: The model; its forward is called, its weights are used as they are.
        slots: How many tokens the cache holds, prompt included.
        kind: The items among the tokens of its prompts; None: there are none.
        axes: How many dims the position of a token has; 0: it is a number.
        is_static: See :class:`~orchestrator_stages.generation.static_forward.StaticForward`.
        empty_cache: Of the model's config and a number of slots, a cache that keeps one size.

    Attributes:
        aliases: Of what is carried, what :meth:`decode` writes in place: each is itself, updated.

    Raises:
        GraphError: The model cannot be followed.
    """

    def __init__(
        self,
        model: Any,
        slots: int,
        kind: ItemKind | None = None,
        axes: int = 0,
        *,
        is_static: bool = False,
        empty_cache: Callable[[Any, int], Any] = empty_cache,
    ) -> None:
        super().__init__()
        # First what the forward takes; then, by runs over fake tensors, what it keeps, with two rows and with three,
        # since only what differs between them is the batch; last what a token writes in place, which needs all of that.
        self.model = model
        self.slots = slots
        self.is_static = is_static
        self._empty_cache = empty_cache
        self.item_token = -1 if kind is None else kind.token
        self.types = () if kind is None else kind.types
        self.axes = axes
        self.train(model.training)
        parameters = inspect.signature(model.forward).parameters
        self._names = frozenset(parameters)
        self._cache_name = next((name for name in CACHES if name in parameters), None)
        if self._cache_name is None:
            raise GraphError(
                f"The forward of {type(model).__name__} takes no cache (neither {' nor '.join(CACHES)}), so each token "
                "would cost as much as the whole sequence before it.",
                model=model,
            )
        self._options = {
            "use_cache": True,
            **({"logits_to_keep": 1} if "logits_to_keep" in parameters else {}),
        }
        own = getattr(type(model), "prepare_inputs_for_generation", None)
        self._prepares = own is not getattr(
            transformers.GenerationMixin, "prepare_inputs_for_generation", None
        )
        without_selection(model)
        with fake_weights(model) as mode, mode, torch.no_grad():
            self._template, self._shapes = self._trial(2)
            self._dims = _batch_dims(model, self._shapes, self._trial(3)[1])
            self.aliases = self._updated()

    def with_slots(self, slots: int) -> Generator:
        """Returns what runs the same model, of text alone, over a cache of another size."""
        return Generator(self.model, slots, is_static=self.is_static, empty_cache=self._empty_cache)

    def _trial(self, batch: int) -> tuple[CacheTemplate, dict[str, Tensor]]:
        """Runs the prompt over fake tensors: the cache that it leaves, and the tensors in it."""
        cache = self._empty_cache(self.model.config, self.slots)
        device = next(self.model.parameters()).device
        ids = torch.ones(batch, min(TRIAL, self.slots - 1), dtype=torch.int64, device=device)
        places = torch.zeros_like(ids).expand(*[self.axes] * (self.axes > 0), *ids.shape)
        self._run({"input_ids": ids}, torch.ones_like(ids), places, cache, 0)
        return CacheTemplate(cache), state_of(cache)

    def _updated(self) -> dict[str, str]:
        """Runs one token over fake tensors: which of what is carried is written in place, each an alias of itself."""
        device = next(self.model.parameters()).device
        state = {name: torch.empty_like(tensor, device=device) for name, tensor in self._shapes.items()}
        ones = torch.ones(2, dtype=torch.int64, device=device)
        place = ones.expand(self.axes, 2) if self.axes else ones
        after = self.decode(ones, ones.new_ones(2, self.slots), ones[:1], place, *state.values())
        return {name: name for name, tensor in state.items() if after[name] is tensor}

    def specs(self, rows: Dim) -> dict[str, TensorSpec]:
        """Returns what is carried from token to token, in the order of :meth:`decode`.

        Args:
            rows: The dim of the batch.
        """
        place = TensorSpec((self.axes, rows) if self.axes else (rows,), torch.int64)
        specs = {"position": TensorSpec((1,), torch.int64), "place": place}
        for name, tensor in self._shapes.items():
            dims: list[Any] = list(tensor.shape)
            dims[self._dims[name]] = rows
            specs[name] = TensorSpec(tuple(dims), tensor.dtype)
        return specs

    @property
    def dtype(self) -> torch.dtype:
        """Of the embeddings of tokens."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight.dtype

    @property
    def specs_names(self) -> tuple[str, ...]:
        """What :meth:`decode` takes after token and mask, by name and in order."""
        return ("position", "place", *self._template.names)

    def merge(self, input_ids: Tensor, first: Tensor, features: Tensor) -> dict[str, Tensor]:
        """Puts features into the embeddings of a prompt, where its tokens stand for them.

        Args:
            input_ids: ``[batch, tokens]``, int64.
            first: ``[batch]``, int64: how many such tokens are in the rows before.
            features: ``[items, count, width]``: one for each such token of all prompts, in their order; what is left
                over is read by nothing.

        Returns:
            ``inputs_embeds`` ``[batch, tokens, width]``, and ``types`` ``[batch, tokens]``, int64, 1 where there are
            features.
        """
        return merge_features(self.model.get_input_embeddings(), self.item_token, input_ids, first, features)

    def prefill_merged(
        self, inputs_embeds: Tensor, attention_mask: Tensor, types: Tensor, places: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Runs a prompt that is embedded already; arguments as :meth:`merge` gives them.

        Args:
            inputs_embeds: ``[batch, tokens, width]``.
            attention_mask: ``[batch, tokens]``, int64, 0 where there is padding, on any side.
            types: The same, 1 where there are features.
            places: ``[axes, batch, tokens]``, int64: positions in several dims.

        Returns:
            As :meth:`prefill`.
        """
        more = dict.fromkeys(self.types, types)
        return self._begin({"inputs_embeds": inputs_embeds}, attention_mask, places, more)

    def prefill(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Runs a prompt.

        Args:
            input_ids: ``[batch, tokens]``, int64, below 0 where a bucket is larger than a request.
            attention_mask: The same, 0 where there is padding, on any side.

        Returns:
            ``logits`` ``[batch, vocabulary]`` of the next token, float32; ``mask`` ``[batch, slots]`` over the cache;
            and what :meth:`decode` takes.
        """
        return self._begin({"input_ids": input_ids.clamp(min=0)}, attention_mask)

    def _begin(
        self,
        inputs: Mapping[str, Tensor],
        mask: Tensor,
        places: Tensor | None = None,
        more: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        # Prompts come padded on either side, and at a bucket's end; a model goes on with the last token.
        along = [tensor for tensor in (*(more or {}).values(), places) if tensor is not None]
        inputs, mask, *along = _to_the_left(inputs, mask, *along)
        more = dict(zip(more or {}, along, strict=False))
        places = None if places is None else along[-1]
        if places is None:
            places = (mask.cumsum(1) - 1).clamp(min=0)
            places = places.expand(self.axes, *places.shape) if self.axes else places
        cache = self._empty_cache(self.model.config, self.slots)
        logits = self._run(inputs, mask, places, cache, 0, more)
        behind = mask.new_ones(mask.shape[0], self.slots - mask.shape[1])
        return {
            "logits": logits,
            "mask": torch.cat([mask, behind], 1),
            "position": torch.full((1,), mask.shape[1], dtype=torch.int64, device=mask.device),
            "place": places[..., -1] + 1,
            **state_of(cache),
        }

    def extend(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        mask: Tensor,
        position: Tensor,
        place: Tensor,
        *state: Tensor,
    ) -> dict[str, Tensor]:
        """Runs a prompt that goes on with what is in a cache.

        Args:
            input_ids: As of :meth:`prefill`.
            attention_mask: Likewise.
            mask: ``[batch, slots]``, 0 where a slot before ``position`` is to be hidden, else 1.
            position: ``[1]``, int64: the slot of the first token.
            place: ``[batch]``, int64: how many tokens are before it, without padding.
            state: The tensors of the cache, which stay as they are.

        Returns:
            As :meth:`prefill`.
        """
        return self._extend(
            {"input_ids": input_ids.clamp(min=0)}, attention_mask, mask, position, place, state
        )

    def extend_merged(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        types: Tensor,
        *values: Tensor,
    ) -> dict[str, Tensor]:
        """Runs a prompt that is embedded already and goes on with what is in a cache.

        Args:
            inputs_embeds: As of :meth:`prefill_merged`.
            attention_mask: Likewise.
            types: Likewise.
            values: ``places``, where positions have several dims; then what :meth:`extend` takes from ``mask`` on.

        Returns:
            As :meth:`prefill`.
        """
        more = dict.fromkeys(self.types, types)
        places, (mask, position, place, *state) = values[0] if self.axes else None, values[bool(self.axes) :]
        inputs = {"inputs_embeds": inputs_embeds}
        return self._extend(inputs, attention_mask, mask, position, place, state, more, places)

    def _extend(
        self,
        inputs: Mapping[str, Tensor],
        attention_mask: Tensor,
        mask: Tensor,
        position: Tensor,
        place: Tensor,
        state: Sequence[Tensor],
        more: Mapping[str, Tensor] | None = None,
        places: Tensor | None = None,
    ) -> dict[str, Tensor]:
        # New tokens are padded on the left as a prompt is; the gaps between what is old and new are hidden by the mask.
        along = [tensor for tensor in (*(more or {}).values(), places) if tensor is not None]
        inputs, seen, *along = _to_the_left(inputs, attention_mask, *along)
        slots = torch.arange(seen.shape[1], device=mask.device) + position
        mask = mask.index_copy(1, slots, seen)
        after = position + seen.shape[1]
        if places is None:
            places, next_place = (place[:, None] + seen.cumsum(1) - 1).clamp(min=0), place + seen.sum(1)
        else:
            places, next_place = along[-1], along[-1][..., -1] + 1
        cache = self._template.cache(state, position)
        filled = mask * (torch.arange(self.slots, device=mask.device) < after)
        more = dict(zip(more or {}, along, strict=False))
        logits = self._run(inputs, filled, places, cache, position, more)
        return {
            "logits": logits,
            "mask": mask,
            "position": after,
            "place": next_place,
            **self._template.state(cache),
        }

    @property
    def keeps_all_tokens(self) -> bool:
        """Whether all that is kept between two tokens are keys and values of all tokens before."""
        return self._template.has_slots_only

    def decode(
        self,
        token: Tensor,
        mask: Tensor,
        position: Tensor,
        place: Tensor,
        *state: Tensor,
        reach: int | None = None,
        order: Tensor | None = None,
        is_masked: bool = False,
    ) -> dict[str, Tensor]:
        """Runs one token.

        Args:
            token: ``[batch]``, int64.
            mask: ``[batch, slots]``, 0 where the prompt has padding.
            position: ``[1]``, int64: the slot of the token.
            place: ``[batch]``, int64: how many tokens are before it, without padding; ``[axes, batch]`` where a
                position has several dims.
            state: The tensors of the cache.
            reach: How many of its slots are read, more than ``position``, where no number can be had of that; None:
                all.
            order: ``[batch]``, int64: the rows of the cache are put into this order first; None: they stay.
            is_masked: Read them in any case, as a device does that compiles.

        Returns:
            ``logits`` ``[batch, vocabulary]`` of the next token, float32, and what the next call takes.
        """
        # A number where it can be had: then only what is filled is read, and no mask has to hide the rest. Nothing is
        # traced there: the forward may look at values, and torch need not count versions, as it does under no_grad.
        slot = position if is_masked else slot_number(position)
        is_number = isinstance(slot, int)
        with torch.inference_mode() if is_number else contextlib.nullcontext():
            if order is not None:
                state = tuple(self._template.reorder(state, self._dims, self.aliases, order, slot, reach))
            cache = self._template.cache(state, slot, in_place=True, reach=reach)
            if is_number:
                mask = mask[:, : slot + 1]
            else:
                mask = mask[:, :reach]
                mask = mask * (torch.arange(mask.shape[1], device=mask.device) <= position)
            inputs = {"input_ids": token[:, None]}
            is_static = self.is_static and not is_number
            logits = self._run(inputs, mask, place[..., None], cache, position, is_static=is_static)
            following = {"position": position + 1, "place": place + 1, **self._template.state(cache)}
            return {"logits": logits, **following}

    def _run(
        self,
        inputs: Mapping[str, Tensor],
        mask: Tensor,
        places: Tensor,
        cache: Any,
        first: Tensor | int,
        more: Mapping[str, Tensor] | None = None,
        *,
        is_static: bool | None = None,
    ) -> Tensor:
        """Calls the model's forward; returns logits of the last token."""
        # What the forward knows, by its names; and what generate() of this class alone does to that, such as leaving a
        # mask out.
        (tokens,) = inputs.values()
        arguments: Any = {**inputs, self._cache_name: cache, **self._options}
        if "position_ids" in self._names:
            arguments["position_ids"] = places
        if "attention_mask" in self._names:
            arguments["attention_mask"] = mask
        if "cache_position" in self._names:
            arguments["cache_position"] = torch.arange(tokens.shape[1], device=mask.device) + first
        arguments |= more or {}
        if self._prepares:
            is_first = isinstance(first, int) and first == 0
            arguments = prepare_inputs(self.model, arguments, tokens.shape[1], is_first=is_first)
        with forward_context(self.is_static if is_static is None else is_static):
            out = self.model(**arguments, return_dict=True)
        logits: Tensor = out.logits[:, -1].to(torch.float32)
        return logits


def _batch_dims(model: Any, shapes: Mapping[str, Tensor], larger: Mapping[str, Tensor]) -> dict[str, int]:
    """Which dim of each tensor is that of the batch: the one that differs in a batch of three.

    Raises:
        GraphError: None does, or several, or it is no batch.
    """
    dims = {}
    for name, small in shapes.items():
        large = larger[name].shape if name in larger else torch.Size()
        differ = [dim for dim, pair in enumerate(zip(small.shape, large, strict=False)) if pair != pair[::-1]]
        if len(large) != small.dim() or [(small.shape[dim], large[dim]) for dim in differ] != [(2, 3)]:
            raise GraphError(
                f"{type(model).__name__} keeps {name} {tuple(small.shape)} between two tokens, and "
                f"{tuple(large)} for three rows in place of two: which dim is that of the batch cannot be told.",
                model=model,
            )
        dims[name] = differ[0]
    return dims


def _to_the_left(inputs: Mapping[str, Tensor], mask: Tensor, *along: Tensor) -> tuple[Any, ...]:
    """Moves padding of the one input, its mask, and what goes along to the left; tokens may be embedded."""
    ((name, tokens),) = inputs.items()
    tokens = tokens if tokens.dim() == 2 else tokens.movedim(-1, 0)
    tokens, *others = to_the_left(mask, tokens, mask, *along)
    return {name: tokens if tokens.dim() == 2 else tokens.movedim(0, -1)}, *others
